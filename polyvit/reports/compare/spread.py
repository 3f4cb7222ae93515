"""Runs that repeat each other over folds, splits or seeds: the mean and spread of each task's metric, in words."""

import math
import re
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from polyvit.reports.compare.run_summary import RunSummary

_REPEAT = re.compile(r"tasks\.[^.]+\.options(\.(fold|split))?")
"""Two folds alone make `options` itself what differs, where one has no options at all."""


def spread_notes(runs: Sequence[RunSummary], keys: Mapping[str, Any]) -> list[str]:
    """One note, where the runs repeat each other (`only_repeats`): each task's mean and spread; or that runs of
    different lengths have none.

    keys: the config's keys that differ, dotted. The spread is the standard deviation between runs (n - 1).
    """
    if not only_repeats(keys) or len(runs) < 2:
        return []
    if len(lengths := {run.steps for run in runs}) > 1:
        return [
            f"No mean over {' and '.join(keys)}: the runs took {min(lengths):,} to {max(lengths):,} steps. Compare"
            " runs of one length."
        ]
    measured = {}
    for task in runs[0].config.tasks:
        values = [value for run in runs if (value := run.values.get(task)) is not None and math.isfinite(value)]
        if len(values) > 1:
            measured[task] = values
    if len(measured) == 1:
        ((task, values),) = measured.items()
        return [
            f"{task} over {len(values)} values of {' and '.join(keys)}: {_mean(values):.1f} % on average, standard"
            f" deviation {_spread(values):.1f}, from {100 * min(values):.1f} to {100 * max(values):.1f}."
        ]
    each = "; ".join(f"{task} {_mean(v):.1f} ± {_spread(v):.1f} (n = {len(v)})" for task, v in measured.items())
    return [f"Over {' and '.join(keys)}, in %, mean ± standard deviation: {each}."] if each else []


def _mean(values: Sequence[float]) -> float:
    return 100 * statistics.mean(values)


def _spread(values: Sequence[float]) -> float:
    return 100 * statistics.stdev(values)


def only_repeats(keys: Collection[str]) -> bool:
    """Whether runs that differ in these keys repeat each other: seeds, and folds or splits of their data.

    keys: dotted. Between such runs there is nothing to choose.
    """
    return bool(keys) and all(key == "seed" or _REPEAT.fullmatch(key) for key in keys)
