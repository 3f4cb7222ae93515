"""Numbers from finished runs: which is best, by how much, what was forgotten, what single-task models reach.

In: `RunSummary`s (`run_summary.py`). Out: a `Comparison`, and from it rows, cells, fronts. Nothing is drawn.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from polyvit.config import modalities_of
from polyvit.errors import UserError
from polyvit.reports.compare.run_summary import RunSummary, read_run, read_runs
from polyvit.reports.compare.settings import IDLE, SEED, differing_keys, distinct, run_labels
from polyvit.reports.compare.spread import spread_notes
from polyvit.schedule import Schedule

__all__ = [
    "Baseline",
    "Comparison",
    "RunSummary",
    "baselines_of",
    "compare",
    "leaderboard",
    "read_run",
    "read_runs",
]


@dataclass(frozen=True)
class Baseline:
    """One task trained alone. parameters: of its model; None where only the value is known."""

    value: float
    parameters: int | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Comparison:
    """Runs side by side, best first.

    keys: the config's keys that differ, dotted, each with its value in every run by name; `IDLE` where it does
    nothing. labels: a short name for
    each run by name, from as few of these keys as tell them apart. tasks: of all runs, by modality. shared: those
    that means are over. objective: what the order is by.
    """

    runs: tuple[RunSummary, ...]
    baselines: dict[str, Baseline]
    keys: dict[str, dict[str, Any]]
    labels: dict[str, str]
    tasks: tuple[str, ...]
    shared: tuple[str, ...]
    objective: str
    notes: tuple[str, ...]

    @property
    def best(self) -> RunSummary:
        """The winner."""
        return self.runs[0]

    def metric(self, task: str) -> str:
        """`top1` or `map`."""
        return next(run.config.tasks[task].metric for run in self.runs if task in run.config.tasks)

    def mean(self, run: RunSummary) -> float | None:
        """Mean over `shared`; None where one of them was not measured."""
        return mean_of(run.values, self.shared)

    def worst(self, run: RunSummary) -> tuple[str, float] | None:
        """The task furthest below its baseline (or least above it), and its difference to the baseline."""
        gaps = differences(run.values, self.baselines)
        return min(gaps.items(), key=lambda item: (item[1], item[0])) if gaps else None


# ----------------------------------------------------------------------------------------------- comparing


def compare(runs: Sequence[RunSummary], baselines: Sequence[RunSummary] = ()) -> Comparison:
    """Runs side by side. Where some runs have several tasks, runs of one task are baselines, as `baselines` are.

    Where no baseline run is given, the values in `sweep.baselines` of the runs' configs are taken. Raises
    UserError where nothing can be compared.
    """
    if not runs:
        raise UserError("no run to compare; give the folders of one or more runs")
    baselines_of(baselines)  # a mistake among them shows first
    several = _of_common_tasks([run for run in runs if len(run.config.tasks) > 1] or list(runs))
    every = {task for run in several for task in run.config.tasks}
    if strangers := [run.name for run in runs if run not in several and not set(run.config.tasks) <= every]:
        raise UserError(
            f"no other run has the task of {', '.join(strangers)}: nothing to compare it with; leave it out"
        )
    measured = {task for run in several for task, value in run.values.items() if value is not None}
    if not measured:
        raise UserError(
            "none of these runs has been evaluated yet; let one come to its end, or set train.eval_every"
        )
    shared = [task for task in several[0].config.tasks if all(task in run.config.tasks for run in several)]
    if not set(shared) & measured:
        raise UserError("these runs have no measured task in common; compare runs of the same tasks")
    baseline_of = baselines_of(
        [*(run for run in runs if run not in several and len(run.config.tasks) == 1), *baselines]
    )
    baseline_of = baseline_of or {t: Baseline(v) for run in several for t, v in run.config.sweep.baselines.items()}
    wish = {run.config.sweep.objective for run in several}
    keys = differing_keys(several)
    comparison = Comparison(
        runs=tuple(several),
        baselines=baseline_of,
        keys=keys,
        labels=run_labels(several, keys),
        tasks=_task_order(several),
        shared=tuple(task for task in shared if task in measured),
        objective="worst_regression" if baseline_of and wish == {"worst_regression"} else "mean",
        notes=(*_notes(several, measured), *spread_notes(several, keys)),
    )
    return replace(comparison, runs=tuple(sorted(several, key=lambda run: _rank(comparison, run))))


def _of_common_tasks(runs: list[RunSummary]) -> list[RunSummary]:
    """The runs; where they have no task in common, without those whose tasks are of one modality and a part of
    another run's: single-modality models, which `paper_table` sets beside the others."""
    if set.intersection(*(set(run.config.tasks) for run in runs)):
        return runs
    widest = max((set(run.config.tasks) for run in runs), key=len)
    return [run for run in runs if len(run.config.modalities) > 1 or not set(run.config.tasks) < widest]


def _rank(comparison: Comparison, run: RunSummary) -> tuple[bool, float, str]:
    """Best first, unmeasured last, ties by name."""
    score: float | None = comparison.mean(run)
    if comparison.objective == "worst_regression" and (worst := comparison.worst(run)):
        score = worst[1]
    return (score is None, -(score or 0.0), run.name)


