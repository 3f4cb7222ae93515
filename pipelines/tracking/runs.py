"""MLflow runs: parameters, curves, artifacts.

In: a config, then points of curves and files. Out: one MLflow run for each training. The driver creates the run,
rank 0 of the train workers writes its curves, the driver adds the artifacts and ends it. A resumed training
continues its run. Training never waits for a server that is away.
"""

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from polyvit.checkpoint import Point
from polyvit.config import RunConfig, check_no_password, flatten
from polyvit.errors import UserError
from polyvit.training import Callback

logger = logging.getLogger(__name__)
logging.getLogger("alembic").setLevel(logging.ERROR)
logging.getLogger("mlflow").setLevel(logging.ERROR)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

# Our own threads wait until a server is back; the client's retries would take minutes for each call.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

_PARAMS_PER_CALL, _METRICS_PER_CALL = 100, 1000  # the MLflow API's limits
STEP_KEY = "global_step"
"""A metric that every point has too, in the same transaction; it tells which points the store already holds."""
PARENT, TRIAL = "mlflow.parentRunId", "polyvit.trial"
"""Tags of a trial's run: the sweep's run, and which trial it is. A trial that restarts finds its run by the
latter."""
RUN_NAME = "mlflow.runName"
"""The tag that MLflow shows as a run's name."""
PATIENCE_S = 300.0
"""How long the end of a run waits for a store that is out of reach."""
RETRY_S = 5.0


SOURCE = "mlflow.source.name"
"""The tag that MLflow shows as a run's source; of a sweep's trial MLflow would take the script of Ray's worker."""
DESCRIPTION = "mlflow.note.content"
"""The tag that MLflow shows as a run's description."""


def _description(config: RunConfig) -> str:
    """What a run is, in Markdown: its recipe, its source and its tasks."""
    rows = [f"| {name} | {task.modality} | {task.steps} | {task.batch} |" for name, task in config.tasks.items()]
    table = ["| task | modality | steps | batch |", "|---|---|---|---|", *rows]
    differs = [f"- `{key}`: {value}" for key, value in not_default(config).items() if not key.startswith("tasks.")]
    head = f"**{config.name}** ({config.schedule.kind}). {config.source[:1000]}"
    return "\n".join([head, "", *table, "", "Not the default:", "", *differs])[:5000]


def not_default(config: RunConfig) -> dict[str, Any]:
    """The keys whose values are not their defaults, dotted; without what the description says anyway."""
    differs = flatten(config.model_dump(mode="json", exclude_defaults=True))
    return {key: value for key, value in differs.items() if key not in ("name", "source")}


def measured_once(values: Mapping[str, float]) -> dict[str, float]:
    """A point of the curves as MLflow gets it: no number twice, and of several labels no top-1.

    `eval/T/value` repeats the metric of task T; the run's own history keeps it.
    """
    several = {key.removesuffix("map") for key in values if key.startswith("eval/") and key.endswith("/map")}
    dropped = {f"{head}{kind}" for head in several for kind in ("top1", "top5")}
    return {
        key: value
        for key, value in values.items()
        if key not in dropped and not (key.startswith("eval/") and key.endswith("/value"))
    }


def tracking_uri(config: RunConfig) -> str:
    """`tracking.uri`, else MLFLOW_TRACKING_URI, else a SQLite file in `storage`.

    Raises UserError for one with a password in it, which would be shown and stored.
    """
    from_environment = os.environ.get("MLFLOW_TRACKING_URI")
    check_no_password("tracking.uri", config.tracking.uri)
    check_no_password("MLFLOW_TRACKING_URI", from_environment)
    uri = config.tracking.uri or from_environment
    if not uri and "?" in config.storage:
        raise UserError(
            f"storage={config.storage}: MLflow would cut the name of its SQLite file at the '?'; give another "
            "folder, or set tracking.uri"
        )
    return uri or f"sqlite:///{Path(config.storage).absolute()}/mlflow.db"


def _advice(uri: str, error: str) -> str:
    """What to do about a store that cannot be used."""
    if "No module named" in error:
        return "install the driver of that database, such as psycopg2-binary"
    if "deleted" in error or "must be in the 'active' state" in error:
        return (
            "the experiment was deleted: `mlflow experiments restore` brings it back, or set tracking.experiment"
        )
    if any(word in error for word in ("401", "403", "Unauthorized", "Forbidden", "password")):
        return "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (of a database: PGPASSWORD)"
    if "://" not in uri and ":" in uri:
        return f"write http://{uri} for a server"
    return "start the server, or set tracking.uri or MLFLOW_TRACKING_URI"


def experiment_id(client: Any, config: RunConfig) -> str:
    """The id of `tracking.experiment`, which is created if need be. With a SQLite store its artifacts go to
    `storage`."""
    name = config.tracking.experiment
    if experiment := client.get_experiment_by_name(name):
        return experiment.experiment_id
    local = f"{Path(config.storage).absolute()}/mlartifacts" if client.tracking_uri.startswith("sqlite:") else None
    return client.create_experiment(name, artifact_location=local)


