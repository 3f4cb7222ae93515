"""Pictures to tokens. See `polyvit/data/loading/example.py` for the two functions.

Legend: H height, W width, C = 3 RGB, V = 1 view, N tokens, P patch_dim.
"""

import numpy as np

from polyvit.config import ImageInput, ImageTask
from polyvit.data.decode import image
from polyvit.data.loading.example import AnyMedia, Waveform
from polyvit.data.transforms import patchify_image, rand_augment, random_erasing
from polyvit.errors import BadMedia


def training_arrays(
    media: AnyMedia,
    task: ImageTask,
    spec: ImageInput,
    rng: np.random.Generator,
    segment_s: tuple[float, float] = (0.0, -1.0),
) -> dict[str, np.ndarray]:
    """tokens [1, N, P] uint8 of one augmented view."""
    if isinstance(media, bytes):
        image_HWC = image.train_jpeg(media, spec.size, task.augment, rng)
    else:
        image_HWC = image.train_image(_pixels(media), spec.size, task.augment, rng)
    augment = task.augment  # draws that are off take nothing from `rng`
    if augment.randaugment_ops:
        image_HWC = rand_augment(image_HWC, augment.randaugment_ops, augment.randaugment_magnitude, rng)
    if augment.random_erasing:
        image_HWC = random_erasing(image_HWC, augment.random_erasing, rng)
    return {"tokens": patchify_image(image_HWC, spec.patch_size, spec.stride)[None]}


def evaluation_arrays(
    media: AnyMedia, task: ImageTask, spec: ImageInput, segment_s: tuple[float, float] = (0.0, -1.0)
) -> dict[str, np.ndarray]:
    """tokens [1, N, P] uint8 of the one evaluation view."""
    pixels_HWC = image.decode_image(media) if isinstance(media, bytes) else _pixels(media)
    image_HWC = image.eval_image(pixels_HWC, spec.size, task.augment)
    return {"tokens": patchify_image(image_HWC, spec.patch_size, spec.stride)[None]}


def _pixels(media: np.ndarray | Waveform) -> np.ndarray:
    if isinstance(media, Waveform):
        raise TypeError("a recording has no pixels; this task is image")
    if media.dtype != np.uint8 or media.ndim != 3 or media.shape[2] != 3 or not media.size:
        raise BadMedia(f"image: an array {media.dtype}{list(media.shape)} is not uint8 [H, W, 3]")
    return media


def preparation(task: ImageTask, spec: ImageInput) -> str:
    """Resizing of an evaluation, in words."""
    whole = task.augment.eval_resize == "square"
    how = "the whole picture resized to" if whole else "smaller side resized, centre"
    return f"RGB, {how} {' x '.join(map(str, spec.size))} (height x width, bilinear), values 0 to 255"