def baselines_of(alone: Sequence[RunSummary]) -> dict[str, Baseline]:
    """By task, what runs of one task reached. Where a task has several runs, the best counts.

    Raises UserError for a run of several tasks.
    """
    if wrong := [run.name for run in alone if len(run.config.tasks) != 1]:
        raise UserError(
            f"--baseline {', '.join(wrong)}: a baseline is a run of one task; make one with "
            "`polyvit cotrain CONFIG --only TASK`"
        )
    best: dict[str, Baseline] = {}
    for run in alone:
        ((task, value),) = run.values.items()
        if value is not None and (task not in best or value > best[task].value):
            best[task] = Baseline(value, run.total_parameters, run.folder)
    return best


def _task_order(runs: Sequence[RunSummary]) -> tuple[str, ...]:
    tasks = {name: task for run in runs for name, task in run.config.tasks.items()}
    order = modalities_of(tasks)
    return tuple(sorted(tasks, key=lambda name: order.index(tasks[name].modality)))


def _notes(runs: Sequence[RunSummary], measured: set[str]) -> tuple[str, ...]:
    tasks = [set(run.config.tasks) for run in runs]
    notes = []
    if any(own != tasks[0] for own in tasks):
        common = sorted(set.intersection(*tasks))
        notes.append(f"The runs have different tasks; means are over those of all runs: {', '.join(common)}.")
    if unmeasured := sorted(set.union(*tasks) - measured):
        notes.append(f"Not measured in any run, and in no mean: {', '.join(unmeasured)}.")
    if stopped := [run for run in runs if not run.finished]:
        notes.append(
            f"{len(stopped)} of {len(runs)} runs did not come to their end; their values are those of their last "
            "evaluation."
        )
    if all(own == tasks[0] for own in tasks):
        notes += _length_notes([run for run in runs if run.finished])
    notes += [*_data_notes(runs), *_copy_notes(runs)]
    return tuple(notes)


def _length_notes(runs: Sequence[RunSummary]) -> list[str]:
    lengths = {run.steps for run in runs}
    taken = set(map(minibatches, runs))
    if len(lengths) > 1 and len(taken) == 1 and any(map(_accumulates, runs)):
        return [
            f"All runs took {taken.pop():,} minibatches. A step of `accumulating` holds one of every task, so it"
            f" made {min(lengths):,} updates where others made {max(lengths):,}."
        ]
    if len(taken) > 1:
        unit = "minibatches" if any(map(_accumulates, runs)) else "steps"
        return [
            f"The runs have different lengths, {min(taken):,} to {max(taken):,} {unit}; they differ by it too."
        ]
    return []


def _data_notes(runs: Sequence[RunSummary]) -> list[str]:
    """Where values of one task are not of the same examples."""
    notes = []
    shared = set.intersection(*(set(run.config.tasks) for run in runs))
    for what, of in (
        ("read from different places (`data.root`, `tasks.T.root`)", lambda run, t: _root(run, t)),
        ("evaluated on different splits (`eval_split`)", lambda run, t: run.config.tasks[t].eval_split),
    ):
        if apart := [t for t in runs[0].config.tasks if t in shared and len({of(run, t) for run in runs}) > 1]:
            which = "All tasks" if len(apart) == len(shared) > 1 else ", ".join(apart)
            notes.append(f"{which}: {what}, so their values are not of the same examples.")
    return notes


def _root(run: RunSummary, task: str) -> str:
    return run.config.tasks[task].root or f"{run.config.data.root}/{task}"


def _copy_notes(runs: Sequence[RunSummary]) -> list[str]:
    """Runs that are one run in several folders: of the same settings, seed and values to the last digit."""
    alike: dict[str, list[str]] = {}
    for run in runs:
        if any(value is not None for value in run.values.values()):
            said = run.config.model_dump(mode="json", exclude={"name", "storage"})
            alike.setdefault(repr((said, run.values, run.steps)), []).append(run.name)
    return [
        f"{', '.join(names)} have the same settings, seed and values: copies of one run? They count as"
        f" {len(names)} runs, and make spreads too small." for names in alike.values() if len(names) > 1
    ]  # fmt: skip


def minibatches(run: RunSummary) -> int:
    """That a run took: one a step, or for `accumulating` one of every task."""
    return run.steps * minibatches_a_step(run.schedule)


def minibatches_a_step(schedule: Schedule) -> int:
    """1, or for `accumulating` one of every task."""
    return len(schedule.tasks) if schedule.kind == "accumulating" else 1


def _accumulates(run: RunSummary) -> bool:
    return run.schedule.kind == "accumulating"


def mean_of(values: Mapping[str, float | None], tasks: Sequence[str]) -> float | None:
    """Mean over `tasks`; None where one of them has no value."""
    known = [values[task] for task in tasks]
    return None if None in known or not known else sum(v for v in known if v is not None) / len(known)


