"""The contact sheet of a task's worst examples, as a JPEG: photographs are ten times as large as PNG."""

from pathlib import Path

import numpy as np

from polyvit.evaluation import TaskDetail, WorstExample
from polyvit.reports.html import Figure
from polyvit.reports.style import DPI, FAINT, INK, picture

COLUMNS = 4
SIDE = 1.55
"""Inches of a panel, of which none is wider or higher."""
WORDS = 0.62
"""Inches below a panel, for its labels."""
CAPTION = 30
"""Characters of a line below a panel."""
QUALITY = 80
"""Of the JPEG. Twelve panels of noise, the worst there is, are 450 kB."""


def draw_worst(detail: TaskDetail, path: Path) -> Figure | None:
    """Draw the worst examples, the highest loss first. None where none can be drawn.

    Below each panel: its loss, the true class and the predicted one.
    """
    shown = [each for each in detail.worst if each.panel is not None]
    if not shown:
        path.unlink(missing_ok=True)  # of an earlier report in the same folder
        return None
    rows, sound = -(-len(shown) // COLUMNS), shown[0].panel is not None and shown[0].panel.ndim == 2
    what = "spectrograms, low frequencies at the bottom" if sound else "as the model sees them"
    title, about = f"{detail.task}: the highest losses", what
    with picture(path, COLUMNS * (SIDE + 0.1), rows * (SIDE + WORDS) + 0.7, title, about, False,
                 QUALITY) as figure:  # fmt: skip
        limits = _limits(shown) if sound else (None, None)
        for axes in figure.subplots(rows, COLUMNS, squeeze=False).flat:
            axes.set_axis_off()
        for axes, each in zip(figure.axes, shown, strict=False):
            array = each.panel
            assert array is not None
            if sound:
                axes.imshow(array.T.astype(np.float32), origin="lower", aspect="auto", cmap="magma",
                            vmin=limits[0], vmax=limits[1])  # fmt: skip
            else:
                axes.imshow(array, interpolation_stage="rgba")
            right = set(each.true) & set(each.predicted)
            colour = FAINT if right else INK
            axes.text(0, -0.03, _words(each), fontsize=7, color=colour, va="top", linespacing=1.2,
                      transform=axes.transAxes)  # fmt: skip
        width = round(figure.get_figwidth() * DPI)
    return Figure(path, f"The {len(shown)} examples of {detail.task} with the highest losses.", pixels=width)


def _words(each: WorstExample) -> str:
    lines = [f"loss {each.loss:.3g}"]
    for name, classes in (("true", each.true), ("predicted", each.predicted)):
        words = f"{name}: {', '.join(classes) or 'none'}"
        lines.append(words if len(words) <= CAPTION else words[: CAPTION - 3].rstrip(" ,") + "...")
    return "\n".join(line.replace("$", r"\$") for line in lines)


def _limits(shown: list[WorstExample]) -> tuple[float, float]:
    """The same numbers have the same colour all over the sheet."""
    numbers = np.concatenate([np.asarray(each.panel, np.float32).ravel() for each in shown])
    low, high = np.percentile(numbers, (1, 99.7))
    return float(low), float(max(high, low + 1e-3))
