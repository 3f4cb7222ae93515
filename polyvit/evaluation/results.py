"""A run's results as rows: what each task was trained on, and what it scores.

In: a config, a schedule, the tasks' indexes, the last evaluation. Out: a dict a task. Legend: K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyvit.config import RunConfig, TaskConfig
from polyvit.data.index import Example, Examples, Scan
from polyvit.evaluation.metrics import chance_level
from polyvit.schedule import Schedule


def result_rows(
    config: RunConfig,
    schedule: Schedule,
    scans: Mapping[str, Scan],
    evaluation: Mapping[str, Any],
    until: int,
) -> dict[str, dict[str, Any]]:
    """Per task, what was trained and what came of it: the table at a run's end, as data.

    schedule: of the whole run. scans: each task's index. evaluation: the last evaluation's result by task; a task
    may be absent. until: steps that were trained. Of each row, chance: what a guess scores; majority: what always
    naming the most frequent train class scores (top1 only).
    """
    counts = schedule.counts(until)
    rows = {}
    for name, task in config.tasks.items():
        train, held = scans[name].split("train"), scans[name].split(task.eval_split)
        trained, present = label_shares(train, task.num_classes), label_shares(held, task.num_classes)
        result = evaluation.get(name, {})
        rows[name] = {
            "modality": task.modality,
            "steps": counts[name],
            "examples_seen": counts[name] * task.batch,
            "train_examples": len(train),
            "epochs": counts[name] * task.batch / max(1, len(train)),
            "eval_split": task.eval_split,
            "eval_examples": result.get("examples", 0),
            "metric": task.metric,
            "value": result.get("value"),
            "chance": chance_of(task, result, present, int((trained > 0).sum())),
            "majority": float(present[trained.argmax()]) if task.metric == "top1" else None,
            "loss": result.get("loss"),
            "top5": result.get("top5"),
        }
    return rows


def chance_of(task: TaskConfig, result: Mapping[str, Any], present: np.ndarray, classes: int) -> float | None:
    """What a guess scores; of retrieval the evaluation says it, for it depends on the number of negatives."""
    if task.loss == "contrastive":
        return result.get("chance") if task.metric == "retrieval" else 0.5
    return chance_level(task.metric, present, classes)


def label_shares(examples: Sequence[Example], num_classes: int) -> np.ndarray:
    """float64 [K], the share of the examples that carry each label, 0 to 1; all 0 where there are no examples."""
    return Examples.of(examples).label_counts(num_classes) / max(1, len(examples))