def differences(values: Mapping[str, float | None], baselines: Mapping[str, Baseline]) -> dict[str, float]:
    """Per task, the value minus its baseline: negative where co-training lost."""
    return {
        task: value - baselines[task].value
        for task, value in values.items()
        if value is not None and task in baselines
    }


def forgetting(run: RunSummary) -> dict[str, float]:
    """Per task, the best evaluation so far minus the last (0: nothing forgotten); empty with fewer than two."""
    if len(run.evaluations) < 2:
        return {}
    curves = {task: [v[task] for _, v in run.evaluations if task in v] for task in run.config.tasks}
    return {task: max(curve) - curve[-1] for task, curve in curves.items() if curve}


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions in `points`, (cost, gain) each, of those that no other point beats, by cost.

    A point beats another if it costs no more and gains no less, and is better in one of the two. Of equal points
    the first is kept.
    """
    best, front = -math.inf, []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if points[i][1] > best:
            best = points[i][1]
            front.append(i)
    return front


def parameters_saved(run: RunSummary, baselines: Mapping[str, Baseline]) -> tuple[int, float] | None:
    """Parameters of all single-task models of the run's tasks together, and that number over the run's own.

    None unless every task has a baseline of known size.
    """
    sizes = [baselines[task].parameters if task in baselines else None for task in run.config.tasks]
    if any(size is None for size in sizes):
        return None
    total = sum(size for size in sizes if size is not None)
    return total, total / run.total_parameters


@dataclass(frozen=True)
class Cells:
    """One row of a heat map: the runs where a key has this value. n: runs behind each task's mean. sds, sd: the
    standard deviation over seeds of a task's value, and of the mean; none where no settings were run twice.
    """

    value: Any
    means: dict[str, float]
    n: dict[str, int]
    mean: float | None
    runs: int
    stopped: int
    sds: dict[str, float] = field(default_factory=dict)
    sd: float | None = None


def cells(comparison: Comparison, key: str) -> list[Cells]:
    """For each value of a key, each task's mean over the runs that have it; finished runs only, if there are any.

    Words come best first, numbers in order.
    """
    rows = []
    for value in distinct(value for value in comparison.keys[key].values() if value != IDLE):
        having = [run for run in comparison.runs if comparison.keys[key][run.name] == value]
        taken = [run for run in having if run.finished] or having
        columns = {t: [v for run in taken if (v := run.values.get(t)) is not None] for t in comparison.tasks}
        means = {task: sum(column) / len(column) for task, column in columns.items() if column}
        counts = {task: len(column) for task, column in columns.items()}
        mean = mean_of({**dict.fromkeys(comparison.shared), **means}, comparison.shared)
        stopped = 0 if taken[0].finished else len(taken)
        sds = {task: sd for task in means if (sd := _seed_sd(comparison, taken, task)) is not None}
        rows.append(Cells(value, means, counts, mean, len(taken), stopped, sds, _seed_sd(comparison, taken)))
    if all(isinstance(row.value, int | float) and not isinstance(row.value, bool) for row in rows):
        return sorted(rows, key=lambda row: row.value)
    return sorted(rows, key=lambda row: (row.mean is None, -(row.mean or 0.0), str(row.value)))


def _seed_sd(comparison: Comparison, runs: Sequence[RunSummary], task: str | None = None) -> float | None:
    """Standard deviation over seeds of a task's value (None: of the mean), pooled over runs that differ in more.

    None where no two runs differ in their seed alone.
    """
    groups: dict[tuple[str, ...], list[float]] = {}
    for run in runs:
        value = comparison.mean(run) if task is None else run.values.get(task)
        if value is not None:
            settings = tuple(str(values[run.name]) for key, values in comparison.keys.items() if key != SEED)
            groups.setdefault(settings, []).append(value)
    freedom = sum(len(group) - 1 for group in groups.values())
    if not freedom or SEED not in comparison.keys:
        return None
    squares = sum((value - sum(group) / len(group)) ** 2 for group in groups.values() for value in group)
    return math.sqrt(squares / freedom)


# ----------------------------------------------------------------------------------------------- leaderboard


def leaderboard(comparison: Comparison) -> list[dict[str, Any]]:
    """A row a run, best first: rank, run, status, steps, keys that differ, mean, `eval/TASK/METRIC` (as MLflow
    names it), parameters, folder; where there are baselines also the worst difference to them, and its task.
    """
    rows = []
    for rank, run in enumerate(comparison.runs, start=1):
        row: dict[str, Any] = {"rank": rank, "run": run.name, "status": run.status, "steps": run.steps}
        row |= {key: values[run.name] for key, values in comparison.keys.items()}
        row["mean"] = comparison.mean(run)
        if comparison.baselines:
            worst, saved = comparison.worst(run), parameters_saved(run, comparison.baselines)
            row |= {"worst_regression": worst and worst[1], "worst_task": worst and worst[0]}
            row["times_fewer_parameters"] = saved and saved[1]
        for task in comparison.tasks:
            row[f"eval/{task}/{comparison.metric(task)}"] = run.values.get(task)
        rows.append({**row, "parameters": run.total_parameters, "folder": str(run.folder)})
    return rows


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Rows of the leaderboard; what is not known stays empty."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
