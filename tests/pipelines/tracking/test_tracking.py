"""MLflow: where the store is, parameters as the command line names them, curves, artifacts, a run that goes on."""

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from small import small_config

from pipelines.tracking import runs
from pipelines.tracking.runs import Tracker, flatten, tracking_uri
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
    tags = run.data.tags
    assert tags["polyvit.recipe"] == "small"
    assert {"mlflow.user", "mlflow.source.type"} <= set(tags)
    assert tags["mlflow.source.name"] == "polyvit"
    assert "| sound | audio |" in tags["mlflow.note.content"]
    assert tracker.page() == f"/#/experiments/{run.info.experiment_id}?workflowType=machine_learning"
    assert client.get_experiment(run.info.experiment_id).name == "polyvit"
    params = run.data.params
    assert params["model.l_adapt"] == "1"
    assert params["tasks.sound.mixup_alpha"] == "0.3"
    assert params["tasks.picture.augment.flip"] == "0.5"
    assert params["optim.lr"] == "0.5"
    assert len(params) > 100  # more than one call of the API takes
    assert params["source"] == "x" * 6000


def steps_of(client: MlflowClient, run_id: str, key: str) -> list[int]:
    return [point.step for point in client.get_metric_history(run_id, key)]


def test_what_the_machine_does_is_logged_once_points_come(
    tracker: Tracker, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    began = Tracker(tracker.uri, client.create_run(client.get_run(tracker.run_id).info.experiment_id).info.run_id)
    curves = began.curves()
    assert not any(key.startswith("system/") for key in client.get_run(began.run_id).data.metrics)
    curves.put(1, {"train/sound/loss": 1.0})
    until = time.monotonic() + 30
    while time.monotonic() < until and "system/cpu_utilization_percentage" not in _metrics(client, began):
        time.sleep(0.1)
    assert curves.close() == 0
    found = _metrics(client, began)
    assert 0 <= found["system/cpu_utilization_percentage"] <= 100
    assert found["system/system_memory_usage_megabytes"] > 100
    assert not [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]


def _metrics(client: MlflowClient, tracker: Tracker) -> dict[str, float]:
    return client.get_run(tracker.run_id).data.metrics


def test_curves_by_global_step(tracker: Tracker, client: MlflowClient) -> None:
    curves = tracker.curves()
    for step in (10, 20, 30):
        curves.put(step, {"train/sound/loss": 1.0 / step, "eval/sound/map": 0.5})
    assert curves.close() == 0
    history = client.get_metric_history(tracker.run_id, "train/sound/loss")
    assert [(point.step, point.value) for point in history] == [(10, 0.1), (20, 0.05), (30, 1 / 30)]
    assert steps_of(client, tracker.run_id, "eval/sound/map") == [10, 20, 30]
    # After a restart at step 20: what the store lacks is sent, what it holds is not sent again.
    past = [(5, {"train/sound/loss": 5.0}), (10, {"train/sound/loss": 0.1}), (20, {"train/sound/loss": 0.05})]
    again = tracker.curves(past)
    for step in (30, 40):
        again.put(step, {"train/sound/loss": 1.0 / step})
    assert again.close() == 0
    assert sorted(steps_of(client, tracker.run_id, "train/sound/loss")) == [5, 10, 20, 30, 40]


class Flaky:
    """A store that is gone for some calls; the first failing call arrives all the same."""

    def __init__(self, client: MlflowClient, failures: int) -> None:
        self.client, self.failures = client, failures

    def get_metric_history(self, run_id: str, key: str) -> list:
        return self.client.get_metric_history(run_id, key)

    def log_batch(self, run_id: str, **arguments: Any) -> None:
        if self.failures == 0 or self.failures == 3:
            self.client.log_batch(run_id, **arguments)
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no server")


def test_a_server_that_goes_away_loses_and_doubles_nothing(
    tracker: Tracker, client: MlflowClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "RETRY_S", 0.05)
    other = Tracker.start(small_config(f"tracking.uri={tracker.uri}"), "flaky")
    other.client = Flaky(client, 3)
    curves = other.curves()
    for step in range(1, 6):
        curves.put(step, {"x": float(step)})
    assert curves.close() == 0
    assert steps_of(client, other.run_id, "x") == [1, 2, 3, 4, 5]
    assert "does not take the curves" in caplog.text
    assert "takes the curves again" in caplog.text


def test_a_server_that_stays_away_is_a_warning(tracker: Tracker, caplog: pytest.LogCaptureFixture) -> None:
    class Gone:
        def get_metric_history(self, run_id: str, key: str) -> list:
            raise ConnectionError("no server")

    away = Tracker(tracker.uri, tracker.run_id)
    away.client = Gone()
    curves = away.curves([(1, {"x": 1.0})])
    curves.put(2, {"x": 2.0})
    assert curves.close(patience_s=0.2) == 2
    assert "2 points of the curves are not in MLflow" in caplog.text


def test_a_value_is_logged_once(tracker: Tracker, client: MlflowClient) -> None:
    for _ in range(2):
        tracker.metrics(7, {"final/sound/map": 0.25})
    assert steps_of(client, tracker.run_id, "final/sound/map") == [7]


def test_patience_ends_with_a_warning(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "RETRY_S", 0.02)  # and patience of minutes: three tries may take their time
    tries: list[int] = []

    def fails_twice() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("no server")

    assert runs.retry(fails_twice, "this")
    assert len(tries) == 3
    monkeypatch.setattr(runs, "PATIENCE_S", 0.1)
    assert not runs.retry(lambda: 1 / 0, "that")
    assert "given up: that" in caplog.text


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


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("localhost:5000", "write http://localhost:5000"),
        ("http://127.0.0.1:9", "start the server"),
        pytest.param(
            "postgresql+psycopg://u@127.0.0.1:9/x",
            "psycopg2-binary",
            marks=pytest.mark.skipif(find_spec("psycopg") is not None, reason="psycopg is installed"),
        ),
    ],
)
def test_a_store_that_cannot_be_used_comes_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, advice: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=f"cannot be used .*{advice}"):
        Tracker.start(small_config(f"tracking.uri={uri}", f"storage={tmp_path}"), "run")


def test_a_deleted_experiment_is_said(tmp_path: Path) -> None:
    config = small_config(f"tracking.uri=sqlite:///{tmp_path}/m.db", f"storage={tmp_path}")
    tracker = Tracker.start(config, "run")
    tracker.client.delete_experiment(tracker.client.get_run(tracker.run_id).info.experiment_id)
    for call in (lambda: Tracker.start(config, "again"), tracker.reopen):
        with pytest.raises(UserError, match="mlflow experiments restore"):
            call()


def test_a_server_that_refuses_us_is_said(tmp_path: Path) -> None:
    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(UserError, match="MLFLOW_TRACKING_USERNAME"):
                Tracker.start(small_config(f"tracking.uri=http://127.0.0.1:{server.server_port}"), "run")
        finally:
            server.shutdown()


def test_final_values_wait_for_the_store(
    tracker: Tracker, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "RETRY_S", 0.01)
    failures = iter([ConnectionError("no server"), ConnectionError("no server")])
    history = client.get_metric_history

    def flaky(*arguments: str) -> list:
        if failure := next(failures, None):
            raise failure
        return history(*arguments)

    patient = Tracker(tracker.uri, tracker.run_id)
    patient.client = client
    monkeypatch.setattr(client, "get_metric_history", flaky)
    patient.metrics(7, {"final/x": 0.5})
    assert [point.value for point in history(tracker.run_id, "final/x")] == [0.5]
