"""What runs of a comparison differ in, and the words for it.

In: `RunSummary`s. Out: the keys that differ, a label for each run.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polyvit.config import RunConfig, flatten
from polyvit.reports.compare.run_summary import RunSummary

SCHEDULE, L_ADAPT, SEED = "schedule.kind", "model.l_adapt", "seed"
IDLE = ""
"""The value of a key in a run that it does nothing in, such as the temperature of a schedule that has none."""
_NOT_COMPARED = ("name", "source", "storage", "tracking", "sweep", "feed")
"""Sections of a config that say where a run is stored and not what it does."""
_NOT_COMPARED_TASK_KEYS = ("train_examples", "licence", "source", "classes", "root")
_FIRST_KEYS = (
    SCHEDULE, "schedule.balancing", "schedule.adaptive.rule", "schedule.temperature", L_ADAPT, SEED,
)  # fmt: skip


def idle_keys(config: RunConfig) -> set[str]:
    """The keys of the schedule, and of when it is evaluated, that do nothing in this run."""
    schedule, kind = config.schedule, config.schedule.kind
    accumulating, rule = kind == "accumulating", schedule.adaptive.rule if kind == "adaptive" else None
    evaluations_act = (
        rule or (accumulating and schedule.loss_weights == "dwa") or config.train.early_stopping.patience
    )
    acts = {
        "schedule.temperature": kind in ("weighted", "adaptive"),
        "schedule.replacement": kind == "weighted",
        "schedule.adaptive.rule": bool(rule),
        "schedule.adaptive.exponent": rule == "loss_ratio",
        "schedule.adaptive.learning_rate": rule == "exp3",
        "schedule.adaptive.min_factor": bool(rule),
        "schedule.adaptive.max_factor": bool(rule),
        "schedule.accumulating_lr_coef": accumulating,
        "schedule.balancing": accumulating,
        "schedule.loss_weights": accumulating,
        "schedule.uncertainty_lr": accumulating and schedule.loss_weights == "uncertainty",
        "train.eval_every": bool(evaluations_act),
    }
    return {key for key, does in acts.items() if not does}


def differing_keys(runs: Sequence[RunSummary]) -> dict[str, dict[str, Any]]:
    """The dotted keys whose values are not the same in all runs where they do something, each with its value by
    run name.

    Tasks that some runs lack appear as one key `tasks`. Those of the schedule, L_adapt and the seed come first.
    """
    shared = set.intersection(*(set(run.config.tasks) for run in runs))
    flat = {run.name: _flat_config(run.config, shared) for run in runs}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    differing = {}
    for key in sorted(keys, key=lambda key: _FIRST_KEYS.index(key) if key in _FIRST_KEYS else len(_FIRST_KEYS)):
        values = {name: values.get(key) for name, values in flat.items()}
        if len(distinct(value for value in values.values() if value != IDLE)) > 1:
            differing[key] = values
    return differing


def _flat_config(config: RunConfig, shared: set[str]) -> dict[str, Any]:
    document = {k: v for k, v in config.model_dump(mode="json").items() if k not in _NOT_COMPARED}
    tasks = document.pop("tasks")
    document["tasks"] = {
        name: {key: value for key, value in task.items() if key not in _NOT_COMPARED_TASK_KEYS}
        for name, task in tasks.items()
        if name in shared
    }
    flat = {**flatten(document), "tasks": ", ".join(tasks) if set(tasks) != shared else "those of all runs"}
    return flat | dict.fromkeys(idle_keys(config), IDLE)


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in order; they need not be hashable."""
    once: list[Any] = []
    for value in values:
        if value not in once:
            once.append(value)
    return once


def run_labels(runs: Sequence[RunSummary], keys: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A short label for each run: the fewest leading keys that tell them apart, the seed last; else the runs' own
    names."""
    parts: dict[str, dict[str, str]] = {run.name: {} for run in runs}
    for key, values in keys.items():
        before = len({tuple(words.values()) for words in parts.values()})
        longer = {name: {**words, key: key_words(key, values[name])} for name, words in parts.items()}
        if len({tuple(words.values()) for words in longer.values()}) > before:
            parts = longer
    labels = {}
    for name, words in parts.items():
        in_order = sorted(words, key=lambda key: key == SEED)
        labels[name] = ", ".join(words[key] for key in in_order if words[key])
    taken = list(labels.values())
    return {name: text if text and taken.count(text) == 1 else name for name, text in labels.items()}


def key_words(key: str, value: Any) -> str:
    """A key's value as a label: `weighted`, `L_adapt 2`, `lr 0.1`; none where the key does nothing."""
    if value == IDLE:
        return ""
    if key == SCHEDULE:
        return str(value).replace("_", " ")
    if key == "tasks":
        return f"tasks {value}"
    short = "L_adapt" if key == L_ADAPT else key.rpartition(".")[2]
    return f"{short} {value:.3g}" if isinstance(value, float) else f"{short} {value}"