def store_problem(uri: str) -> str | None:
    """Why the store that a run was recorded in cannot be used: a SQLite file that is gone, which MLflow would make
    anew, and empty. None where nothing is known to be wrong."""
    if not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists():
        return None
    return (
        f"the run's MLflow store {uri} is not there; was its folder moved? MLflow keeps addresses of files in it:"
        " move it back, or register into another store (`polyvit register --store URI`)"
    )


def _trial_run(client: Any, experiment_id: str, trial: str | None) -> str | None:
    """The id of a trial's run, if the trial was begun before."""
    if trial is None:
        return None
    runs = client.search_runs([experiment_id], filter_string=f"tags.`{TRIAL}` = '{trial}'", max_results=1)
    return runs[0].info.run_id if runs else None


class Tracker:
    """One MLflow run, written to from one process at a time."""

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id

    @cached_property
    def client(self) -> Any:
        """MLflow's client, at the first call: its import takes seconds."""
        from mlflow.tracking import MlflowClient  # start-up: mlflow

        return MlflowClient(tracking_uri=self.uri)

    @classmethod
    def start(cls, config: RunConfig, run_name: str, tags: Mapping[str, str] | None = None) -> "Tracker":
        """Start a run with the resolved config as its parameters, what is not the default first. Where the store
        holds a run with the same TRIAL tag, that run goes on. Raises UserError if the store is out of reach.

        tags: RUN_NAME among them is the run's name.
        """
        from mlflow.exceptions import MlflowException  # start-up: mlflow
        from mlflow.tracking import MlflowClient  # start-up: mlflow
        from mlflow.tracking.context.registry import resolve_tags  # start-up: mlflow

        uri = tracking_uri(config)
        if uri == f"sqlite:///{Path(config.storage).absolute()}/mlflow.db":
            Path(config.storage).mkdir(parents=True, exist_ok=True)
        try:
            client = MlflowClient(tracking_uri=uri)
            experiment = experiment_id(client, config)
            own = {"polyvit.recipe": config.name, SOURCE: "polyvit", DESCRIPTION: _description(config)}
            tags = {**own, **(tags or {})}
            run_name = tags.pop(RUN_NAME, run_name)
            if known := _trial_run(client, experiment, tags.get(TRIAL)):
                return cls(uri, known)
            # Whose run it is, of which program and commit, as MLflow's own `start_run` says.
            run = client.create_run(experiment, run_name=run_name, tags=resolve_tags(tags))
            tracker = cls(uri, run.info.run_id)
            tracker.params(not_default(config) | flatten(config.model_dump(mode="json")))
        except (MlflowException, OSError, ImportError) as error:
            raise UserError(
                f"the MLflow store {uri} cannot be used ({error}); {_advice(uri, str(error))}"
            ) from None
        return tracker

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; long ones are cut to what MLflow holds."""
        from mlflow.entities import Param  # start-up: mlflow

        entries = [Param(key, str(value)[:6000]) for key, value in values.items()]
        for i in range(0, len(entries), _PARAMS_PER_CALL):
            self.client.log_batch(self.run_id, params=entries[i : i + _PARAMS_PER_CALL])

    def inputs(self, config: RunConfig, report: Mapping[str, Mapping[str, Any]]) -> None:
        """The dataset of every task: its name, the digest of its index, where it lies, counts and schema.

        report: of the indexes, by task (`index.json`). Waits for a store that is away, and in the end warns.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag  # start-up: mlflow

        datasets = []
        for name, entry in report.items():
            task = config.tasks[name]
            counts = {key: entry[key] for key in ("train", "validation", "test", "classes") if key in entry}
            columns = [{"name": key, "type": "string"} for key in ("key", "path")]
            schema = {"modality": task.modality, "columns": [*columns, {"name": "labels", "type": "list<int32>"}]}
            dataset = Dataset(
                name, entry["hash"][:36], "local" if "://" not in entry["root"] else entry["root"].split("://")[0],
                json.dumps({"uri": entry["root"], "layout": task.layout}), json.dumps(schema), json.dumps(counts),
            )  # fmt: skip
            datasets.append(DatasetInput(dataset, [InputTag("mlflow.data.context", "training and evaluation")]))
        retry(lambda: self.client.log_inputs(self.run_id, datasets), f"logging the datasets to {self.uri}")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log values at one step; a metric that the run has at this step already is not logged again.

        Waits for a store that is away, and in the end warns.
        """
        retry(lambda: self._metrics(step, values), f"logging the results to {self.uri}")

    def _metrics(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            known = [point for point in self.client.get_metric_history(self.run_id, key) if point.step == step]
            if not known:
                self.client.log_metric(self.run_id, key, float(value), step=step)

    def curves(self, past: Sequence[Point] = ()) -> "Curves":
        """A sender of the run's curves. `past`: points from before a restart, which are sent where the store
        lacks them."""
        return Curves(self, past)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Upload a file or a folder; waits for a store that is out of reach, and in the end warns."""
        upload = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        where = (folder or path.name) if path.is_dir() else folder
        retry(lambda: upload(self.run_id, str(path), where), f"logging {path.name} to {self.uri}")

    def watch_machine(self) -> Any:
        """MLflow's monitor of this machine (processors, memory, disk, network, GPUs), which logs to this run."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor  # start-up: mlflow

        monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=self.uri)
        monitor.start()
        return monitor

    def reopen(self) -> None:
        """Mark a resumed run as running. Raises UserError where the store does not hold it."""
        from mlflow.exceptions import MlflowException  # start-up: mlflow

        try:
            self.client.update_run(self.run_id, status="RUNNING")
        except MlflowException as error:
            raise UserError(
                f"MLflow run {self.run_id} cannot go on in {self.uri} ({error}); {_advice(self.uri, str(error))}; "
                "tracking.uri must be the store that holds it"
            ) from None

    def page(self) -> str:
        """What follows a server's address on the page of the run's experiment; empty where the store is away."""
        try:
            experiment = self.client.get_run(self.run_id).info.experiment_id
        except Exception:  # any transport's error: the run is over and needs no page
            return ""
        return f"/#/experiments/{experiment}?workflowType=machine_learning"

    def finish(self, status: str) -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        retry(lambda: self.client.set_terminated(self.run_id, status), f"ending the run in {self.uri}")


def retry(call: Callable[[], object], what: str) -> bool:
    """Call until it succeeds, for PATIENCE_S seconds; then warn that `what` was not done. Returns whether it
    was."""
    until, warned = time.monotonic() + PATIENCE_S, False
    while True:
        try:
            call()
        except Exception as error:  # any transport's error
            if time.monotonic() > until:
                logger.warning("given up: %s: %s", what, error)
                return False
            if not warned:
                logger.warning("%s failed, trying again for %g s: %s", what, PATIENCE_S, error)
            warned = True
            time.sleep(RETRY_S)
        else:
            return True


class Curves(Callback):
    """A callback of training that sends points in order from a thread.

    Each is sent exactly once, however often the server or this process fails.

    A point's metrics are sent in one transaction with STEP_KEY. After a restart or a failure the store is asked
    which steps it holds, and those are not sent again. From the first point on MLflow's own monitor adds what the
    machine does (`system/*`), as often as its MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL says, else every 10 s.
    """

    def __init__(self, tracker: Tracker, past: Sequence[Point]) -> None:
        self._tracker, self._run_id, self._uri = tracker, tracker.run_id, tracker.uri
        self._waiting: deque[Point] = deque((step, measured_once(values)) for step, values in past)
        self._change = threading.Condition()
        self._closing = False
        self._held: set[int] | None = None
        self._machine: Any = None
        self._thread = threading.Thread(target=self._send_all, name="polyvit-mlflow", daemon=True)
        self._thread.start()

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """A point of the run that trains."""
        self.put(step, values)

    def on_end(self) -> None:
        """Wait until all points are sent."""
        self.close()

    def put(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point; returns at once."""
        with self._change:
            self._waiting.append((step, measured_once(values)))
            self._change.notify()

    def close(self, patience_s: float = PATIENCE_S) -> int:
        """Wait until all points are sent, at most `patience_s` seconds. Returns how many are not."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join(patience_s)
        if self._machine:
            self._machine.finish()
        left = len(self._waiting)
        if left:
            logger.warning(
                "%d points of the curves are not in MLflow (%s is out of reach); they are in the run's history "
                "folder, and `cotrain --resume` sends them", left, self._uri,
            )  # fmt: skip
        return left

    def _send_all(self) -> None:
        failing = False
        while batch := self._next():
            try:
                if self._held is None:
                    history = self._tracker.client.get_metric_history(self._run_id, STEP_KEY)
                    self._held = {point.step for point in history}
                self._send([point for point in batch if point[0] not in self._held])
            except Exception as error:  # any transport's error
                self._held = None  # the points may have arrived all the same: ask before sending them again
                if not failing:
                    logger.warning("MLflow (%s) does not take the curves, they wait: %s", self._uri, error)
                failing = True
                time.sleep(RETRY_S)
                continue
            self._held |= {step for step, _ in batch}
            if self._machine is None:
                self._machine = self._tracker.watch_machine()
            with self._change:
                for _ in batch:
                    self._waiting.popleft()
            if failing:
                logger.warning("MLflow takes the curves again; %d points caught up", len(batch))
            failing = False

    def _next(self) -> list[Point]:
        """The oldest waiting points that fit into one call; empty: closed, and all is sent."""
        with self._change:
            while not self._waiting and not self._closing:
                self._change.wait()
            batch: list[Point] = []
            room = _METRICS_PER_CALL
            for point in self._waiting:
                room -= len(point[1]) + 1
                if batch and room < 0:
                    break
                batch.append(point)
            return batch

    def _send(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric  # start-up: mlflow

        now = int(time.time() * 1000)
        metrics = [
            Metric(key, float(value), now, step)
            for step, values in points
            for key, value in {**values, STEP_KEY: step}.items()
        ]
        for i in range(0, len(metrics), _METRICS_PER_CALL):  # STEP_KEY of a very wide point comes last
            self._tracker.client.log_batch(
                self._run_id, metrics=metrics[i : i + _METRICS_PER_CALL], synchronous=True
            )
