"""The common style of all pictures: colours, letters, a figure with a title, numbers as words.

Colours are Okabe and Ito's, which people who are colour-blind can tell apart.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

DPI = 150
"""Pixels an inch of all pictures."""
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B6B6B")
INK, FAINT, OTHER = "#222222", "#777777", "#BBBBBB"
_STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "text.color": INK, "legend.frameon": False, "savefig.dpi": DPI,
    "axes.grid": False, "grid.color": "#E6E6E6", "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.08,
}  # fmt: skip


@contextmanager
def picture(
    path: Path, width: float, height: float, title: str, about: str = "", stretch: bool = True,
    jpeg_quality: int | None = None,
) -> Iterator[Figure]:  # fmt: skip
    """A figure that is written to `path` when the block ends, as a PNG of at most 256 colours.

    width, height: in inches; the figure becomes wider where its text needs it. title: in bold, says what to see.
    about: faint lines below it. stretch: whether what is drawn grows with a wider figure.
    jpeg_quality: write a JPEG instead, for photographs; 1 to 95.
    """
    wanted = width
    width = max(width, 0.3 + 0.107 * len(title), *(0.3 + 0.069 * len(line) for line in ["", *about.splitlines()]))
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        lines = 1 + len(about.splitlines())
        top = 1 - (0.12 + 0.22 + 0.19 * (lines - 1)) / height
        figure.text(0.012, 1 - 0.1 / height, title, fontsize=12.5, fontweight="bold", va="top")
        figure.text(0.012, 1 - 0.36 / height, about, fontsize=9, color=FAINT, va="top", linespacing=1.35)
        figure.get_layout_engine().set(rect=(0, 0, 1 if stretch else wanted / width, top))  # type: ignore[union-attr,call-arg]
        yield figure
        figure.draw_without_rendering()  # a second pass of the layout: ticks change with the size of the axes
        if jpeg_quality:
            figure.savefig(path, format="jpeg", pil_kwargs={"quality": jpeg_quality})
        else:
            _write_png(figure, path)


def _write_png(figure: Figure, path: Path) -> None:
    """With a palette, which makes a chart a third as large; nobody sees the difference to 24 bits."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    drawn.quantize(256, dither=Image.Dither.NONE).save(path, format="png", optimize=True, dpi=(DPI, DPI))


def percent(value: float | None, sign: bool = False) -> str:
    """A fraction as a percentage with one decimal; a dash where it is not known. No minus before a zero."""
    if value is None:
        return "–"
    text = f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def amount(count: float) -> str:
    """93.1M, 630k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.0f}"
