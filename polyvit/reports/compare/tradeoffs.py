"""What co-training costs and saves: size against quality, and the best run against single-task models.

In: a `Comparison`. Out: PNG files; each function returns what its picture says, in a sentence.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyvit.reports.compare.comparison import Comparison, differences, parameters_saved, pareto
from polyvit.reports.compare.run_styles import METRIC_WORDS, run_styles, settings_words
from polyvit.reports.style import INK, OTHER, PALETTE, amount, percent, picture

MOST_LABELS = 14
_OFFSETS = [(9, 0), (9, 5), (9, -5), (-9, 0), (9, 9), (9, -9), (-9, 5), (-9, -5)]
"""Of a label from its point on the chart, in 1/72 inch, best first."""


def draw_pareto(comparison: Comparison, path: Path) -> str | None:
    """Parameters against the mean metric, the front of runs that no other beats, and the single-task models.

    None, and no file, where all that could be drawn has one size.
    """
    alone = single_task_models(comparison)
    if len({run.total_parameters for run in comparison.runs}) == 1 and not alone:
        return None
    runs = [run for run in comparison.runs if comparison.mean(run) is not None]
    points = [(float(run.total_parameters), comparison.mean(run) or 0.0) for run in runs]
    front = pareto(points)
    names = [comparison.labels[runs[i].name] for i in front]
    says = f"Size against quality: no run beats {' or '.join(names)}"
    if len(front) > 2:
        says = f"Size against quality: {len(front)} of {len(runs)} runs are beaten by none"
    about = "Right is larger, up is better. Line: the front of runs that no other run beats in both."
    seeds = len({settings_words(comparison, run.name) for run in runs}) < len(runs)
    about += " A dot a seed." if seeds else ""
    marks = [(x, 100 * y, comparison.labels[run.name]) for (x, y), run in zip(points, runs, strict=True)]
    with picture(path, 9, 5.4, says, about) as figure:
        axes, styles = figure.subplots(), run_styles(comparison)
        xs = [points[i][0] for i in front]
        ys = [100 * points[i][1] for i in front]
        axes.step(xs, ys, where="post", color=INK, linewidth=1.2, zorder=1)
        for i, (x, y, _) in enumerate(marks):
            edge = INK if i in front else "white"
            axes.plot(x, y, "o", markersize=9, color=styles[runs[i].name][0], markeredgecolor=edge,
                      zorder=4 if i in front else 3)  # fmt: skip
        if alone:
            axes.plot(
                alone[0], alone[1], "D", markersize=9, color="white", markeredgecolor=INK, markeredgewidth=1.6
            )
            marks.append(alone)
        _frame_points(axes, marks)
        axes.set_xlabel("parameters, heads included")
        axes.set_ylabel("mean over tasks of the metric, %")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        if seeds:
            _colours_legend(figure, comparison, {name: colour for name, (colour, _) in styles.items()})
        figure.draw_without_rendering()
        line = [(xs[i + k], ys[i]) for i in range(len(front) - 1) for k in (0, 1)]
        if seeds:  # there are too many to name all; the legend explains the colours
            marks = [(x, y, text if i in front or i == len(runs) else "") for i, (x, y, text) in enumerate(marks)]
        place_labels(axes, marks, set(front) | ({len(marks) - 1} if alone else set()), line)
    return says


def _colours_legend(figure: Any, comparison: Comparison, colours: Mapping[str, str]) -> None:
    """What the runs of a colour have in common."""
    from matplotlib.lines import Line2D

    labels: dict[str, list[list[str]]] = {}
    for run in comparison.runs:
        labels.setdefault(colours[run.name], []).append(comparison.labels[run.name].split(", "))
    handles = []
    for colour, parts in labels.items():
        common = ", ".join(part for part in parts[0] if all(part in other for other in parts))
        words = "others" if colour == OTHER else common
        handles.append(Line2D([], [], color=colour, linestyle="", marker="o", markersize=8, label=words))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), fontsize=8.5)


def single_task_models(comparison: Comparison) -> tuple[float, float, str] | None:
    """The single-task models as one point: their parameters together, the mean of their metrics."""
    saved = parameters_saved(comparison.best, comparison.baselines)
    if saved is None or any(task not in comparison.baselines for task in comparison.shared):
        return None
    mean = sum(comparison.baselines[task].value for task in comparison.shared) / len(comparison.shared)
    return float(saved[0]), 100 * mean, f"{len(comparison.best.config.tasks)} single-task models"


def _frame_points(axes: Any, marks: Sequence[tuple[float, float, str]]) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    xs, ys = [x for x, _, _ in marks], [y for _, y, _ in marks]
    if max(xs) > 2 * min(xs):
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(min(xs) / 1.9, max(xs) * 1.9)
    else:
        pad = 0.35 * (max(xs) - min(xs)) or 0.3 * max(xs)
        axes.set_xlim(min(xs) - pad, max(xs) + pad)
    axes.set_xticks(sorted(set(xs)) if len(set(xs)) <= 4 else few(sorted(set(xs))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
    pad = 0.12 * (max(ys) - min(ys)) or 1.0
    axes.set_ylim(min(ys) - pad, max(ys) + pad)


def few(values: Sequence[float]) -> list[float]:
    """Some of ascending values, at least an eighth of the range apart, first and last among them."""
    if len(values) < 2:
        return list(values)
    kept = [values[0]]
    for value in values[1:-1]:
        if min(value - kept[-1], values[-1] - value) > (values[-1] - values[0]) / 8:
            kept.append(value)
    return [*kept, values[-1]]


def place_labels(
    axes: Any, marks: Sequence[tuple[float, float, str]], first: set[int], line: Sequence[tuple[float, float]]
) -> None:
    """A label beside each point where it hides no point, label or level part of `line`; `first` choose first.

    A label that finds no place is left out: the tables name every run.
    """
    from matplotlib.transforms import Bbox

    renderer = axes.figure.canvas.get_renderer()
    dots = axes.transData.transform([(x, y) for x, y, _ in marks])
    unit = axes.figure.dpi / 72
    taken = [Bbox.from_bounds(x - 6 * unit, y - 6 * unit, 12 * unit, 12 * unit) for x, y in dots]
    ends = axes.transData.transform(line).reshape(-1, 2, 2) if line else []
    taken += [Bbox.from_extents(start[0], start[1] - 2 * unit, end[0], end[1] + 2 * unit) for start, end in ends]
    inside = axes.get_window_extent(renderer)
    named = [i for i in sorted(range(len(marks)), key=lambda i: (i not in first, i)) if marks[i][2]]
    for i in named[:MOST_LABELS]:
        for dx, dy in _OFFSETS:
            label = axes.annotate(
                marks[i][2], marks[i][:2], (dx, dy), textcoords="offset points", fontsize=8.5, va="center",
                ha="left" if dx > 0 else "right", fontweight="bold" if i in first else "normal",
            )  # fmt: skip
            box = label.get_window_extent(renderer)
            fits = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            if fits and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            label.remove()


def draw_alone(comparison: Comparison, path: Path) -> str:
    """The best run against one model for each task: two dots a task, with the difference."""
    best = comparison.best
    gaps = differences(best.values, comparison.baselines)
    order = sorted(gaps, key=lambda task: (gaps[task], task))
    saved = parameters_saved(best, comparison.baselines)
    gained = sum(gap >= 0 for gap in gaps.values())
    says = f"One model for all: level with or above single-task models on {gained} of {len(gaps)} tasks"
    about = f"Best run: {comparison.labels[best.name]}."
    if saved:
        about += (
            f" {amount(best.total_parameters)} parameters in place of {amount(saved[0])} "
            f"in {len(best.config.tasks)} models: {saved[1]:.1f}x fewer."
        )
    with picture(path, 8.5, 1.7 + 0.36 * len(order), says, about) as figure:
        axes = figure.subplots()
        for y, task in enumerate(order):
            alone, together = 100 * comparison.baselines[task].value, 100 * (best.values[task] or 0.0)
            colour = PALETTE[0] if gaps[task] >= 0 else PALETTE[1]
            axes.plot([alone, together], [y, y], color=colour, linewidth=2.5, zorder=1)
            axes.plot(alone, y, "o", markersize=8, color="white", markeredgecolor=INK, markeredgewidth=1.3)
            axes.plot(together, y, "o", markersize=8, color=colour)
            axes.annotate(
                percent(gaps[task], sign=True), (max(alone, together), y), (9, 0), textcoords="offset points",
                va="center", color=colour, fontweight="bold",
            )  # fmt: skip
        axes.set_yticks(range(len(order)), [f"{t} ({METRIC_WORDS[comparison.metric(t)]})" for t in order])
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.set_xlabel("metric, %; the number is the difference in points")
        axes.margins(x=0.1)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.plot([], [], "o", color="white", markeredgecolor=INK, markersize=8, label="one model for the task")
        axes.plot([], [], "o", color=PALETTE[0], markersize=8, label="co-trained, gained")
        axes.plot([], [], "o", color=PALETTE[1], markersize=8, label="co-trained, lost")
        figure.legend(loc="outside lower right", ncols=3, fontsize=8.5)
    return says
