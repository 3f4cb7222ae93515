"""What a run's folder holds, as one object: settings, metrics, curves, parameters.

In: a folder as `polyvit cotrain` leaves it (config.json, result.json, parameters.json, history/, step_*/), of a
run that came to its end or not. Nothing is trained or evaluated here.
"""

import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from polyvit.checkpoint import Point, open_store, read_metrics_log, store_of
from polyvit.config import RunConfig, validate_config
from polyvit.errors import UserError
from polyvit.model import parameters_of
from polyvit.schedule import Decision, Schedule, schedule_of

logger = logging.getLogger(__name__)
SWEEP = "sweep.json"
"""What the folder of a sweep holds, beside its `trials`."""


@dataclass(frozen=True)
class RunSummary:
    """What one run's folder says.

    values: each task's metric at the end, or at the last evaluation of a run that was stopped; None where none
    was measured. evaluations: (step, {task: value}), ascending. losses: per task, (step, mean training loss since
    the point before). chance: what a guess scores, where the run knows it. parameters: by role, with `total`.
    decisions: of an adaptive schedule.
    """

    name: str
    folder: Path
    config: RunConfig
    steps: int
    finished: bool
    values: dict[str, float | None]
    chance: dict[str, float]
    parameters: dict[str, int]
    evaluations: tuple[tuple[int, dict[str, float]], ...]
    losses: dict[str, list[tuple[int, float]]]
    decisions: tuple[Decision, ...] = ()

    @cached_property
    def schedule(self) -> Schedule:
        """The run's schedule, built again from its config; an adaptive one as far as it was decided."""
        schedule = schedule_of(self.config)
        schedule.follow(self.decisions)
        return schedule

    @property
    def status(self) -> str:
        """In words, with the step of a run that did not come to its end."""
        if self.finished:
            return "finished"
        where = f"stopped at {self.steps:,} of {len(self.schedule):,}"
        return where if self.evaluations else f"{where}, no evaluation"

    @property
    def total_parameters(self) -> int:
        """Of the whole model, all heads included."""
        return self.parameters["total"]


def read_run(folder: Path) -> RunSummary:
    """The summary of a run's folder. Raises UserError that names the run, what is wrong and what to do."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give run folders as `polyvit cotrain` printed them")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a run: it has no config.json; give a folder that `polyvit cotrain` made")
    if never_started(folder):
        raise UserError(
            f"{folder} is what a failed start left: the run took no step. Delete it, or start it again with "
            f"--name {folder.name}"
        )
    document = _mapping(folder / "config.json")
    try:
        config = validate_config(document)
    except UserError as error:
        raise UserError(
            f"{folder}: config.json does not fit this version: {error.message}", error.problems
        ) from None
    result = _mapping(folder / "result.json") if (folder / "result.json").is_file() else None
    try:
        points = read_metrics_log(folder / "history")
        evaluations = _evaluations(folder, config, points)
        rows = result["tasks"] if result else {}
        last = evaluations[-1][1] if evaluations else {}
        values = {task: _number(rows[task]["value"] if result else last.get(task)) for task in config.tasks}
        chance = {task: row["chance"] for task, row in rows.items() if _number(row.get("chance")) is not None}
        steps = (
            result["steps"] if result else max([0, *(step for step, _ in points), *(s for s, _ in evaluations)])
        )
        decisions = _decisions(folder, config, result)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError) as error:
        raise UserError(
            f"{folder}: result.json, history or checkpoint is damaged ({type(error).__name__}: {error}); leave "
            f"this run out, or write it again with `polyvit cotrain --resume {folder}`"
        ) from None
    return RunSummary(
        folder.name if folder.name else str(folder), folder, config, int(steps), result is not None, values,
        chance, _parameters(folder, config), tuple(evaluations), _losses(config, points),
        decisions,
    )  # fmt: skip


def read_runs(names: Sequence[str | Path], storage: str = "runs") -> list[RunSummary]:
    """Runs by folder, by name in `storage`, by checkpoint; a folder of runs stands for all that it holds, a
    sweep's for its trials.

    Of several names, files and folders that are there and are no run are left out with a warning: `runs/*` has
    `index-cache` and the like. Raises UserError with every run that cannot be read. Names are made unique by their
    parent folders.
    """
    folders: list[Path] = []
    runs: list[RunSummary] = []
    problems: list[str] = []
    others: list[str] = []  # that are there and are no runs
    for name in names:
        try:
            folders += _run_folders(str(name), storage)
        except UserError as error:
            problems.append(error.message)
            others += [str(name)] if Path(name).exists() else []
    idle = [folder for folder in folders if never_started(folder)]  # what failed starts left
    if len(idle) < len(folders):
        others += [str(folder) for folder in idle]
        folders = [folder for folder in folders if folder not in idle]
    if others and folders and len(problems) <= len(others):
        logger.warning("left out, since they are no runs: %s", ", ".join(others))
        problems = []
    for folder in dict.fromkeys(path.absolute() for path in folders):
        try:
            runs.append(read_run(folder))
        except UserError as error:
            problems.append("; ".join([error.message, *error.problems]))
    if problems:
        count = f"{len(problems)} of the runs" if len(problems) > 1 else "one of the runs"
        raise UserError(f"{count} cannot be compared:", problems)
    return unique_names(runs)


def unique_names(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """The same runs; those of one name get their parent folder's before it, and if need be the whole path."""

    def taken(names: Sequence[str]) -> set[str]:
        return {name for name in names if names.count(name) > 1}

    for longer in (lambda r: f"{r.folder.parent.name}/{r.folder.name}", lambda r: str(r.folder)):
        if twice := taken([run.name for run in runs]):
            runs = [replace(run, name=longer(run)) if run.name in twice else run for run in runs]
    return list(runs)


