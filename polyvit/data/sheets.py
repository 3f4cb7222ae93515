"""Contact sheets: what training sees of a task's examples, beside what evaluation sees. To be looked at.

    python -m polyvit.data.sheets CONFIG FOLDER [key=value ...] [--only TASK]

In: encoded media, or the pixels of a CIFAR row, as `source.load` gives them. Out: a PNG a task in FOLDER: a row an
example; first its evaluation view, then training views, each of another epoch. Of a clip every view is a strip of
FRAMES frames; a spectrogram has time from left to right and low frequencies at the bottom. What is drawn are the
numbers that `example_tokens` makes for the model, with the config's own crops, colours, masks and seed.
Legend: H height, W width, C = 3 RGB, T frames, F mel bins.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyvit.config import AudioInput, ImageInput, ModelInput, RunConfig, VideoInput
from polyvit.data.augment import example_rng
from polyvit.data.example import Media, example_tokens
from polyvit.data.layouts import scan
from polyvit.data.source import load
from polyvit.errors import BadMedia, UserError
from polyvit.recipes import load_config
from polyvit.task_config import AudioTask, ImageTask, TaskConfig, VideoTask

ROWS = 6
"""Examples on a sheet."""
VIEWS = 5
"""Training views of an example."""
FRAMES = 3
"""Frames of a clip in one view."""


@dataclass(frozen=True)
class Sample:
    """One example: what to write beside it, its key (which seeds the augmentation), media, seconds in them."""

    title: str
    key: str
    media: Media
    start_s: float = 0.0
    end_s: float = -1.0


def image_sheet(
    name: str, samples: Sequence[Sample], task: ImageTask, spec: ImageInput, path: Path, seed: int
) -> None:
    """PNG of pictures. Raises BadMedia for what cannot be decoded, as the other two."""
    whole = spec.model_copy(update={"patch_size": spec.size, "stride": None})
    views = _views(name, samples, task, whole, (*spec.size, 3), seed)
    _draw(f"{name}: image {spec.size}", samples, views, lambda axes, image_HWC: axes.imshow(image_HWC), path)


def clip_sheet(
    name: str, samples: Sequence[Sample], task: VideoTask, spec: VideoInput, path: Path, seed: int
) -> None:
    """PNG of clips, FRAMES frames from first to last side by side in each view."""
    whole = spec.model_copy(update={"tubelet_size": (spec.frames, *spec.size), "stride": None})
    views = _views(name, samples, task, whole, (spec.frames, *spec.size, 3), seed)
    shown = np.linspace(0, spec.frames - 1, min(FRAMES, spec.frames)).astype(int)

    def strip(axes: Any, video_THWC: np.ndarray) -> None:
        axes.imshow(np.concatenate(list(video_THWC[shown]), axis=1))

    title = f"{name}: frames {', '.join(map(str, shown))} of {spec.frames}, stride {task.augment.frame_stride}"
    _draw(title, samples, views, strip, path)


def spectrogram_sheet(
    name: str, samples: Sequence[Sample], task: AudioTask, spec: AudioInput, path: Path, seed: int
) -> None:
    """PNG of normalised spectrograms, the same colours for the same numbers all over the sheet."""
    whole = spec.model_copy(update={"patch_size": (spec.frames, spec.mel_bins), "stride": None})
    views = _views(name, samples, task, whole, (spec.frames, spec.mel_bins), seed)
    low, high = (float(bound) for bound in np.percentile(np.array(views, dtype=np.float32), (0.5, 99.5)))

    def spectrogram(axes: Any, spectrogram_TF: np.ndarray) -> None:
        picture_FT = spectrogram_TF.T.astype(np.float32)
        axes.imshow(picture_FT, origin="lower", aspect="auto", vmin=low, vmax=high, cmap="magma")

    seconds = spec.frames * spec.hop_ms / 1000
    title = f"{name}: {seconds:g} s across, {spec.mel_bins} mel bins up, colours from {low:.1f} to {high:.1f}"
    _draw(title, samples, views, spectrogram, path)


def _views(
    name: str, samples: Sequence[Sample], task: TaskConfig, whole: ModelInput, shape: tuple[int, ...], seed: int
) -> list[list[np.ndarray]]:
    """A row a sample: the evaluation view, then epochs 0 .. VIEWS - 1. `whole`: the input as one big patch."""

    def view(sample: Sample, rng: np.random.Generator | None) -> np.ndarray:
        tokens_1P = example_tokens(sample.media, task, whole, rng, sample.start_s, sample.end_s)
        return tokens_1P.reshape(shape)

    return [
        [view(sample, None), *(view(sample, example_rng(seed, name, epoch, sample.key)) for epoch in range(VIEWS))]
        for sample in samples
    ]


def _draw(
    title: str,
    samples: Sequence[Sample],
    views: Sequence[Sequence[np.ndarray]],
    panel: Callable[[Any, np.ndarray], object],
    path: Path,
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = views[0][0].shape[-3:-1] if views[0][0].ndim > 2 else (1, 2)
    across = 1.5 * width / height * (FRAMES if views[0][0].ndim == 4 else 1)
    columns = 1 + VIEWS
    figure = Figure(figsize=(across * columns + 0.2, 1.72 * len(samples) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(samples), columns, squeeze=False)
    for row, sample in enumerate(samples):
        for column, axes in enumerate(grid[row]):
            panel(axes, views[row][column])
            axes.set_xticks([])
            axes.set_yticks([])
            heading = "evaluation" if column == 0 else f"train, epoch {column - 1}"
            caption = sample.title if column == 0 else ""
            axes.set_title(f"{heading}\n{caption}" if row == 0 else caption, fontsize=7, loc="left")
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=90)


def pick(name: str, task: TaskConfig, root: Path) -> list[Sample]:
    """ROWS sound examples of a task's train split, spread over it in key order, so over its classes."""
    found = scan(task, root, name)
    examples, samples = found.split("train"), []
    for first in np.linspace(0, len(examples) - 1, ROWS).astype(int) if examples else ():
        example = examples[first]
        try:
            media = load(example, root)
        except BadMedia:
            continue
        label = found.classes[example.labels[0]] if example.labels else "no label"
        samples.append(Sample(label[:28], example.key, media, example.start, example.end))
    if not samples:
        raise UserError(f"tasks.{name}: {root} has no readable train example to draw")
    return samples


