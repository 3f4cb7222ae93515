"""MLflow: runs, parameters, curves, artifacts. The only file that imports mlflow.

One run per training; the driver creates it, rank 0 of the train workers writes its curves, the driver adds the
artifacts and ends it. Resuming continues the same run.
"""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyvit.config import RunConfig
from polyvit.errors import UserError

logger = logging.getLogger(__name__)
logging.getLogger("alembic").setLevel(logging.ERROR)
logging.getLogger("mlflow").setLevel(logging.ERROR)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

_PARAMS_PER_CALL = 100  # the MLflow API's limit


def tracking_uri(config: RunConfig) -> str:
    """`tracking.uri`, else MLFLOW_TRACKING_URI, else a SQLite file in `storage`."""
    uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return uri or f"sqlite:///{Path(config.storage).absolute()}/mlflow.db"


class Tracker:
    """One MLflow run, written to from one process at a time."""

    def __init__(self, uri: str, run_id: str) -> None:
        from mlflow.tracking import MlflowClient

        self.uri, self.run_id = uri, run_id
        self._client = MlflowClient(tracking_uri=uri)
        self._pending: list[Any] = []

    @classmethod
    def start(cls, config: RunConfig, run_name: str) -> "Tracker":
        """A new run with the resolved config as its parameters. Raises UserError if the store is out of reach."""
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        uri = tracking_uri(config)
        if uri.startswith("sqlite:"):
            Path(config.storage).mkdir(parents=True, exist_ok=True)
        try:
            client = MlflowClient(tracking_uri=uri)
            name = config.tracking.experiment
            found = client.get_experiment_by_name(name)
            if found is None:
                local = f"{Path(config.storage).absolute()}/mlartifacts" if uri.startswith("sqlite:") else None
                experiment_id = client.create_experiment(name, artifact_location=local)
            else:
                experiment_id = found.experiment_id
            run = client.create_run(experiment_id, run_name=run_name, tags={"polyvit.recipe": config.name})
            tracker = cls(uri, run.info.run_id)
            tracker.params(flatten(config.model_dump(mode="json")))
        except (MlflowException, OSError) as error:
            raise UserError(
                f"the MLflow store {uri} cannot be used ({error}); start the server, or set tracking.uri or "
                "MLFLOW_TRACKING_URI"
            ) from None
        return tracker

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; long ones are cut to what MLflow holds."""
        from mlflow.entities import Param

        entries = [Param(key, str(value)[:6000]) for key, value in values.items()]
        for i in range(0, len(entries), _PARAMS_PER_CALL):
            self._client.log_batch(self.run_id, params=entries[i : i + _PARAMS_PER_CALL])

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log points of curves, without waiting for the store."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [Metric(key, float(value), now, step) for key, value in values.items()]
        self._pending.append(self._client.log_batch(self.run_id, metrics=entries, synchronous=False))

    def flush(self) -> None:
        """Wait until every point is stored; what could not be is a warning, never a failed run."""
        pending, self._pending = self._pending, []
        failed = 0
        for operation in pending:
            try:
                operation.wait()
            except Exception as error:  # any transport's error
                failed += 1
                logger.warning("MLflow did not take a point of the curves: %s", error)
        if failed:
            logger.warning("%d of %d batches of MLflow metrics were lost", failed, len(pending))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Upload a file or a folder."""
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), folder or path.name)
        else:
            self._client.log_artifact(self.run_id, str(path), folder)

    def reopen(self) -> None:
        """Mark a run that goes on as running. Raises UserError where the store does not hold it."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.update_run(self.run_id, status="RUNNING")
        except MlflowException as error:
            raise UserError(
                f"MLflow run {self.run_id} cannot go on in {self.uri} ({error}); set tracking.uri to the store "
                "that holds it"
            ) from None

    def finish(self, status: str) -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        self.flush()
        self._client.set_terminated(self.run_id, status)


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"width": 8}} -> {"model.width": 8}; the keys are those of the command line."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
