"""Pictures of a task's numbers: examples of each class, and sizes, durations, levels as distributions.

In: a `TaskReport`. Out: a PNG; the function returns what it shows, in a sentence.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyvit.data.index import SPLITS
from polyvit.reports.inspect.display import Panel, display_of
from polyvit.reports.inspect.task_report import TaskReport
from polyvit.reports.style import FAINT, INK, PALETTE, amount, picture

MOST_BARS = 24
"""Up to so many classes get a bar with a name each; more are drawn as a curve."""
FEW_VALUES = 6
"""Up to so many distinct numbers get a bar each; more are drawn as a histogram."""
_TRAIN, _HELD = PALETTE[0], PALETTE[4]


def draw_numbers(report: TaskReport, path: Path) -> str:
    """PNG: classes at the left, then a panel for each measure of what was decoded."""
    panels = _panels(report)
    bars = int((report.counts_KS.sum(axis=1) > 0).sum())
    named = bars <= MOST_BARS
    height = 2.6 + (max(0.0, 0.155 * bars - 1.3) if named else 0.0)
    left = 4.6 if named else 4.2
    says = f"{report.name}: {bars} classes with examples, {len(report.examined)} examples decoded"
    about = f"Blue: train; orange: {report.task.eval_split}. Dashed: the model's input"
    display = display_of(report.spec)
    about += f"{display.LEGEND}. " if display else ". "
    about += "Distributions are of the examples decoded, all splits."
    with picture(path, left + 1.9 * len(panels), height, says, about) as figure:
        grid = figure.subplots(1, 1 + len(panels), width_ratios=[left, *[1.9] * len(panels)], squeeze=False)[0]
        (_bars if named else _curve)(grid[0], report)
        for axes, (title, values, marks, integer) in zip(grid[1:], panels, strict=True):
            _distribution(axes, title, values, marks, integer)
    return says


# ----------------------------------------------------------------------------------------------- classes


def _bars(axes: Any, report: TaskReport) -> None:
    """A pair of bars a class, most frequent first."""
    train_K, held_K = _train_and_held(report)
    shown = [k for k in _by_frequency(train_K, held_K) if train_K[k] or held_K[k]]
    places = np.arange(len(shown))
    axes.barh(places - 0.18, train_K[shown], height=0.42, color=_TRAIN)
    axes.barh(places + 0.24, held_K[shown], height=0.34, color=_HELD)
    axes.set_yticks(places, [_short(report.classes[k], 30) for k in shown], fontsize=7)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_title("examples of each class", fontsize=8.5)
    axes.tick_params(axis="x", labelsize=7)


def _curve(axes: Any, report: TaskReport) -> None:
    """Counts over the rank of the class; the ends are named."""
    train_K, held_K = _train_and_held(report)
    order = [k for k in _by_frequency(train_K, held_K) if train_K[k] or held_K[k]]
    ranks = np.arange(1, len(order) + 1)
    axes.fill_between(ranks, train_K[order], step="mid", color=_TRAIN, alpha=0.85, linewidth=0)
    axes.plot(ranks, held_K[order], color=_HELD, linewidth=0.9, drawstyle="steps-mid")
    most = max(1, int(train_K.max()), int(held_K.max()))
    if most > 30 * max(1, int(train_K[order[-1]])) and train_K[order].min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_ticks())
    axes.set_ylim(top=1.3 * most)
    axes.set_xlim(0.5, len(order) + 0.5)
    for k, x, side in ((order[0], 0.02, "left"), (order[-1], 0.98, "right")):
        words = f"{_short(report.classes[k], 24)}: {train_K[k]}"
        axes.text(x, 0.99, words, fontsize=7, ha=side, va="top", transform=axes.transAxes, color=INK)
    axes.set_title("examples of each class, most frequent first", fontsize=8.5)
    axes.set_xlabel("classes", fontsize=7.5)
    axes.tick_params(labelsize=7)


def _train_and_held(report: TaskReport) -> tuple[np.ndarray, np.ndarray]:
    return report.counts_KS[:, 0], report.counts_KS[:, SPLITS.index(report.task.eval_split)]


def _by_frequency(train_K: np.ndarray, held_K: np.ndarray) -> list[int]:
    return sorted(range(len(train_K)), key=lambda k: (-train_K[k], -held_K[k], k))


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 3] + "..."


# --------------------------------------------------------------------------------------- distributions


def _panels(report: TaskReport) -> list[Panel]:
    display = display_of(report.spec)
    panels = [
        *(display.panels(report) if display else []),
        ("kilobytes", report.values("bytes") / 1000, [], False),
    ]
    return [panel for panel in panels if len(panel[1])]


def _distribution(axes: Any, title: str, values: np.ndarray, marks: Sequence[float], integer: bool) -> None:
    """Bars where there are few different numbers, else a histogram; logarithmic if they spread a hundredfold."""
    rounded = np.round(values) if integer else np.round(values, 2)
    distinct, counts = np.unique(rounded, return_counts=True)
    if len(distinct) <= FEW_VALUES:
        axes.bar(range(len(distinct)), counts, width=0.7, color=_TRAIN)
        axes.set_xticks(range(len(distinct)), [f"{value:g}" for value in distinct])
        axes.set_xlim(-0.8, max(1.8, len(distinct) - 0.2))
        for mark in (m for m in marks if m in distinct):
            _mark(axes, list(distinct).index(mark))
    else:
        low, high = float(values.min()), float(values.max())
        if low > 0 and high > 100 * low:
            axes.hist(values, bins=np.geomspace(low, high, 25).tolist(), color=_TRAIN)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(_ticks())
        else:
            axes.hist(values, bins=24, color=_TRAIN)
        for mark in marks:
            _mark(axes, mark)
    axes.set_title(title, fontsize=8.5)
    axes.tick_params(labelsize=7)
    axes.set_yticks([])
    axes.margins(y=0.16)  # room for the words above the bars
    axes.spines["left"].set_visible(False)
    middle = f"middle {float(np.median(values)):.3g}"
    axes.text(0.99, 0.99, middle, fontsize=7, ha="right", va="top", transform=axes.transAxes, color=FAINT)


def _mark(axes: Any, place: float) -> None:
    axes.axvline(place, color=INK, linewidth=1, linestyle=(0, (3, 2)))


def _ticks() -> Any:
    """Plain numbers on a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: amount(value) if value >= 1000 else f"{value:g}")
