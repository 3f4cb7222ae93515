"""Learning curves of a comparison: small multiples, a panel a task, with the times at which each task was trained.

In: a `Comparison`. Out: PNG files; each function returns what its picture says, in a sentence.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from polyvit.reports.compare.comparison import Comparison, minibatches_a_step
from polyvit.reports.compare.run_styles import METRIC_WORDS, run_styles, settings_words
from polyvit.reports.compare.run_summary import RunSummary
from polyvit.reports.style import FAINT, OTHER, PALETTE, amount, percent, picture
from polyvit.schedule import Schedule, schedule_of

_BINS = 240
"""Of a strip that says when a task was trained."""


def smooth(values: Sequence[float], keep: float = 0.7) -> list[float]:
    """Exponential moving average, corrected for its start: each point weighs `keep` times as much as the next."""
    total, weight, smoothed = 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        smoothed.append(total / weight)
    return smoothed


def training_share(schedule: Schedule, task: str, bins: int) -> np.ndarray:
    """float64 [bins], 0 to 1: the share of the minibatches of each part of the run that are of the task."""
    edges = np.linspace(0, len(schedule), bins + 1)
    steps = schedule.steps_of(task) if task in schedule.tasks else np.zeros(0, int)
    trained = np.searchsorted(steps, edges, side="right")
    taken = np.floor(edges)
    return np.diff(trained) / np.maximum(1, np.diff(taken)) / minibatches_a_step(schedule)


def draw_metrics(comparison: Comparison, path: Path) -> str | None:
    """Small multiples: each task's metric at every evaluation. None, and no file, where no run has two."""
    if not any(len(run.evaluations) > 1 for run in comparison.runs):
        return None
    curves = {
        task: {
            run.name: [(step, 100 * values[task]) for step, values in run.evaluations if task in values]
            for run in comparison.runs
        }
        for task in comparison.tasks
    }
    says = "Every task's metric while the model trains"
    units = {task: f"{METRIC_WORDS[comparison.metric(task)]}, %" for task in comparison.tasks}
    _small_multiples(comparison, path, says, curves, units, chance=True)
    return says


def draw_losses(comparison: Comparison, path: Path) -> str | None:
    """Small multiples: each task's training loss, smoothed. None, and no file, where no run kept its curves."""
    if not any(len(points) > 1 for run in comparison.runs for points in run.losses.values()):
        return None
    curves = {
        task: {run.name: _smoothed(run.losses.get(task, [])) for run in comparison.runs}
        for task in comparison.tasks
    }
    says = "Every task's training loss, smoothed"
    _small_multiples(comparison, path, says, curves, dict.fromkeys(comparison.tasks, "loss"))
    return says


def _smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    smoothed = smooth([value for _, value in points])
    return [(step, value) for (step, _), value in zip(points, smoothed, strict=True)]


