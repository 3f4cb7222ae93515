"""MLflow: where the store is, parameters as the command line names them, curves, artifacts, a run that goes on."""

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from small import small_config

from pipelines.tracking import Tracker, flatten, tracking_uri
from polyvit.errors import UserError


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """One store for the file: making its tables takes seconds."""
    storage = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return Tracker.start(small_config(f"storage={storage}", "source=" + "x" * 7000), "a-run")


@pytest.fixture
def client(tracker: Tracker) -> MlflowClient:
    return MlflowClient(tracking_uri=tracker.uri)


def test_where_the_store_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(small_config(f"storage={tmp_path}")) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from.environment")
    assert tracking_uri(small_config()) == "http://from.environment"
    assert tracking_uri(small_config("tracking.uri=http://from.config")) == "http://from.config"


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": {}, "f": None}) == {
        "a.b": 1, "a.c.d": [2], "e": {}, "f": None,
    }  # fmt: skip


def test_a_run_has_the_config_as_parameters(tracker: Tracker, client: MlflowClient) -> None:
    run = client.get_run(tracker.run_id)
    assert run.info.run_name == "a-run"
    assert run.info.status == "RUNNING"
    assert run.data.tags["polyvit.recipe"] == "small"
    assert client.get_experiment(run.info.experiment_id).name == "polyvit"
    params = run.data.params
    assert params["model.l_adapt"] == "1"
    assert params["tasks.sound.mixup_alpha"] == "0.3"
    assert params["tasks.picture.augment.flip"] == "0.5"
    assert params["optim.lr"] == "0.5"
    assert len(params) > 100  # more than one call of the API takes
    assert params["source"] == "x" * 6000


def test_curves_by_global_step(tracker: Tracker, client: MlflowClient) -> None:
    for step in (10, 20, 30):
        tracker.metrics(step, {"train/sound/loss": 1.0 / step, "eval/sound/map": 0.5})
    tracker.flush()
    history = client.get_metric_history(tracker.run_id, "train/sound/loss")
    assert [(point.step, point.value) for point in history] == [(10, 0.1), (20, 0.05), (30, 1 / 30)]
    assert len(client.get_metric_history(tracker.run_id, "eval/sound/map")) == 3


def test_points_that_are_lost_are_a_warning(
    tracker: Tracker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost:
        def wait(self) -> None:
            raise ConnectionError("no store")

    monkeypatch.setattr(tracker, "_pending", [Lost(), Lost()])
    tracker.flush()
    assert "2 of 2 batches of MLflow metrics were lost" in caplog.text
    assert tracker._pending == []


def test_artifacts_are_files_and_folders(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("x")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "part").write_text("y")
    tracker.artifact(tmp_path / "note.txt")
    tracker.artifact(tmp_path / "model")
    tracker.artifact(tmp_path / "model", "checkpoint")
    assert {f.path for f in client.list_artifacts(tracker.run_id)} == {"note.txt", "model", "checkpoint"}
    assert [f.path for f in client.list_artifacts(tracker.run_id, "checkpoint")] == ["checkpoint/part"]


def test_a_run_ends_and_goes_on(tracker: Tracker, client: MlflowClient) -> None:
    tracker.finish("FAILED")
    assert client.get_run(tracker.run_id).info.status == "FAILED"
    again = Tracker(tracker.uri, tracker.run_id)
    again.reopen()
    assert client.get_run(tracker.run_id).info.status == "RUNNING"
    again.finish("FINISHED")
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_a_run_that_the_store_does_not_hold(tracker: Tracker) -> None:
    with pytest.raises(UserError, match="MLflow run 0123 cannot go on in sqlite"):
        Tracker(tracker.uri, "0123").reopen()


def test_a_store_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the MLflow store .* cannot be used"):
        Tracker.start(small_config(f"tracking.uri=sqlite:///{tmp_path}/file/mlflow.db"), "a-run")
