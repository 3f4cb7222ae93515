"""A sweep's trials by size and objective: which way of spending parameters pays.

In: a `Comparison` of trials. Out: a PNG; the function returns what it says, in a sentence.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

from polyvit.reports.compare.comparison import Comparison, pareto
from polyvit.reports.compare.run_styles import colours_of
from polyvit.reports.compare.settings import IDLE, SEED, key_words
from polyvit.reports.compare.tradeoffs import few, place_labels, single_task_models
from polyvit.reports.style import INK, PALETTE, amount, picture

MARKERS = ("o", "s", "^", "D", "v", "P")
OBJECTIVES = {
    "mean": "objective: mean over tasks of the metric, %",
    "worst_regression": "objective: worst difference to a single-task model, points",
}


@dataclass(frozen=True)
class SizePoint:
    """One trial. parameters: of the whole model, heads included. objective: in percent, or in points."""

    name: str
    label: str
    parameters: int
    objective: float


def size_points(comparison: Comparison) -> list[SizePoint]:
    """A point for each trial that was measured, best first."""
    points = []
    for run in comparison.runs:
        worst = comparison.worst(run) if comparison.objective == "worst_regression" else None
        value = worst[1] if worst else comparison.mean(run)
        if value is not None:
            points.append(SizePoint(run.name, comparison.labels[run.name], run.total_parameters, 100 * value))
    return points


def draw_sizes(comparison: Comparison, path: Path) -> str | None:
    """Parameters on a log axis against the objective, a point a trial. None, no file: none was measured."""
    points = size_points(comparison)
    if not points:
        return None
    front = _front(points)
    names = [points[i].label for i in front]
    says = f"Size against quality: no trial beats {' or '.join(names)}"
    if len(front) > 2:
        says = f"Size against quality: {len(front)} of {len(points)} trials are beaten by none"
    about = "Right is larger, up is better. Line: trials that no other beats in both."
    if len({point.parameters for point in points}) == 1:
        about = "All trials have one size: up is better."
    if left := len(comparison.runs) - len(points):
        about += f" {left} without an evaluation {'is' if left == 1 else 'are'} not drawn."
    with picture(path, 9, 5.8, says, about) as figure:
        plot_sizes(figure, comparison, points, front)
    return says


def plot_sizes(figure: Any, comparison: Comparison, points: Sequence[SizePoint], front: Sequence[int]) -> None:
    """Points, the front's line, labels, axes with units and the legend."""
    axes, looks = figure.subplots(), _looks(comparison)
    xs, ys = [float(points[i].parameters) for i in front], [points[i].objective for i in front]
    axes.step(xs, ys, where="post", color=INK, linewidth=1.2, zorder=1)
    for i, point in enumerate(points):
        colour, marker = looks[point.name]
        axes.plot(point.parameters, point.objective, marker, markersize=9, color=colour,
                  markeredgecolor=INK if i in front else "white", zorder=4 if i in front else 3)  # fmt: skip
    marks = [(float(point.parameters), point.objective, point.label) for point in points]
    alone = single_task_models(comparison) if comparison.objective == "mean" else None
    if alone:
        axes.plot(*alone[:2], "*", markersize=13, color="white", markeredgecolor=INK, markeredgewidth=1.4)
        marks.append(alone)
    _frame(axes, [x for x, _, _ in marks], [y for _, y, _ in marks])
    axes.set_xlabel("parameters of the whole model, heads included (log scale)")
    axes.set_ylabel(OBJECTIVES[comparison.objective])
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    _legend(figure, comparison, looks)
    figure.draw_without_rendering()
    line = [(xs[i + k], ys[i]) for i in range(len(front) - 1) for k in (0, 1)]
    place_labels(axes, marks, set(front) | ({len(marks) - 1} if alone else set()), line)


def _front(points: Sequence[SizePoint]) -> list[int]:
    return pareto([(float(point.parameters), point.objective) for point in points])


def _look_keys(comparison: Comparison) -> tuple[str | None, str | None]:
    """The keys that colour and marker stand for: the first two that differ in few enough values."""
    kinds = {key: len(set(map(str, values.values()))) for key, values in comparison.keys.items() if key != SEED}
    colour = next((key for key, count in kinds.items() if count <= len(PALETTE)), None)
    marker = next((key for key, count in kinds.items() if count <= len(MARKERS) and key != colour), None)
    return colour, marker


def _looks(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Colour and marker of each trial by name."""

    def chosen(key: str | None, of: Callable[[str, list[str]], Mapping[str, str]]) -> dict[str, str]:
        values = comparison.keys[key] if key else {run.name: IDLE for run in comparison.runs}
        looks = of(key or "", [str(value) for value in _ordered(values.values())])
        return {name: looks[str(value)] for name, value in values.items()}

    colour, marker = _look_keys(comparison)
    colours = chosen(colour, colours_of)
    markers = chosen(marker, lambda _, kinds: dict(zip(kinds, MARKERS, strict=False)))
    return {run.name: (colours[run.name], markers[run.name]) for run in comparison.runs}


def _ordered(values: Any) -> list[Any]:
    """Distinct values, numbers in order, `IDLE` first."""
    once = list({str(value): value for value in values}.values())
    numbers = all(isinstance(value, int | float) for value in once if value != IDLE)
    return sorted(once, key=lambda value: (value != IDLE, value if numbers and value != IDLE else str(value)))


def _legend(figure: Any, comparison: Comparison, looks: dict[str, tuple[str, str]]) -> None:
    """What colours and markers stand for."""
    from matplotlib.lines import Line2D

    handles = []
    for i, key in enumerate(_look_keys(comparison)):
        values = comparison.keys.get(key or "", {})
        shown = {str(value): name for name, value in values.items()}
        for value in _ordered(values.values()):
            colour, marker = looks[shown[str(value)]]
            colour, marker = (colour, "o") if i == 0 else (INK, marker)
            words = key_words(str(key), value) or f"no {str(key).rpartition('.')[2]}"
            handles.append(Line2D([], [], color=colour, marker=marker, linestyle="", markersize=8, label=words))
    if not handles:
        handles = [Line2D([], [], color=PALETTE[0], marker="o", linestyle="", markersize=8, label="a trial")]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=8.5)


def _frame(axes: Any, xs: Sequence[float], ys: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    room = 2.0 if max(xs) == min(xs) else (max(xs) / min(xs)) ** 0.35
    axes.set_xlim(min(xs) / room, max(xs) * room)
    shown = few(sorted({log(x) for x in xs}))
    axes.set_xticks([x for x in sorted(set(xs)) if log(x) in shown])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
    pad = 0.12 * (max(ys) - min(ys)) or 1.0
    axes.set_ylim(min(ys) - pad, max(ys) + pad)
