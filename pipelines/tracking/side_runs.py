"""MLflow runs of commands that look at a model or at data: evaluations, probes, inspections.

In: what was measured, and the folder or the config that says where it belongs. Out: one finished MLflow run. A
store that cannot be used costs a warning, never the answer.
"""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipelines.tracking.registry import is_registered, registry_uri, run_record
from pipelines.tracking.runs import PARENT, Tracker, store_problem
from polyvit.config import RunConfig
from polyvit.errors import UserError

KIND = "polyvit.kind"
"""The tag that tells evaluations, probes and inspections from trainings, which lack it."""


def log_side_run(
    config: RunConfig, kind: str, name: str, values: Mapping[str, float], step: int = 0,
    files: Iterable[Path] = (), parent: str | None = None,
) -> tuple[str | None, str]:  # fmt: skip
    """A finished run in the store of `config`. Returns its id, None where the store cannot be used, and the line
    that says where it is, or why it is not.

    kind: such as `evaluation`. name: what was looked at. values: its metrics, at `step`. files: its artifacts.
    parent: the run that it belongs to, if it is in that store.
    """
    when = time.strftime("%Y%m%d-%H%M%S")
    tags = {KIND: kind} | ({PARENT: parent} if parent else {})
    try:
        tracker = Tracker.start(config, f"{kind} {name} {when}", tags)
    except (UserError, OSError) as error:
        return None, f"not logged to MLflow: {error}"
    tracker.metrics(step, values)
    for path in files:
        tracker.artifact(path, kind)
    tracker.finish("FINISHED")
    return tracker.run_id, f"MLflow      run {tracker.run_id} in {tracker.uri}"


def log_measurement(
    config: RunConfig, kind: str, model: str, checkpoint: Path, step: int, rows: Mapping[str, Mapping[str, Any]]
) -> tuple[str | None, str]:
    """What an evaluation or a probe measured, beside the run that trained the model; see `log_side_run`.

    config: of what was measured. model: as the command takes it. checkpoint: its folder. step: of it.
    rows: the result of each task.
    """
    record = run_record(checkpoint)
    uri = registry_uri() if is_registered(model) else record.get("mlflow_uri")
    if not uri:
        return None, "not logged to MLflow: the checkpoint lies in no run"
    if problem := store_problem(uri):
        return None, f"not logged to MLflow: {problem}"
    tracking = config.tracking.model_copy(update={"uri": uri})
    values = {
        f"eval/{name}/{key}": float(row[key])
        for name, row in rows.items()
        for key in ("loss", row["metric"])
        if row.get(key) is not None
    }
    parent = record.get("mlflow_run") if uri == record.get("mlflow_uri") else None
    name = model if is_registered(model) else checkpoint.parent.name
    return log_side_run(config.model_copy(update={"tracking": tracking}), kind, name, values, step, (), parent)
