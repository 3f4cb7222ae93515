"""Small files that a run, a sweep or a job depends on, damaged: one message that names the file and what to do."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small import small_config

from pipelines import cotrain, sweep
from pipelines.batch import batch_predict
from pipelines.batch.batch_predict import PredictJob
from pipelines.training import RunDir, new_run
from pipelines.training.worker import microbatches
from polyvit.config import RunConfig
from polyvit.distributed import SingleProcess
from polyvit.errors import UserError
from polyvit.model import build_model
from polyvit.reports.compare import read_run

DAMAGE = {
    "empty": b"", "cut": b'{"seed": 1, "tas', "a page": b"<html>", "a list": b"[]", "null": b"null",
    "a number": b"3", "deep": b"[" * 5000, "binary": b"\xff\xfe\x00",
}  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return small_config(f"storage={tmp_path_factory.mktemp('runs')}")


@pytest.fixture
def run_dir(config: RunConfig, tmp_path: Path) -> RunDir:
    run_dir = new_run(config.model_copy(update={"storage": str(tmp_path)}), "one")
    run_dir.write("run.json", {"mlflow_run": "1", "mlflow_uri": "sqlite:///x.db"})
    return run_dir


def refused(main: Callable[[list[str]], int], given: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command says."""
    assert main(given) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("name", ["config.json", "run.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_of_a_run(run_dir: RunDir, name: str, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir.folder / name).write_bytes(DAMAGE[damage])
    said = refused(cotrain.main, ["--resume", str(run_dir.folder)], capsys)
    assert f"{run_dir.folder / name} cannot be read" in said
    assert "put back a copy of it, or start a new run" in said


def test_of_a_run_that_lacks_keys(run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir.folder / "run.json").write_text("{}")
    assert "it has no mlflow_run" in refused(cotrain.main, ["--resume", str(run_dir.folder)], capsys)
    (run_dir.folder / "run.json").write_text('{"mlflow_run": "1", "mlflow_uri": ""}')
    (run_dir.folder / "config.json").write_text("{}")
    assert cotrain.main(["--resume", str(run_dir.folder)]) == 2
    assert f"{run_dir.folder / 'config.json'}: the config has 1 problem" in capsys.readouterr().err


@pytest.mark.parametrize("damage", DAMAGE)
def test_of_a_sweep(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.json").write_bytes(DAMAGE[damage])
    said = refused(sweep.main, ["--resume", str(tmp_path)], capsys)
    assert f"{tmp_path / 'sweep.json'} cannot be read" in said
    assert "put back a copy of it, or start a new sweep" in said


@pytest.mark.parametrize("damage", [*DAMAGE, "no task"])
def test_of_the_microbatches(config: RunConfig, run_dir: RunDir, damage: str) -> None:
    """They decide in which order gradients are summed, so they are not measured again without a word."""
    model = build_model(config, seed=0)
    path = run_dir.folder / "microbatches_1.json"
    path.write_bytes(DAMAGE.get(damage, b"{}"))
    with pytest.raises(UserError, match=rf"{path} cannot be read .*; delete it: sizes are measured again"):
        microbatches(model, config, run_dir, SingleProcess(), torch.device("cpu"))


@pytest.mark.parametrize("damage", DAMAGE)
def test_of_a_job(tmp_path: Path, damage: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    job = PredictJob(tmp_path / "out")
    batch_predict._claim(job, tmp_path, ["a"])
    batch_predict._claim(job, tmp_path, ["a"])
    (tmp_path / "out/job.json").write_bytes(DAMAGE[damage])
    with pytest.raises(UserError, match=r"job\.json cannot be read .*; delete it to go on with the same job"):
        batch_predict._claim(job, tmp_path, ["a"])


@pytest.mark.parametrize("name", ["config.json", "result.json", "history/00000001-00000002.jsonl"])
@pytest.mark.parametrize("damage", [name for name in DAMAGE if name != "a list"])
def test_of_a_run_that_is_compared(run_dir: RunDir, name: str, damage: str) -> None:
    (run_dir.folder / "history").mkdir()
    (run_dir.folder / name).write_bytes(DAMAGE[damage])
    with pytest.raises(UserError) as caught:
        read_run(run_dir.folder)
    assert Path(name).name in str(caught.value)
    assert "leave this run out" in str(caught.value)
