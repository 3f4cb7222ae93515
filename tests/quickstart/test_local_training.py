"""`polyvit.train`: a run in this process, whose folder is a run for every command."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipelines_kit import pair_config, pair_document
from small import write_yaml

import polyvit
from polyvit.errors import UserError
from polyvit.quickstart.local_training import LocalRun, _Run, train
from polyvit.quickstart.notebook_config import as_config
from polyvit.reports.compare.run_summary import read_run

pytestmark = pytest.mark.usefixtures("one_thread")


def document(pair_root: Path, storage: Path) -> dict[str, Any]:
    return {**pair_document(pair_root), "storage": str(storage), "train": {"log_every": 7, "eval_every": 14}}


@pytest.fixture(scope="module")
def run(pair_root: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalRun:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as `one_thread`, which comes later than this
    storage = tmp_path_factory.mktemp("runs")
    first = train(document(pair_root, storage), name="first", device="cpu", progress=False)
    torch.set_num_threads(threads)
    return first


def test_it_learns_and_gives_the_model(run: LocalRun, pair_root: Path) -> None:
    assert [point["step"] for point in run.history] == [7, 14, 21, 28]
    losses = [point["train/shapes/loss"] for point in run.history if "train/shapes/loss" in point]
    assert losses[-1] < losses[0]
    assert {name: (row["steps"], row["metric"]) for name, row in run.results.items()} == {
        "shapes": (20, "top1"), "sounds": (8, "top1"),
    }  # fmt: skip
    picture = next(iter(sorted((pair_root / "shapes" / "val").rglob("*.png"))))
    answer = run.model.predict(picture)
    assert {entry["label"] for entry in answer["tasks"]["shapes"]} == set(run.model.classes("shapes"))
    assert run.model.embed(picture).shape == (16,)
    assert repr(run).startswith(f"LocalRun({str(run.folder)!r}: shapes top1 0.")


def test_an_adaptive_schedule_is_followed(pair_root: Path, tmp_path: Path) -> None:
    adaptive = {**document(pair_root, tmp_path), "schedule": {"kind": "adaptive"}}
    run = train(adaptive, device="cpu", progress=False)
    assert sum(row["steps"] for row in run.results.values()) == 28
    assert any("schedule/shapes/share" in point for point in run.history)
    result = json.loads((run.folder / "result.json").read_text())
    assert [set(decision["shares"]) for decision in result["decisions"]] == [{"shapes", "sounds"}]


def test_the_folder_is_a_run(run: LocalRun) -> None:
    summary = read_run(run.folder)
    assert (summary.finished, summary.steps, len(summary.evaluations)) == (True, 28, 2)
    assert summary.values == {name: row["value"] for name, row in run.results.items()}
    assert [path.name for path in sorted(run.folder.glob("step_*"))] == ["step_00000028"]
    index = json.loads((run.folder / "index.json").read_text())
    assert [(index[task]["train"], index[task]["classes"]) for task in ("shapes", "sounds")] == [(24, 3), (24, 3)]
    quarantine = json.loads((run.folder / "quarantine.json").read_text())
    assert [entry["task"] for entry in quarantine] == ["shapes"]  # the fixture's picture that is none


def test_the_same_config_gives_the_same_weights_from_a_file_or_a_dict(
    run: LocalRun, pair_root: Path, tmp_path: Path
) -> None:
    written = write_yaml(tmp_path / "pair.yaml", document(pair_root, tmp_path / "runs"))
    again = polyvit.train(written, ["train.log_every=28"], device="cpu", progress=False)
    assert again.folder.name.startswith("pair-")
    weights, before = (each.model.module.state_dict() for each in (again, run))
    for name, tensor in weights.items():
        np.testing.assert_array_equal(tensor.numpy(), before[name].numpy(), err_msg=name)


def test_an_interrupt_ends_it_with_a_checkpoint(
    pair_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = _Run.progress

    def interrupt(self: _Run, snapshot: dict[str, Any]) -> None:
        shown(self, snapshot)
        if snapshot["step"] == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(_Run, "progress", interrupt)
    before = signal.getsignal(signal.SIGINT)
    stopped = train(document(pair_root, tmp_path), device="cpu", name="cut")
    assert stopped.stopped
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "cut" / "step_00000006" / "model.safetensors").is_file()
    assert not (tmp_path / "cut" / "result.json").exists()
    assert "stopped" in repr(stopped)
    assert stopped.results["shapes"]["value"] is None


def test_mistakes_are_named_and_leave_no_run(run: LocalRun, pair_root: Path, tmp_path: Path) -> None:
    wrong = document(pair_root, tmp_path)
    wrong["tasks"]["shapes"]["batchsize"] = 3
    with pytest.raises(UserError, match=r"tasks.shapes.batchsize: unknown key; did you mean"):
        train(wrong)
    with pytest.raises(UserError, match=r"the data do not fit the config:\n.*has 3 classes.*num_classes is 2"):
        train(document(pair_root, tmp_path), ["tasks.shapes.num_classes=2"], name="bad")
    with pytest.raises(UserError, match="data are missing"):
        train(document(tmp_path / "nowhere", tmp_path))
    assert not (tmp_path / "bad").exists()
    with pytest.raises(UserError, match=r"run first exists in .*; give another name"):
        train(document(pair_root, run.folder.parent), name="first")
    with pytest.raises(UserError, match="name='a/b': a run's name is one folder"):
        train(document(pair_root, tmp_path), name="a/b")
    config = pair_config(pair_root, tmp_path)
    with pytest.raises(UserError, match="a RunConfig is whole"):
        train(config, ["seed=3"])


def test_a_dict_may_extend_a_recipe(pair_root: Path) -> None:
    config = as_config({"extends": "tiny-nine", "tasks": {"pets": {"root": pair_root}}}, ["optim.lr=0.5"])
    assert (list(config.tasks), config.optim.lr, config.model.width) == (["pets"], 0.5, 128)
    assert (config.name, config.tasks["pets"].root) == ("notebook", str(pair_root))
    assert as_config("demo").name == "demo"
