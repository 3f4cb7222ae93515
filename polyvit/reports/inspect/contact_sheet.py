"""Contact sheets: examples as they are stored, as evaluation sees them, and as training sees them.

In: encoded media, or the pixels of a CIFAR row, as `polyvit.data.loading.load` gives them. Out: a PNG with one row
for each example: first its media as stored, then the evaluation view, then training views of different epochs. A
view of a clip is a strip of FRAMES frames; a spectrogram has time from left to right and low frequencies at the
bottom. Views are put together from the tokens that `example_arrays` makes for the model, with the config's own
crops, colours, masks and seed.
Legend: H height, W width, C = 3 RGB, T frames, F mel bins, S samples, N tokens, P patch_dim.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from polyvit.config import InputSection, TaskConfig
from polyvit.data.loading import Media, example_arrays
from polyvit.data.transforms import example_rng
from polyvit.errors import BadMedia
from polyvit.reports.inspect.display import Display, display_of

ROWS = 8
"""Examples on a sheet."""
FRAMES = 3
"""Frames of a clip in one view."""
MARGIN = 2.2
"""Inches left of the rows, for names."""
_INK, _FAINT = "#222222", "#777777"


@dataclass(frozen=True)
class Sample:
    """One example: what to write beside it, its key (which seeds the augmentation), media, seconds in them."""

    title: str
    key: str
    media: Media
    start_s: float = 0.0
    end_s: float = -1.0


def draw_sheet(
    name: str,
    samples: Sequence[Sample],
    task: TaskConfig,
    spec: InputSection,
    target: Path | BinaryIO,
    seed: int,
    what: str = "",
) -> str:
    """Draw the samples of one task as a PNG. Returns what it shows, in a sentence.

    name: the task. samples: one row each; those that cannot be decoded are left out. task, spec: its config, and
    the model's input for it. target: where the PNG goes. seed: the run's, for the training views. what: the
    sentence to use; "": one about the task's modality. Raises BadMedia where no sample is left, TypeError where
    task and spec are of two modalities.
    """
    display = _display(spec)
    kept, rows = [], []
    for sample in samples:
        try:
            segment_s = (sample.start_s, sample.end_s)
            stored = display.stored(sample.media, task, spec, segment_s)
            rows.append([stored, *model_views(name, sample, task, spec, seed)])
            kept.append(sample)
        except BadMedia:
            continue
    if not rows:
        raise BadMedia("none of the examples can be decoded")
    abouts = [
        _about(sample, display.size_words(panels[0], spec)) for sample, panels in zip(kept, rows, strict=True)
    ]
    says = what or display.sheet_title(name, task, spec)
    _draw(says, [sample.title for sample in kept], abouts, rows, target)
    return says


def model_views(name: str, sample: Sample, task: TaskConfig, spec: InputSection, seed: int) -> list[np.ndarray]:
    """What the model gets: the evaluation view, then the training views of the first epochs.

    Each view is an array: uint8 image [H, W, 3], uint8 clip [T, H, W, 3], or float16 spectrogram [T, F]. name: the
    task, which with seed and epoch decides the augmentation. Tokens are put together again; overlapping patches
    cannot be, so there the whole input is taken as one big patch, which gives the same numbers.
    """
    display, one_view = _display(spec), task.with_one_view()
    if spec.strides != spec.patch:
        spec = spec.as_one_patch()

    def view(rng: np.random.Generator | None) -> np.ndarray:
        arrays = example_arrays(sample.media, one_view, spec, rng, sample.start_s, sample.end_s)
        one = {key: array[0] for key, array in arrays.items()}
        return display.model_view(one["tokens"] if set(one) == {"tokens"} else one, spec)

    training = [view(example_rng(seed, name, epoch, sample.key)) for epoch in range(display.TRAINING_VIEWS)]
    return [view(None), *training]


def _display(spec: InputSection) -> Display:
    display = display_of(spec)
    if display is None:
        raise TypeError(f"{type(spec).__name__} has no display: its examples cannot be drawn")
    return display


# ----------------------------------------------------------------------------------------------- drawing


def _draw(
    says: str,
    titles: Sequence[str],
    abouts: Sequence[str],
    rows: Sequence[Sequence[np.ndarray]],
    target: Path | BinaryIO,
) -> None:
    """One row an example. Panels have the height of the row; those of one column are equally wide."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    model, views = rows[0][1], len(rows[0]) - 1
    sound, strip = model.ndim == 2, model.ndim == 4
    shape = (1.0, 1.9) if sound else model.shape[-3:-1]
    tall, gap, top = 1.15, 0.09, 0.62
    wide = tall * shape[1] / shape[0] * (min(FRAMES, len(model)) if strip else 1)
    first = 1.35 * wide  # a whole recording is longer, and stored frames are often wider
    if not sound and not strip:
        widest = max(panels[0].shape[1] / panels[0].shape[0] for panels in rows)
        first = min(max(1.5 * tall, 1.35 * wide), tall * widest)
    across = max(MARGIN + first + (wide + gap) * views + 0.15, 0.4 + 0.083 * len(says))
    height = top + 0.05 + (tall + gap) * len(rows)
    figure = Figure(figsize=(across, height), facecolor="white")
    FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, size: float, colour: str, **more: Any) -> None:
        """x, y: inches from the left and from the top."""
        figure.text(x / across, 1 - y / height, text, fontsize=size, color=colour, **more)

    write(0.12, 0.1, says, 10, _INK, va="top", fontweight="bold")
    limits = _limits(rows) if sound else (0.0, 0.0)
    for column, head in enumerate(
        ["as stored", "evaluation", *(f"training, epoch {e}" for e in range(views - 1))]
    ):
        x, broad = MARGIN + first + gap + (wide + gap) * (column - 1), wide
        if column == 0:
            x, broad = MARGIN, first
        write(x, top - 0.07, head, 8, _FAINT)
        for row, panels in enumerate(rows):
            y = height - top - (row + 1) * tall - row * gap
            axes = figure.add_axes((x / across, y / height, broad / across, tall / height))
            _panel(axes, panels[column], limits)
            axes.set_anchor("W")
    for row, (title, about) in enumerate(zip(titles, abouts, strict=True)):
        y = top + row * (tall + gap)
        write(0.12, y + 0.03, textwrap.fill(title, 26, max_lines=4, placeholder=" ..."), 8.5, _INK, va="top",
              fontweight="bold")  # fmt: skip
        write(0.12, y + tall - 0.03, about, 7, _FAINT, va="bottom")
    figure.savefig(target, dpi=110, format="png")


