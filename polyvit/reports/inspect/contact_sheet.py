"""Contact sheets: examples as they are stored, as evaluation sees them, and as training sees them.

In: encoded media, or the pixels of a CIFAR row, as `polyvit.data.loading.load` gives them. Out: a PNG with one row
for each example: first its media as stored, then the evaluation view, then training views of different epochs. A
view of a clip is a strip of FRAMES frames; a spectrogram has time from left to right and low frequencies at the
bottom. Views are put together from the tokens that `example_tokens` makes for the model, with the config's own
crops, colours, masks and seed.
Legend: H height, W width, C = 3 RGB, T frames, F mel bins, S samples, N tokens, P patch_dim.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from polyvit.config import (
    AudioInput,
    AudioTask,
    ImageInput,
    ImageTask,
    ModelInput,
    TaskConfig,
    VideoInput,
    VideoTask,
)
from polyvit.data.loading import Media, example_tokens
from polyvit.data.transforms import example_rng, unpatchify_audio, unpatchify_image, unpatchify_video
from polyvit.errors import BadMedia

ROWS = 8
"""Examples on a sheet."""
VIEWS = {"image": 4, "video": 2, "audio": 3}
"""Training views of an example: as many as a reader can tell apart side by side."""
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
    spec: ModelInput,
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
    kept, rows = [], []
    for sample in samples:
        try:
            rows.append([_stored(sample, task, spec), *model_views(name, sample, task, spec, seed)])
            kept.append(sample)
        except BadMedia:
            continue
    if not rows:
        raise BadMedia("none of the examples can be decoded")
    abouts = [_about(sample, panels[0], spec) for sample, panels in zip(kept, rows, strict=True)]
    says = what or _says(name, task, spec)
    _draw(says, [sample.title for sample in kept], abouts, rows, target)
    return says


def _says(name: str, task: TaskConfig, spec: ModelInput) -> str:
    if isinstance(spec, ImageInput):
        return f"{name}: pictures as stored, and as the model sees them at {_by(spec.size)} pixels"
    if isinstance(spec, VideoInput) and isinstance(task, VideoTask):
        return (
            f"{name}: first, middle and last of {spec.frames} frames at stride {task.augment.frame_stride}, as "
            f"stored, and as the model sees them at {_by(spec.size)} pixels"
        )
    assert isinstance(spec, AudioInput)
    return (
        f"{name}: whole recordings, and the {spec.frames * spec.hop_ms / 1000:g} s windows that the model sees; "
        f"{spec.mel_bins} mel bins, low ones at the bottom"
    )


def model_views(name: str, sample: Sample, task: TaskConfig, spec: ModelInput, seed: int) -> list[np.ndarray]:
    """What the model gets: the evaluation view, then the training views of the first epochs.

    Each view is an array: uint8 image [H, W, 3], uint8 clip [T, H, W, 3], or float16 spectrogram [T, F]. name: the
    task, which with seed and epoch decides the augmentation. Tokens are put together again; overlapping patches
    cannot be, so there the whole input is taken as one big patch, which gives the same numbers.
    """
    if spec.stride is not None:
        spec = spec.model_copy(update={_patch_key(spec): _sides(spec), "stride": None})

    def view(rng: np.random.Generator | None) -> np.ndarray:
        tokens_NP = example_tokens(sample.media, task, spec, rng, sample.start_s, sample.end_s)
        if isinstance(spec, ImageInput):
            return unpatchify_image(tokens_NP, spec.size, spec.patch_size)
        if isinstance(spec, VideoInput):
            return unpatchify_video(tokens_NP, (spec.frames, *spec.size), spec.tubelet_size)
        return unpatchify_audio(tokens_NP, (spec.frames, spec.mel_bins), spec.patch_size)

    epochs = range(VIEWS[task.modality])
    return [view(None), *(view(example_rng(seed, name, epoch, sample.key)) for epoch in epochs)]


def _patch_key(spec: ModelInput) -> str:
    return "tubelet_size" if isinstance(spec, VideoInput) else "patch_size"


def _sides(spec: ModelInput) -> tuple[int, ...]:
    if isinstance(spec, AudioInput):
        return spec.frames, spec.mel_bins
    return (spec.frames, *spec.size) if isinstance(spec, VideoInput) else spec.size


def _stored(sample: Sample, task: TaskConfig, spec: ModelInput) -> np.ndarray:
    """Before anything is done to it: image_HWC, the clip's video_THWC, or the whole recording's spectrogram_TF."""
    if isinstance(task, ImageTask):
        from polyvit.data.decode import decode_image  # start-up: only this decoder

        return sample.media if isinstance(sample.media, np.ndarray) else decode_image(sample.media)
    assert isinstance(sample.media, bytes)
    if isinstance(task, VideoTask) and isinstance(spec, VideoInput):
        from polyvit.data.decode import read_clip  # start-up: only this decoder

        stride = task.augment.frame_stride
        return read_clip(sample.media, spec.frames, stride, None, sample.start_s, sample.end_s)
    if isinstance(task, AudioTask) and isinstance(spec, AudioInput):
        from polyvit.data.decode import decode_waveform, log_mel  # start-up: only this decoder

        waveform_S = decode_waveform(sample.media, spec.sample_rate, sample.start_s, sample.end_s)
        return (log_mel(waveform_S, spec) - spec.mean) / spec.std
    raise TypeError(f"a task of modality {task.modality} cannot take a {type(spec).__name__}")


def _by(size: tuple[int, int]) -> str:
    """(H, W) as people say it."""
    return f"{size[1]} x {size[0]}"


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
        first = tall * min(1.5, max(panels[0].shape[1] / panels[0].shape[0] for panels in rows))
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


def _about(sample: Sample, stored: np.ndarray, spec: ModelInput) -> str:
    """Under the name: the size as stored and the end of the key."""
    if isinstance(spec, AudioInput):
        size = f"{len(stored) * spec.hop_ms / 1000:.1f} s"
    else:
        size = f"{stored.shape[-2]} x {stored.shape[-3]} pixels"
    return f"{size}\n{sample.key if len(sample.key) <= 34 else '...' + sample.key[-31:]}"
