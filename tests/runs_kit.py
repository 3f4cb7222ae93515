"""Run folders as `cotrain` leaves them, written by hand: four small tasks, values as the test wants them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from small import document

from polyvit.config import RunConfig, apply_override, validate_config
from polyvit.schedule import schedule_of

TASKS = ("picture", "clip", "sound", "word")
VALUES = {"picture": 0.5, "clip": 0.25, "sound": 0.75, "word": 0.5}
"""Mean 0.5."""


def run_config(*overrides: str, only: Sequence[str] = TASKS) -> RunConfig:
    """The config of `small` with fewer tasks."""
    changed = document()
    changed["tasks"] = {name: changed["tasks"][name] for name in only}
    for override in overrides:
        apply_override(changed, override)
    return validate_config(changed)


def write_run(
    folder: Path,
    *overrides: str,
    values: Mapping[str, float | None] = VALUES,
    only: Sequence[str] = TASKS,
    evaluations: Mapping[int, Mapping[str, float]] | None = None,
    finished: bool = True,
    total: int | None = 1000,
) -> Path:
    """A run's folder. `evaluations`: by step; the last is the result of an unfinished run. Losses are 1 / step.

    Without `evaluations`: one, at the last step.
    """
    config = run_config(*overrides, only=only)
    steps = len(schedule_of(config))
    if evaluations is None:
        evaluations = {steps: {task: value for task in only if (value := values[task]) is not None}}
    _write(folder / "config.json", config.model_dump(mode="json"))
    if total is not None:
        _write(folder / "parameters.json", {"shared": total - 1, "head/picture": 1, "total": total})
    end = steps if finished else max(evaluations, default=2)
    points: dict[int, dict[str, float]] = {
        s: {f"train/{t}/loss": 1 / s for t in only} for s in range(2, end + 1, 2)
    }
    for step, values_at in evaluations.items():
        points.setdefault(step, {}).update({f"eval/{task}/value": value for task, value in values_at.items()})
    lines = [json.dumps({"step": step, "values": points[step]}) for step in sorted(points)]
    path = folder / "history" / f"00000001-{end:08d}.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join(lines) + "\n")
    if finished:
        rows = {t: {"value": values[t], "chance": 0.1, "metric": config.tasks[t].metric} for t in only}
        _write(folder / "result.json", {"run": folder.name, "steps": steps, "tasks": rows})
    return folder


def write_singles(folder: Path, values: Mapping[str, float], total: int = 600) -> list[Path]:
    """A run of one task for each of `values`."""
    return [write_run(folder / f"only-{t}", values={t: v}, only=[t], total=total) for t, v in values.items()]


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


CURVE = {
    6: {"picture": 0.6, "clip": 0.1, "sound": 0.2, "word": 0.5},
    12: {"picture": 0.3, "clip": 0.4, "sound": 0.5, "word": 0.5},
    18: {"picture": 0.5, "clip": 0.25, "sound": 0.75, "word": 0.5},
}


def sweep_of_four(folder: Path) -> Path:
    for kind in ("uniform", "task_by_task"):
        for l_adapt in (2, 0):
            value = 0.5 + 0.1 * l_adapt + (0.05 if kind == "uniform" else 0)
            values = {**VALUES, "picture": value}
            write_run(folder / f"{kind}-{l_adapt}", f"schedule.kind={kind}", f"model.l_adapt={l_adapt}",
                      "storage=/elsewhere", values=values, total=900 + l_adapt)  # fmt: skip
    return folder


def curves(run: Path) -> dict[int, dict[str, float]]:
    """Every point of a run but its timings."""
    points: dict[int, dict[str, float]] = {}
    for path in sorted((run / "history").glob("*.jsonl")):
        for point in map(json.loads, path.read_text().splitlines()):
            values = {key: value for key, value in point["values"].items() if not key.startswith("pace/")}
            points.setdefault(point["step"], {}).update(values)
    return points