def _panel(axes: Any, array: np.ndarray, limits: tuple[float, float]) -> None:
    axes.set_axis_off()
    if array.ndim == 2:
        picture_FT = array.T.astype(np.float32)
        low, high = limits
        axes.imshow(picture_FT, origin="lower", aspect="auto", vmin=low, vmax=high, cmap="magma")
        return
    if array.ndim == 4:
        shown = array[np.linspace(0, len(array) - 1, min(FRAMES, len(array))).astype(int)]
        edge = np.full((array.shape[1], max(1, array.shape[2] // 60), 3), 255, np.uint8)
        array = np.concatenate([piece for frame_HWC in shown for piece in (frame_HWC, edge)][:-1], axis=1)
    axes.imshow(array, interpolation_stage="rgba")


def _limits(rows: Sequence[Sequence[np.ndarray]]) -> tuple[float, float]:
    """Colours of spectrograms: the same numbers have the same colour all over the sheet."""
    numbers = np.concatenate([np.asarray(panel, dtype=np.float32).ravel() for panels in rows for panel in panels])
    low, high = np.percentile(numbers, (1, 99.7))
    return float(low), float(max(high, low + 1e-3))


def _about(sample: Sample, size: str) -> str:
    """Under the name: the size as stored and the end of the key."""
    return f"{size}\n{sample.key if len(sample.key) <= 34 else '...' + sample.key[-31:]}"
