"""Pictures in `polyvit inspect`; each function is one of `Display`.

Legend: H height, W width, C = 3 RGB, N tokens, P patch_dim.
"""

import contextlib
from typing import Any

import numpy as np

from polyvit.config import ImageInput, ImageTask
from polyvit.data.decode import decode_image, image_header
from polyvit.data.loading import Media
from polyvit.data.transforms import unpatchify_image
from polyvit.reports.inspect.display import Panel
from polyvit.reports.inspect.displays import pixels
from polyvit.reports.inspect.finding import Finding, note_if_many
from polyvit.reports.inspect.task_report import TaskReport

TRAINING_VIEWS = 4
LEGEND = ""
LARGE = 4.0
"""Smaller side of a picture over that of the model's input, from which a smaller copy would read much faster."""


def examine(
    media: Media, task: ImageTask, spec: ImageInput, segment_s: tuple[float, float], known: dict[str, Any]
) -> None:
    """form, width, height, contrast, brightest."""
    if isinstance(media, np.ndarray):
        known.update(form="pixels", height=media.shape[0], width=media.shape[1])
    else:
        with contextlib.suppress(Exception):
            known.update(image_header(media))
    image_HWC = stored(media, task, spec, segment_s)
    known.update(contrast=pixels.contrast(image_HWC), brightest=int(image_HWC.max()))


def stored(media: Media, task: ImageTask, spec: ImageInput, segment_s: tuple[float, float]) -> np.ndarray:
    """image_HWC, uint8."""
    return media if isinstance(media, np.ndarray) else decode_image(media)


def model_view(tokens_NP: np.ndarray, spec: ImageInput) -> np.ndarray:
    """image_HWC, uint8."""
    return unpatchify_image(tokens_NP, spec.size, spec.patch_size)


def sheet_title(name: str, task: ImageTask, spec: ImageInput) -> str:
    """The size that the model sees."""
    return f"{name}: pictures as stored, and as the model sees them at {pixels.by(spec.size)} pixels"


def size_words(stored: np.ndarray, spec: ImageInput) -> str:
    """Width x height."""
    return pixels.size_words(stored)


def fit(report: TaskReport) -> list[Finding]:
    """Pictures much smaller or larger than the model's input."""
    spec, name = report.spec, report.name
    assert isinstance(spec, ImageInput)
    width, height = report.values("width"), report.values("height")
    sides = np.minimum(width, height) if len(width) == len(height) else np.zeros(0)
    findings = note_if_many(name, "small", sides < min(spec.size) / 2,
                            f"pictures smaller than half the model's input ({min(spec.size)} pixels)",
                            "They are enlarged, hence blurred; model.image.size could be smaller.")  # fmt: skip
    words = f"pictures more than {LARGE:g} times the model's input ({min(spec.size)} pixels)"
    do = "Most of decoding is thrown away: `polyvit shard --size` writes smaller copies."
    return findings + note_if_many(name, "large", sides > LARGE * min(spec.size), words, do)


def panels(report: TaskReport) -> list[Panel]:
    """Sizes and shapes."""
    assert isinstance(report.spec, ImageInput)
    return pixels.side_panels(report, report.spec.size)
