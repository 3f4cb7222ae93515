"""Tokens of one example or one view, for tests that look at them: the product gives all views of an example."""

import numpy as np

from polyvit.config import InputSection, TaskBase
from polyvit.data.loading.codecs.audio import window_tokens
from polyvit.data.loading.codecs.video import clip_tokens, crop_positions
from polyvit.data.loading.codecs.views import view_times
from polyvit.data.loading.example import Media, example_arrays


def token_shape(spec: InputSection) -> tuple[int, ...]:
    """(N, P)."""
    return spec.arrays["tokens"].shape


def token_dtype(task: TaskBase | str) -> np.dtype:
    """Of a task or a modality: uint8 for pixels, float16 for log-mel."""
    modality = task if isinstance(task, str) else task.modality
    return np.dtype(np.float16 if modality == "audio" else np.uint8)


def evaluation_tokens(
    media: Media, task: TaskBase, spec: InputSection, start_s: float = 0.0, end_s: float = -1.0
) -> np.ndarray:
    """tokens_VNP of every evaluation view."""
    return example_arrays(media, task, spec, None, start_s, end_s)["tokens"]


def example_tokens(
    media: Media, task: TaskBase, spec: InputSection, rng: np.random.Generator | None,
    start_s: float = 0.0, end_s: float = -1.0, view: tuple[int, int] | None = None, crop: str = "centre",
) -> np.ndarray:  # fmt: skip
    """tokens_NP of one training view, or of the one evaluation view that `view` and `crop` name."""
    if rng is None and task.modality == "video" and isinstance(media, bytes):
        return clip_tokens(media, task, spec, (start_s, end_s), view, (crop,))[0]
    if rng is None and task.modality == "audio" and isinstance(media, bytes) and hasattr(spec, "mel_bins"):
        return window_tokens(media, spec, (start_s, end_s), [view])[0]
    return example_arrays(media, task, spec, rng, start_s, end_s)["tokens"][0]


def evaluation_views(task: TaskBase) -> list[tuple[tuple[int, int] | None, str]]:
    """(view, crop) of every evaluation view, clips outermost."""
    if task.modality == "image":
        return [(None, "centre")]
    crops = crop_positions(task) if task.modality == "video" else ("centre",)
    return [(time, crop) for time in view_times(task.eval_clips) for crop in crops]
