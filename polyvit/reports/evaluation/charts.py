"""Pictures of one task's evaluation: the confusion matrix, the reliability diagram."""

from pathlib import Path

import numpy as np

from polyvit.evaluation import ClassScore, TaskDetail
from polyvit.reports.style import FAINT, INK, OTHER, PALETTE, picture

NAMED = 40
"""Most classes whose names are written along a matrix."""
NUMBERED = 15
"""Most classes with numbers in the cells."""
LONGEST = 24


def draw_confusion(detail: TaskDetail, path: Path) -> None:
    """Rows are the true classes, columns the predicted ones; a cell is the share of its row."""
    assert detail.confusion is not None
    counts_KK, names = _occurring(detail.confusion, detail.classes)
    rows_K1 = counts_KK.sum(axis=1, keepdims=True)
    shares_KK = counts_KK / np.maximum(rows_K1, 1)
    side = float(np.clip(0.42 * len(names), 2.6, 9.0))
    about = "share of each true class that is taken for each class; classes that do not occur are left out"
    longest = max(len(_short(name)) for name in names)
    margin = 0.085 * longest + 0.6 if len(names) <= NAMED else 0.7
    with picture(
        path, side + margin + 1.1, side + margin + 0.9, f"{detail.task}: confusion", about, False
    ) as figure:
        axes = figure.subplots()
        image = axes.imshow(shares_KK, cmap="Blues", vmin=0, vmax=1, aspect="equal")
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        if len(names) <= NAMED:
            labels = [_short(name) for name in names]
            axes.set_xticks(range(len(names)), labels, rotation=90)
            axes.set_yticks(range(len(names)), labels)
        if len(names) <= NUMBERED:
            for row, column in np.argwhere(counts_KK):
                colour = "white" if shares_KK[row, column] > 0.6 else INK
                axes.text(column, row, str(counts_KK[row, column]), ha="center", va="center", color=colour)
        figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")


def draw_reliability(detail: TaskDetail, path: Path) -> None:
    """Accuracy over confidence of each example's surest answer, with how many answers are in each bin below."""
    curve = detail.reliability
    there = curve.count > 0
    about = f"expected calibration error {curve.error:.3f}: on the line the model is as often right as it is sure"
    with picture(path, 4.6, 4.6, f"{detail.task}: reliability", about, stretch=False) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot((0, 1), (0, 1), color=OTHER, linestyle="--", linewidth=1)
        upper.plot(curve.confidence[there], curve.accuracy[there], color=PALETTE[0], marker="o", markersize=4)
        upper.set_ylim(-0.02, 1.02)
        upper.set_xlim(0, 1)
        upper.set_ylabel("share that is right")
        edges = np.linspace(0, 1, len(curve.count) + 1)
        lower.bar(
            edges[:-1], curve.count, width=1 / len(curve.count), align="edge", color=FAINT, edgecolor="white"
        )
        lower.set_ylabel("answers")
        lower.set_xlabel("probability of the surest answer")


def _occurring(counts_KK: np.ndarray, classes: tuple[ClassScore, ...]) -> tuple[np.ndarray, list[str]]:
    keep = np.flatnonzero(counts_KK.sum(axis=0) + counts_KK.sum(axis=1))
    return counts_KK[np.ix_(keep, keep)], [classes[k].name for k in keep]


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
