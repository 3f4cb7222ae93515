"""`polyvit bench`: tiny runs end to end, peers present or not; the checks that make a comparison void."""

import json
from pathlib import Path

import pytest
import torch

from pipelines.bench import gpu, kit, main, step
from pipelines.bench.step_peers import PEERS, Case, contender, installed
from polyvit.config import ModelConfig, load_config
from polyvit.model.flops import forward_flops, peak_flops, training_flops


def test_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "step.json"
    assert main.main(["step", "--quick", "--rounds", "2", "--precision", "float32", "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    kinds = 2 if torch.cuda.is_available() else 1  # on a GPU compiled too
    assert [table["modality"] for table in document["tables"]] == [
        modality for modality in ("image", "video", "audio") for _ in range(kinds)
    ]
    for table in document["tables"]:
        present = {name for name in PEERS[table["modality"]] if installed(name)}
        assert set(table["contenders"]) == {"ours"} | present
        assert set(table["absent"]) == set(PEERS[table["modality"]]) - present
        ours = table["contenders"]["ours"]
        assert ours["ratio_to_ours"] == 1.0
        assert ours["tokens"] == table["contenders"]["bare"]["tokens"]
        assert all(row["peak_mb"] > 0 for row in table["contenders"].values())
    assert {"cores", "threads", "versions", "load_average", "clock"} <= document["machine"].keys()
    assert document["claims"].keys() == {"absolute", "why"}
    assert "4 N^2 D" in document["flop_formula"]
    assert "absolute numbers may be quoted" in capsys.readouterr().out


def test_cotrain(tmp_path: Path) -> None:
    file, tiny = tmp_path / "cotrain.json", ["model.width=16", "model.num_heads=2", "model.mlp_dim=32"]
    arguments = ["cotrain", "tiny-nine", *tiny, "--steps", "12", "--rounds", "1", "--json", str(file)]
    assert main.main(arguments) == 0
    document = json.loads(file.read_text())
    assert sum(document["counts"].values()) == document["steps"] == 12
    assert len(document["counts"]) == 9
    assert document["within_limit"] == (document["ratio"] <= 1.03)
    assert document["ratio"] == pytest.approx(document["cotraining_ms"] / document["task_by_task_ms"])


TINY = ("model.width=16", "model.num_heads=2", "model.mlp_dim=32", "model.depth=2")


@pytest.mark.slow
def test_gpu_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole script, with a tiny model and peers of its size."""
    monkeypatch.setattr(gpu.step, "MANY", 2)
    monkeypatch.setattr(gpu, "STEPS", (3, 20))
    file = tmp_path / "gpu.json"
    batches = [f"tasks.{t}.batch=4" for t in load_config("tiny-nine", [], []).tasks]
    assert main.main(["gpu", "tiny-nine", *TINY, *batches, "--seconds", "200", "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert document["left_out"] == []
    assert list(document["seconds"]) == ["host", "tasks", "mix", "attention", "peers"]
    for modality in ("image", "video", "audio"):
        host = document["host"][modality]
        assert host["host_ms"] > 0
        assert host["operations"] > host["outermost"] > host["detach"] > 0
        if document["precision"] == "float32" and document["machine"]["device"] == "cpu":
            assert host["casts"] <= 4
        assert document["attention"][modality]["ms"]["math"] > 0
    assert {row["modality"] for row in document["tasks"].values()} == {"image", "video", "audio"}
    for row in document["tasks"].values():
        assert row["step_ms"] > 0
        assert 0 < row["mfu"] < 1
        assert row["flops"] > 0
    mix = document["mix"]
    assert sum(mix["counts"].values()) == mix["steps"] == 20
    assert len(mix["counts"]) > 3
    assert mix["recompilations"] == 0
    assert [table["modality"] for table in document["peers"]] == ["image", "video", "audio"]
    assert "absolute numbers may be quoted" in capsys.readouterr().out


def test_gpu_names_what_it_had_no_time_for(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    assert main.main(["gpu", "tiny-nine", *TINY, "--seconds", "1e-9", "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert document["left_out"] == ["host", "tasks", "mix", "attention", "peers"]
    assert main.main(["gpu", "tiny-nine", "--seconds", "0"]) == 2


@pytest.mark.parametrize(
    "arguments", [[], ["nothing"], ["step", "--precision", "int4"], ["cotrain", "--steps", "0"]]
)
def test_mistakes(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(arguments) == 2
    assert "error:" in capsys.readouterr().err


def test_other_token_counts_are_refused() -> None:
    model = ModelConfig.model_validate({**step.QUICK, "depth": 1})
    case = Case("image", model, 2, "float32", torch.device("cpu"))
    made = contender("bare", case)
    assert made.tokens == 5
    step.check_tokens(case, {("bare", 1): made})
    made.tokens = 6
    with pytest.raises(RuntimeError, match="bare has 6 tokens where 5 are expected"):
        step.check_tokens(case, {("bare", 1): made})


@pytest.mark.usefixtures("one_thread")  # torch's own threads are no load of others: a large machine has many
def test_no_absolute_claims_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr("os.getloadavg", lambda: (0.5, 0.0, 0.0))
    assert kit.claims(2.0)["absolute"]
    refused = kit.claims(40.0)
    assert not refused["absolute"]
    assert "40.0 on 16 cores" in refused["why"]


def test_ratio_is_within_rounds() -> None:
    assert kit.ratio([2.0, 40.0, 6.0], [1.0, 10.0, 3.0]) == 2.0


def test_flops_of_vit_base() -> None:
    """speed-notes, section 6: 35.1 forward and 105.2 training GFLOP of an image of 224; 989 TFLOP/s of an H200."""
    assert forward_flops(ModelConfig(), "image") / 1e9 == pytest.approx(35.1, abs=0.05)
    assert training_flops(ModelConfig(), "image") / 1e9 == pytest.approx(105.2, abs=0.1)
    assert peak_flops("NVIDIA H200", "bfloat16") == 989e12
    assert peak_flops("NVIDIA H200", "float32") is None
    assert peak_flops("cpu", "bfloat16") is None
