"""Runs that repeat each other over folds, splits or seeds: the mean and spread of each task's metric, in words."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from polyvit.reports.compare.run_summary import RunSummary


def spread_notes(runs: Sequence[RunSummary], keys: Mapping[str, Any]) -> list[str]:
    """A line for each task, where the runs differ in their seed or in options of their data alone.

    keys: the config's keys that differ, dotted. The spread is the standard deviation between runs (n - 1).
    """
    repeats = keys and all(key == "seed" or _is_an_option(key) for key in keys)
    if not repeats or len(runs) < 2:
        return []
    notes = []
    for task in runs[0].config.tasks:
        values = [value for run in runs if (value := run.values.get(task)) is not None and math.isfinite(value)]
        if len(values) > 1:
            mean, spread = 100 * statistics.mean(values), 100 * statistics.stdev(values)
            notes.append(
                f"{task} over {len(values)} values of {' and '.join(keys)}: {mean:.1f} % on average, standard"
                f" deviation {spread:.1f}, from {100 * min(values):.1f} to {100 * max(values):.1f}."
            )
    return notes


def _is_an_option(key: str) -> bool:
    first, _, rest = key.partition(".")
    return first == "tasks" and rest.partition(".")[2].startswith("options")
