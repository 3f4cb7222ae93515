"""What a sweep tries: the config of a trial, and whether every value of the space makes a valid one. No Ray here.

In: a config whose `sweep.space` maps dotted keys to values or ranges. Out: configs with some of these keys
changed.
"""

import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from polyvit.config import Range, RunConfig, set_key, validate_config
from polyvit.errors import UserError
from polyvit.schedule import schedule_of

ONLY = "only"
"""Among a trial's changes, the tasks that it is left with (`sweep.alone`)."""


def trial_config(base: Mapping[str, Any], changes: Mapping[str, Any]) -> RunConfig:
    """The config of a trial. base: a config as plain data. changes: dotted key -> value. Raises UserError."""
    document = deepcopy(dict(base))
    for key, value in changes.items():
        if key != ONLY:
            set_key(document, key, value)
    config = validate_config(document)
    return _left_with(config, changes[ONLY]) if ONLY in changes else config


def _left_with(config: RunConfig, tasks: Sequence[str]) -> RunConfig:
    """Some of the tasks, each with the steps that it has among all; of `optim.warmup_steps` their share."""
    counts = schedule_of(config).counts()
    document = config.model_dump(mode="json")
    document["tasks"] = {name: {**document["tasks"][name], "steps": counts[name]} for name in tasks}
    document["schedule"]["steps"] = None
    if warmup := config.optim.warmup_steps:
        share = sum(counts[name] for name in tasks) / sum(counts.values())
        document["optim"]["warmup_steps"] = max(1, round(warmup * share))
    document["sweep"]["baselines"] = {}
    document["sweep"]["objective"] = "mean"
    return validate_config(document)


def all_trials(config: RunConfig) -> list[dict[str, Any]]:
    """The changes of each trial of a grid with `sweep.alone`: every combination of the space, then models of fewer
    tasks, for each seed."""
    space = {key: values for key, values in config.sweep.space.items() if not isinstance(values, Range)}
    grid = [dict(zip(space, each, strict=True)) for each in itertools.product(*space.values())]
    tasks, groups = config.tasks, []
    if "modalities" in config.sweep.alone:
        groups += [[n for n, task in tasks.items() if task.modality == m] for m in config.modalities]
    if "tasks" in config.sweep.alone:
        groups += [[name] for name in tasks]
    different = list(dict.fromkeys(map(tuple, groups)))
    seeds = [{"seed": seed} for seed in space.get("seed", [])] or [{}]
    return grid + [{ONLY: list(group), **seed} for group in different for seed in seeds if len(group) < len(tasks)]


def changes_of(trial: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial changes, of what Tune was given for it: the changes, or one entry `trial` that holds them."""
    return dict(trial.get("trial", trial))


def check_space(config: RunConfig) -> None:
    """Raises UserError where there is no space, where values of it make no valid config on their own (all of them
    are named), and where the search algorithm is not installed."""
    if config.sweep.search == "optuna" and importlib.util.find_spec("optuna") is None:
        raise UserError(
            "sweep.search=optuna needs Optuna, which is not installed: pip install 'polyvit[search]', or set "
            "sweep.search=random"
        )
    if not config.sweep.space:
        raise UserError("nothing to try: give --over KEY=A,B, or sweep.space in the config, such as model.l_adapt")
    base, problems = config.model_dump(mode="json"), []
    for key, values in config.sweep.space.items():
        for value in [values.low, values.high] if isinstance(values, Range) else values:
            whole = int(value) if isinstance(values, Range) and values.integer else value
            try:
                trial_config(base, {key: whole})
            except UserError as error:
                problems += [f"{key}={whole}: {problem}" for problem in error.problems or [error.message]]
    if not problems and config.sweep.alone:
        for changes in all_trials(config):
            trial_config(base, changes)
    if problems:
        raise UserError("the space of the sweep does not fit the config:", problems)


def format_changes(changes: Mapping[str, Any]) -> str:
    """What a trial changes, as one would type it: "schedule.kind=weighted model.l_adapt=0"."""
    words = {key: ",".join(value) if key == ONLY else value for key, value in changes.items()}
    return " ".join(f"{key}={value}" for key, value in words.items())