def _small_multiples(
    comparison: Comparison,
    path: Path,
    title: str,
    curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]],
    units: Mapping[str, str],
    chance: bool = False,
) -> None:
    """A panel a task: a line a run, and below it when each schedule trained the task."""
    columns = min(3, len(comparison.tasks))
    lines = -(-len(comparison.tasks) // columns)
    width = max(6.0, 3.85 * columns)
    words = {settings_words(comparison, run.name) for run in comparison.runs}
    side_by_side = _legend_columns(words, width)
    legend = -(-min(len(words), len(PALETTE) + 1) // side_by_side)
    about = (
        "x: minibatches of all tasks so far. Strip below each panel: when this task was trained, a row for each "
        "schedule;\nsolid: only this task; pale: in turn with others; white: not at all."
    )
    if chance:
        about += " Dotted: what a guess scores."
    styles, strips = run_styles(comparison), _strips(comparison)
    end = max(len(run.schedule) * minibatches_a_step(run.schedule) for run in comparison.runs)
    with picture(path, width, 1.2 + 2.5 * lines + 0.2 * legend, title, about) as figure:
        figure.get_layout_engine().set(h_pad=0.13)  # type: ignore[union-attr,call-arg]
        grid = figure.subplots(lines, columns, squeeze=False)
        for task, axes in zip(comparison.tasks, grid.flat, strict=False):
            for run in reversed(comparison.runs):  # the best on top
                colour, dash = styles[run.name]
                points = curves[task].get(run.name, [])
                xs, ys = (
                    [step * minibatches_a_step(run.schedule) for step, _ in points],
                    [value for _, value in points],
                )
                dot = "o" if chance and len(comparison.runs) <= len(PALETTE) * 2 else ""
                axes.plot(
                    xs, ys, color=colour, linestyle=dash, linewidth=1.5, alpha=0.9, marker=dot, markersize=2.5
                )
            guess = next((run.chance[task] for run in comparison.runs if task in run.chance), None)
            if chance and guess is not None:
                axes.axhline(100 * guess, color=FAINT, linewidth=1, linestyle=":")
            axes.set_title(task)
            axes.set_title(units[task], loc="right", fontsize=8.5, fontweight="normal", color=FAINT)
            axes.set_xlim(0, end)
            axes.margins(y=0.08)
            axes.grid(axis="y")
            _strip(axes, task, strips, end)
        for axes in grid.flat[len(comparison.tasks) :]:
            axes.set_visible(False)
        _legend(figure, comparison, styles, side_by_side)


def _legend_columns(words: Collection[str], width: float) -> int:
    """As many as a figure of `width` inches has room for, at most four: a line, the words and a score in each."""
    return max(1, min(4, len(words), int(width / (0.95 + 0.075 * max(map(len, words))))))


def _legend(figure: Figure, comparison: Comparison, styles: Mapping[str, tuple[str, Any]], columns: int) -> None:
    """A line for each settings, best first; of several seeds the mean."""
    from matplotlib.lines import Line2D

    groups: dict[str, list[RunSummary]] = {}
    for run in comparison.runs:
        groups.setdefault(settings_words(comparison, run.name), []).append(run)
    handles, grey = [], 0
    for words, runs in sorted(groups.items(), key=lambda group: -(_mean(comparison, group[1]) or 0.0)):
        colour, dash = styles[runs[0].name]
        grey += len(runs) if colour == OTHER else 0
        if colour != OTHER:
            label = f"{words} ({percent(_mean(comparison, runs))})"
            handles.append(Line2D([], [], color=colour, linestyle=dash, linewidth=2, label=label))
    if grey:
        handles.append(Line2D([], [], color=OTHER, linewidth=2, label=f"{grey} more"))
    seeds = ", seeds together" if len(groups) < len(comparison.runs) else ""
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, fontsize=8.5, handlelength=3,
        title=f"Runs, best first{seeds} (mean at the end, %)", title_fontsize=8.5,
    )  # fmt: skip


def _mean(comparison: Comparison, runs: Sequence[RunSummary]) -> float | None:
    scores = [score for run in runs if (score := comparison.mean(run)) is not None]
    return sum(scores) / len(scores) if scores else None


def _strips(comparison: Comparison) -> list[tuple[Schedule, str]]:
    """The different schedules, best run first, with the colour of their runs if they share one; of several seeds
    the best run's.
    """
    styles = run_styles(comparison)
    alike_runs: dict[str, tuple[Schedule, list[str]]] = {}
    for run in comparison.runs:
        alike = schedule_of(run.config.model_copy(update={"seed": comparison.best.config.seed})).digest()
        alike_runs.setdefault(alike, (run.schedule, []))[1].append(styles[run.name][0])
    kept = list(alike_runs.values())[: len(PALETTE)]
    return [(schedule, colours[0] if len(set(colours)) == 1 else "#444444") for schedule, colours in kept]


def _strip(axes: Any, task: str, strips: Sequence[tuple[Schedule, str]], end: int) -> None:
    height = min(0.3, 0.055 * len(strips) + 0.02)
    below = axes.inset_axes([0, -height - 0.06, 1, height])
    image = np.ones((len(strips), _BINS, 4))
    for row, (schedule, colour) in enumerate(strips):
        span = len(schedule) * minibatches_a_step(schedule)
        own = max(1, round(_BINS * span / end))
        share = training_share(schedule, task, min(own, len(schedule)))
        image[row, :, 3] = 0
        alpha = np.where(share > 0, 0.22 + 0.78 * share, 0.0)
        image[row, :own, 3] = alpha[np.arange(own) * len(alpha) // own]
        image[row, :, :3] = to_rgb(colour)
    below.imshow(image, extent=(0, end, len(strips), 0), aspect="auto", interpolation="nearest")
    for row in range(1, len(strips)):
        below.axhline(row, color="white", linewidth=1)
    below.set_yticks([])
    below.set_xlim(0, end)
    below.tick_params(labelsize=8)
    below.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 2.5, 5, 10]))
    below.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
    below.spines[["left", "bottom"]].set_color("#CCCCCC")
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