def draw_sheets(config: RunConfig, roots: Mapping[str, Path], folder: Path) -> list[Path]:
    """`folder`/<task>.png of every task; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, task in config.tasks.items():
        samples, path = pick(name, task, roots[name]), folder / f"{name}.png"
        if isinstance(task, ImageTask):
            image_sheet(name, samples, task, config.model.image, path, config.seed)
        elif isinstance(task, VideoTask):
            clip_sheet(name, samples, task, config.model.video, path, config.seed)
        else:
            spectrogram_sheet(name, samples, task, config.model.audio, path, config.seed)
        written.append(path)
    return written


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 done, 2 the user's mistake."""
    made = argparse.ArgumentParser(
        prog="python -m polyvit.data.sheets", description="Contact sheets of every task."
    )
    made.add_argument("config", metavar="CONFIG", help="a recipe's name or a YAML file")
    made.add_argument("folder", metavar="FOLDER", type=Path, help="where the PNGs go, one a task")
    made.add_argument("overrides", metavar="key=value", nargs="*", help="keys of the config to change")
    made.add_argument("--only", action="append", default=[], metavar="TASK", help="only this task (repeatable)")
    arguments = made.parse_intermixed_args(argv)
    try:
        config = load_config(arguments.config, arguments.overrides, arguments.only)
        paths = draw_sheets(config, _roots(config), arguments.folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(map(str, paths)))
    return 0


def _roots(config: RunConfig) -> dict[str, Path]:
    """Each task's folder. Raises UserError for tasks without data."""
    given = {
        name: task.root or (config.data.root and f"{config.data.root}/{name}")
        for name, task in config.tasks.items()
    }
    roots = {name: Path(root) for name, root in given.items() if root and Path(root).is_dir()}
    if absent := sorted(config.tasks.keys() - roots.keys()):
        raise UserError(f"no data for {', '.join(absent)}; give data.root=DIR, or tasks.{absent[0]}.root=DIR")
    return roots


if __name__ == "__main__":
    sys.exit(main())