def never_started(folder: Path) -> bool:
    """Whether a folder with a config.json is what a start left that failed before its first step."""
    return not any((folder / name).exists() for name in ("run.json", "result.json", "history")) and not any(
        folder.glob("step_*")
    )


def _run_folders(name: str, storage: str) -> list[Path]:
    for path in (Path(name), Path(storage) / name):
        for folder in (path, path.parent) if path.name.startswith("step_") else (path,):
            if (folder / "config.json").is_file():
                return [folder]
            sweeps = sorted(record.parent for record in folder.glob(f"*/{SWEEP}"))
            places = [p / "trials" if (p / SWEEP).is_file() else p for p in (folder, *sweeps)]
            inside = sorted(child.parent for place in places for child in place.glob("*/config.json"))
            if started := [child for child in inside if not never_started(child)]:
                return started
            if inside:
                raise UserError(f"{name} holds no run that took a step; start one with `polyvit cotrain`")
    if Path(name).is_dir():
        raise UserError(f"{name} is not a run and holds none: no config.json; give a run's folder")
    raise UserError(f"{name}: no such run here or in {storage}; give the folder that `polyvit cotrain` printed")


def _mapping(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path.parent}: {path.name} cannot be read ({error}); leave this run out, or write it again with "
            f"`polyvit cotrain --resume {path.parent}`"
        ) from None
    if not isinstance(document, dict):
        raise UserError(f"{path.parent}: {path.name} holds no mapping; leave this run out")
    return document


def _evaluations(folder: Path, config: RunConfig, points: Sequence[Point]) -> list[tuple[int, dict[str, float]]]:
    """Evaluations in the newest checkpoint and in the curves. Both hold the same; either may reach further."""
    by_step: dict[int, dict[str, float]] = {}
    if state := _newest_state(folder):
        for evaluation in json.loads(state)["evaluations"]:
            results = evaluation["tasks"].items()
            by_step[evaluation["step"]] = {task: result["value"] for task, result in results}
    for step, values in points:
        scored = {task: values[key] for task in config.tasks if (key := f"eval/{task}/value") in values}
        if scored:
            by_step[step] = scored
    return [
        (step, {task: value for task, value in by_step[step].items() if _number(value) is not None})
        for step in sorted(by_step)
    ]


def _decisions(folder: Path, config: RunConfig, result: dict[str, Any] | None) -> tuple[Decision, ...]:
    """Of an adaptive schedule: in result.json, or of a run under way in its newest checkpoint."""
    if config.schedule.kind != "adaptive":
        return ()
    document = result or json.loads(_newest_state(folder) or "{}")
    return tuple(document.get("decisions", []))


def _newest_state(folder: Path) -> str | None:
    """`state.json` of the newest checkpoint: here, or where the run keeps them. A store that cannot be
    reached costs a warning only, because the curves are here.
    """
    for path in sorted(folder.glob("step_*/state.json"), reverse=True):
        if re.fullmatch(r"step_\d{8,}", path.parent.name):  # no copy made by hand
            return path.read_text()
    address = store_of(folder)
    if address == str(folder):
        return None
    try:
        store = open_store(address)
        steps = store.steps()
        return store.text(steps[-1], "state.json") if steps else None
    except (OSError, UserError) as error:
        logger.warning("%s: its checkpoints in %s cannot be read (%s); its curves count", folder, address, error)
        return None


def _losses(config: RunConfig, points: Sequence[Point]) -> dict[str, list[tuple[int, float]]]:
    keys = {task: f"train/{task}/loss" for task in config.tasks}
    return {task: [(step, values[key]) for step, values in points if key in values] for task, key in keys.items()}


def _parameters(folder: Path, config: RunConfig) -> dict[str, int]:
    if (folder / "parameters.json").is_file():
        table = _mapping(folder / "parameters.json")
        if isinstance(table.get("total"), int):
            return table
    table = parameters_of(config)
    return {**table, "total": sum(table.values())}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
