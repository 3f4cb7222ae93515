"""One trial of a sweep: a `cotrain` run inside a Tune process, and the line that it gets on the terminal."""

import json
import os
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.schedulers import ASHAScheduler

from pipelines.runtime import console
from polyvit.config import RunConfig, set_key, validate_config

METRIC, PROGRESS = "objective", "percent"
"""What a trial reports after each evaluation: the sweep's objective, and how much of its steps is done."""


def trial_config(base: Mapping[str, Any], changes: Mapping[str, Any]) -> RunConfig:
    """The config of a trial: plain config data with some dotted keys changed. Raises UserError."""
    document = deepcopy(dict(base))
    for key, value in changes.items():
        set_key(document, key, value)
    return validate_config(document)


def run_trial(changes: dict[str, Any], folder: str, parent: str) -> None:
    """One trial, in a Tune process: new, or gone on with after a restart."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    from pipelines.cotrain import RunPlace, cotrain
    from pipelines.tracking import PARENT, TRIAL

    sweep = Path(folder)
    name = tune.get_context().get_trial_id()
    assert name is not None
    place = RunPlace(sweep / "trials" / name)
    config = trial_config(json.loads((sweep / "sweep.json").read_text())["config"], changes)
    config = config.model_copy(update={"storage": str(sweep / "trials")})
    run_id = None
    if place.record.exists():
        run_id = json.loads(place.record.read_text())["mlflow_run"]
    else:
        place.folder.mkdir(parents=True, exist_ok=True)
        place.write("config.json", config.model_dump(mode="json"))
        _share_indexes(sweep / "index", place.folder / "index")
    tags = {PARENT: parent, TRIAL: f"{sweep.name}/{name}"}
    cotrain(config, place, run_id, [TuneReportCallback()], tags, indexed=True)


def _share_indexes(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for path in source.glob("*.parquet"):
        if not (target / path.name).exists():
            os.link(path, target / path.name)


class EarlyStopping(ASHAScheduler):
    """Successive halving: at 11 % and 33 % of its steps a trial that is not among the best third so far ends.

    One that has done all its steps is left to come to its end: Ray's own would stop it at its last evaluation,
    before its checkpoint and result are written.
    """

    def __init__(self) -> None:
        super().__init__(time_attr=PROGRESS, max_t=100, grace_period=11, reduction_factor=3)

    def on_trial_result(self, controller: Any, trial: Any, result: dict) -> str:
        """Whether it goes on."""
        if result.get(PROGRESS, 0) >= 100:
            return self.CONTINUE
        return super().on_trial_result(controller, trial, result)


class Lines(Callback):
    """A line on the terminal at every trial's start, evaluation and end; Tune's own tables go to its log."""

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Which values it tries."""
        console.print(f"trial {trial.trial_id}: {words(trial.config)}")

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        """How far it is."""
        if METRIC in result:
            console.print(f"trial {trial.trial_id}: {result[PROGRESS]:3d} %  {METRIC} {result[METRIC]:.4f}")

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Whether it was stopped early."""
        if (reached := trial.last_result.get(PROGRESS, 100)) < 100:
            console.print(f"trial {trial.trial_id}: stopped early, at {reached} %")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Where to read why."""
        console.print(f"[yellow]trial {trial.trial_id} failed; see {trial.local_path}[/]")


def words(changes: Mapping[str, Any]) -> str:
    """schedule.kind=weighted model.l_adapt=0"""
    return " ".join(f"{key}={value}" for key, value in changes.items())
