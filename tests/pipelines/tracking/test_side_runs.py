"""Evaluations, probes and inspections as MLflow runs beside the training's; each number of a training once."""

import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from small import small_config

from pipelines.tracking.runs import DESCRIPTION, PARENT, RUN_NAME, Tracker, measured_once, not_default
from pipelines.tracking.side_runs import KIND, log_measurement, log_side_run
from polyvit.config import RunConfig

ROWS = {
    "picture": {"metric": "top1", "value": 0.625, "top1": 0.625, "top5": 1.0, "loss": 0.5, "examples": 8},
    "sound": {"metric": "map", "value": 0.25, "map": 0.25, "top1": 0.5, "loss": None, "examples": 4},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunConfig, Tracker]:
    """A checkpoint's folder in a run's, whose run.json names an MLflow run."""
    folder = tmp_path_factory.mktemp("side")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        config = small_config(f"storage={folder}", "optim.lr=0.25")
        tracker = Tracker.start(config, "trained", {RUN_NAME: "optim.lr=0.25"})
    checkpoint = folder / "one" / "step_00000018"
    checkpoint.mkdir(parents=True)
    record = {"mlflow_uri": tracker.uri, "mlflow_run": tracker.run_id}
    (folder / "one" / "run.json").write_text(json.dumps(record))
    return checkpoint, config, tracker


def test_an_evaluation_is_a_run_below_the_one_that_trained(
    run: tuple[Path, RunConfig, Tracker], tmp_path: Path
) -> None:
    """In the store of that run, wherever the config says that runs are stored."""
    checkpoint, config, tracker = run
    elsewhere = config.model_copy(update={"storage": str(tmp_path / "elsewhere")})
    run_id, line = log_measurement(elsewhere, "evaluation", str(checkpoint), checkpoint, 18, ROWS)
    assert run_id
    assert run_id in line
    logged = MlflowClient(tracker.uri).get_run(run_id)
    assert logged.info.status == "FINISHED"
    assert logged.info.run_name.startswith("evaluation one ")
    assert (logged.data.tags[PARENT], logged.data.tags[KIND]) == (tracker.run_id, "evaluation")
    assert logged.data.metrics == {
        "eval/picture/top1": 0.625, "eval/picture/loss": 0.5, "eval/sound/map": 0.25,
    }  # fmt: skip
    assert not (tmp_path / "elsewhere").exists()


def test_a_checkpoint_of_no_run_is_not_logged(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    config = small_config(f"storage={tmp_path}")
    run_id, line = log_measurement(config, "probe", str(tmp_path / "alone"), tmp_path / "alone", 1, ROWS)
    assert run_id is None
    assert "lies in no run" in line
    assert not (tmp_path / "mlflow.db").exists()


def test_a_store_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = small_config(f"tracking.uri=sqlite:///{tmp_path}/file/x.db", f"storage={tmp_path}/file/x")
    run_id, line = log_side_run(config, "inspection", "toy", {"findings/error": 1})
    assert run_id is None
    assert line.startswith("not logged to MLflow: ")


def test_a_runs_name_description_and_datasets(run: tuple[Path, RunConfig, Tracker]) -> None:
    _, config, tracker = run
    counts = {"train": 30, "validation": 4, "test": 0, "classes": 6}
    report = {
        "picture": {"root": "/data/picture", "hash": "ab" * 32, **counts},
        "sound": {"root": "s3://bucket/sound", "hash": "cd" * 32, **counts},
    }
    tracker.inputs(config, report)
    logged = MlflowClient(tracker.uri).get_run(tracker.run_id)
    assert logged.info.run_name == "optim.lr=0.25"
    assert "- `optim.lr`: 0.25" in logged.data.tags[DESCRIPTION]
    assert list(not_default(config))[:2] == ["seed", "storage"]
    datasets = {each.dataset.name: each.dataset for each in logged.inputs.dataset_inputs}
    assert datasets.keys() == report.keys()
    assert datasets["picture"].digest == ("ab" * 32)[:36]
    assert (datasets["picture"].source_type, datasets["sound"].source_type) == ("local", "s3")
    assert json.loads(datasets["sound"].source) == {"uri": "s3://bucket/sound", "layout": "audioset"}
    assert json.loads(datasets["sound"].profile) == counts
    assert json.loads(datasets["picture"].schema)["modality"] == "image"


def test_a_number_is_logged_once_and_top1_of_one_label_only() -> None:
    values = {
        "eval/picture/value": 0.6, "eval/picture/top1": 0.6, "eval/picture/top5": 1.0, "eval/picture/loss": 0.5,
        "eval/sound/value": 0.2, "eval/sound/map": 0.2, "eval/sound/top1": 0.5, "eval/sound/top5": 0.9,
        "train/sound/loss": 1.0, "eval/mean": 0.4,
    }  # fmt: skip
    assert measured_once(values) == {
        "eval/picture/top1": 0.6, "eval/picture/top5": 1.0, "eval/picture/loss": 0.5, "eval/sound/map": 0.2,
        "train/sound/loss": 1.0, "eval/mean": 0.4,
    }  # fmt: skip
