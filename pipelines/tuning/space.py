"""What a sweep tries: the config of a trial, and whether every value of the space makes a valid one. No Ray here.

In: a config whose `sweep.space` maps dotted keys to values or ranges. Out: configs with some of these keys
changed.
"""

import importlib.util
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from polyvit.config import Range, RunConfig, set_key, validate_config
from polyvit.errors import UserError


def trial_config(base: Mapping[str, Any], changes: Mapping[str, Any]) -> RunConfig:
    """The config of a trial. base: a config as plain data. changes: dotted key -> value. Raises UserError."""
    document = deepcopy(dict(base))
    for key, value in changes.items():
        set_key(document, key, value)
    return validate_config(document)


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
    if problems:
        raise UserError("the space of the sweep does not fit the config:", problems)


def format_changes(changes: Mapping[str, Any]) -> str:
    """What a trial changes, as one would type it: "schedule.kind=weighted model.l_adapt=0"."""
    return " ".join(f"{key}={value}" for key, value in changes.items())
