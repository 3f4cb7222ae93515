"""When a run ends before its last step: no evaluation improved for a while.

In: all evaluations of a run, which its checkpoints hold. Out: whether the last of them ends it, and why. A pure
function of them, so a run that was killed ends where the run never killed does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from polyvit.config import RunConfig

DIGITS = 6
"""Significant digits of a metric that count, since the last bits differ with the number of workers."""
ALL_STEPS, EARLY = "all_steps", "early_stopping"


def early_end(config: RunConfig, evaluations: Sequence[Mapping[str, Any]], step: int) -> dict[str, Any] | None:
    """Why a run ends at `step`; None: it goes on.

    evaluations: so far, {"step": n, "tasks": {task: {"value": x, ...}}}. An evaluation improves where its metric
    is above the best before by more than `min_delta`; one without a value does not. Returns reason, step, metric,
    best, best_step, and evaluations since.
    """
    settings = config.train.early_stopping
    if settings.patience is None or not evaluations or evaluations[-1]["step"] != step:
        return None
    best, best_step, since = float("-inf"), 0, 0
    for evaluation in evaluations:
        value = _metric(evaluation["tasks"], settings.metric)
        if value is not None and value > best + settings.min_delta:
            best, best_step, since = value, evaluation["step"], 0
        else:
            since += 1
    if since < settings.patience:
        return None
    known = {"best": best, "best_step": best_step} if best_step else {"best": None, "best_step": None}
    return {"reason": EARLY, "step": step, "metric": settings.metric, **known, "evaluations_since": since}


def how_it_ended(ended: Mapping[str, Any] | None, step: int) -> dict[str, Any]:
    """Of a result: why a run ended, and at which step. ended: what `early_end` gave."""
    return dict(ended) if ended else {"reason": ALL_STEPS, "step": step}


def _metric(tasks: Mapping[str, Mapping[str, Any]], metric: str) -> float | None:
    """`mean` or a task's, rounded; None where nothing was measured."""
    values = [result["value"] for name, result in tasks.items() if metric in ("mean", name)]
    known = [value for value in values if value is not None and value == value]
    return float(f"{sum(known) / len(known):.{DIGITS}g}") if known else None
