"""One trial of a sweep: a co-training run inside a Tune process, when it is stopped early, what the terminal
shows.

In: the keys that the trial changes, and the sweep's folder. Out: a run in `trials/`NAME of that folder.
"""

import os
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.schedulers import ASHAScheduler

from pipelines.index import build_indexes, of_other_data
from pipelines.runtime import console
from pipelines.tracking import PARENT, RUN_NAME, TRIAL
from pipelines.training import METRIC, PROGRESS, RunDir, cotrain
from pipelines.tuning.space import changes_of, format_changes, trial_config
from polyvit.config import validate_config
from polyvit.storage import read_record


def run_trial(changes: dict[str, Any], folder: str, parent: str) -> None:
    """Run one trial in a Tune process; after a restart of that process, go on with it.

    changes: dotted key -> value, as Tune has them. folder: the sweep's. parent: the sweep's MLflow run.
    """
    changes = changes_of(changes)
    sweep = Path(folder)
    name = tune.get_context().get_trial_id()
    assert name is not None
    run_dir = RunDir(sweep / "trials" / name)
    record = read_record(sweep / "sweep.json", "put back a copy of it, or start a new sweep", "config")
    base, asked = validate_config(record["config"]), trial_config(record["config"], changes)
    config = asked.model_copy(update={"storage": str(sweep / "trials")})
    run_id = None
    if run_dir.record.exists():
        run_id = run_dir.read(run_dir.record.name, "mlflow_run")["mlflow_run"]
    else:
        run_dir.folder.mkdir(parents=True, exist_ok=True)
        run_dir.write("config.json", config.model_dump(mode="json"))
        _share_indexes(sweep / "index", run_dir.folder / "index")
        if others := of_other_data(asked, base):  # another fold, say; the sweep's start has put it into the cache
            build_indexes(others, run_dir.folder / "index")
    tags = {PARENT: parent, TRIAL: f"{sweep.name}/{name}", RUN_NAME: format_changes(changes)[:250]}
    cotrain(config, run_dir, run_id, tags)


def _share_indexes(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for path in source.glob("*.parquet"):
        if not (target / path.name).exists():
            os.link(path, target / path.name)


class EarlyStopping(ASHAScheduler):
    """Successive halving: at 11 % and 33 % of its steps, a trial that is not in the best third so far is stopped.

    A trial that has done all its steps is never stopped. Ray's own scheduler would stop it at its last evaluation,
    before its checkpoint and result are written.
    """

    def __init__(self) -> None:
        super().__init__(time_attr=PROGRESS, max_t=100, grace_period=11, reduction_factor=3)

    def on_trial_result(self, controller: Any, trial: Any, result: dict) -> str:
        """Whether the trial goes on."""
        if result.get(PROGRESS, 0) >= 100:
            return self.CONTINUE
        return super().on_trial_result(controller, trial, result)


class TrialPrinter(Callback):
    """Prints a line at every trial's start, evaluation and end; Tune's own tables go to its log."""

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Which values it tries."""
        console.print(f"trial {trial.trial_id}: {format_changes(changes_of(trial.config))}")

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        """How far it is, and how good."""
        if METRIC in result:
            console.print(f"trial {trial.trial_id}: {result[PROGRESS]:3d} %  {METRIC} {result[METRIC]:.4f}")

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Whether it was stopped early."""
        if (reached := trial.last_result.get(PROGRESS, 100)) < 100:
            console.print(f"trial {trial.trial_id}: stopped early, at {reached} %")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Where to read why it failed."""
        console.print(f"trial {trial.trial_id} failed; see {trial.local_path}", style="yellow")
