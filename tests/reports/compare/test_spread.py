"""Folds, splits and seeds: the mean and spread of runs that repeat each other."""

from types import SimpleNamespace
from typing import Any

import pytest

from polyvit.reports.compare.spread import spread_notes


def runs(*values: float | None) -> Any:
    config = SimpleNamespace(tasks={"esc50": None})
    return [SimpleNamespace(config=config, values={"esc50": v}, steps=10) for v in values]


@pytest.mark.parametrize("key", ["tasks.esc50.options.fold", "tasks.esc50.options", "seed"])
def test_folds_and_seeds_have_a_mean_and_a_spread(key: str) -> None:
    (note,) = spread_notes(runs(0.5, 0.6, 0.7, None), {key: {}})
    assert note == (
        f"esc50 over 3 values of {key}: 60.0 % on average, standard deviation 10.0, from 50.0 to 70.0."
    )


@pytest.mark.parametrize(
    "keys",
    [{}, {"model.l_adapt": {}}, {"seed": {}, "optim.lr": {}}, {"tasks.charades.options.each": {}}],
)
def test_other_runs_are_no_repetitions(keys: dict[str, Any]) -> None:
    assert spread_notes(runs(0.5, 0.6), keys) == []
