"""Array transforms behind the decoders. Every random draw comes from a passed generator.

In: arrays as decoded. Out: arrays, or the numbers (boxes, starts) that say what to cut.
Shapes: H height, W width, C = 3 RGB, T frames, F mel bins; video_THWC, spectrogram_TF.
Reading order: generator, windows in time, crops, colour, SpecAugment. Mixup is in `polyvit.objectives.losses`.
"""

import hashlib
import math
from typing import Any, Literal, NamedTuple, cast

import cv2
import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike

from polyvit.config import AudioAugment

BRIGHTNESS = 32.0
"""Largest shift, in grey levels of 255. This and the next three: dmvr `color_default_augm`, as in scenic."""
SATURATION = (0.6, 1.4)
CONTRAST = (0.6, 1.4)
HUE = 0.2
"""Largest turn, in full turns of the hue circle."""
CROP_ATTEMPTS = 100
"""TF's default `max_attempts` of sample_distorted_bounding_box."""

View = tuple[int, int]
"""(i, n): the i-th of n windows spread evenly over the recording, i from 0."""
CropPosition = Literal["left", "centre", "right"]
"""Where along the longer side of a clip its crop lies."""


def example_rng(seed: int, task: str, epoch: int, key: str) -> np.random.Generator:
    """The generator of one example in one epoch: the same draws on any machine, rank and worker.

    Philox keyed by the 128-bit BLAKE2b of the four fields, so that it costs 10 us and no state is kept.
    """
    fields = f"{seed}\0{task}\0{epoch}\0{key}".encode(errors="surrogateescape")
    digest = hashlib.blake2b(fields, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(cast("Any", _Key(digest))))


class _Key(ISeedSequence):
    """Philox's key, given as its seed: `Philox(key=...)` first asks the system for entropy, and throws it away."""

    def __init__(self, digest: bytes) -> None:
        self.digest = digest

    def generate_state(self, n_words: int, dtype: DTypeLike = np.uint64) -> np.ndarray:
        return np.frombuffer(self.digest, "<u8")[:n_words].astype(dtype)


# ---------------------------------------------------------------------------------------- windows in time


def window_start(
    length: int, count: int, stride: int, rng: np.random.Generator | None = None, view: View | None = None
) -> int:
    """First element of a window of `count` elements, `stride` apart, in a sequence of `length`.

    With `rng`: uniform in [0, max(length - (count - 1) * stride, 1)). With `view` (i, n): the i-th of
    int(linspace(0, max(0, length - count * stride), n)). With neither: the middle,
    max(0, (length - count * stride) // 2). Source: dmvr `sample_sequence`, `sample_linspace_sequence`.
    """
    if rng is not None:
        return int(rng.integers(max(length - (count - 1) * stride, 1)))
    room = max(0, length - count * stride)
    if view is None:
        return room // 2
    i, n = view
    if not 0 <= i < n:
        raise ValueError(f"view {view}: the first number must be from 0 to {n - 1}")
    return int(np.linspace(0, room, n)[i])


def window_indices(length: int, count: int, stride: int, start: int) -> np.ndarray:
    """The window's `count` indices; past its end a short sequence starts again (dmvr)."""
    return (start + stride * np.arange(count)) % length


# -------------------------------------------------------------------------------------------------- crops


class Box(NamedTuple):
    """A rectangle of whole pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, array: np.ndarray) -> np.ndarray:
        """The rectangle of `array` [..., H, W, C], without a copy."""
        return array[..., self.top : self.top + self.height, self.left : self.left + self.width, :]


def inception_box(
    height: int, width: int, area: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """A random crop of a picture of `height` x `width` pixels: `area` its share, `ratio` its width / height.

    As TensorFlow's sample_distorted_bounding_box with the whole picture as its box and
    min_object_covered 0: the ratio is uniform, then the height is uniform between those that the areas
    allow, then the place. After 100 failures the whole picture. A place never touches the far edge
    unless it fills the side: TF draws it below (side - crop), and so do we.
    """
    low, high = area[0] * height * width, area[1] * height * width
    for _ in range(CROP_ATTEMPTS):
        aspect = rng.uniform(*ratio)
        size = _crop_size(height, width, (low, high), aspect, rng)
        if size is not None:
            crop_h, crop_w = size
            top = int(rng.integers(height - crop_h)) if crop_h < height else 0
            left = int(rng.integers(width - crop_w)) if crop_w < width else 0
            return Box(top, left, crop_h, crop_w)
    return Box(0, 0, height, width)


def _crop_size(
    height: int, width: int, areas: tuple[float, float], aspect: float, rng: np.random.Generator
) -> tuple[int, int] | None:
    low, high = areas
    crop_h = round(math.sqrt(low / aspect))
    tallest = round(math.sqrt(high / aspect))
    if round(tallest * aspect) > width:
        tallest = int((width + 0.5 - 1e-7) / aspect)
        tallest -= round(tallest * aspect) > width
    tallest = min(tallest, height)
    crop_h = crop_h + int(rng.integers(tallest - crop_h + 1)) if crop_h < tallest else tallest
    # Rounding may have left the range of areas by one row: TF then tries one row more, or one less.
    if crop_h * round(crop_h * aspect) < low:
        crop_h += 1
    if crop_h * round(crop_h * aspect) > high:
        crop_h -= 1
    crop_w = round(crop_h * aspect)
    fits = 0 < crop_h <= height and 0 < crop_w <= width
    return (crop_h, crop_w) if fits and low <= crop_h * crop_w <= high else None


def jittered_box(
    height: int,
    width: int,
    size: tuple[int, int],
    scale: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """Where a random crop of `size` lies once a picture has been scaled by (height, width) factors.

    Equal to scaling first and cropping then, except that the box is rounded to whole source pixels (a
    shift of at most half a pixel), so that only what is kept is resized.
    """
    spans = []
    for side, out, factor in zip((height, width), size, scale, strict=True):
        scaled = max(out, int(side * factor))
        start = int(rng.integers(scaled - out + 1))
        first = min(round(start * side / scaled), side - 1)
        spans.append((first, max(1, round((start + out) * side / scaled) - first)))
    (top, crop_h), (left, crop_w) = spans
    return Box(top, left, crop_h, crop_w)


def centre_cut(array: np.ndarray, longest: float) -> np.ndarray:
    """The middle of `array` [..., H, W, C] with its longer side at most `longest` times the shorter.

    Keeps the resizing of a 700 x 6 picture from allocating gigabytes that a centre crop throws away.
    """
    height, width = array.shape[-3:-1]
    limit = max(1, math.ceil(min(height, width) * longest))
    # Cut the same number from both ends, so that the centre stays where it was.
    top, left = max(0, (height - limit) // 2), max(0, (width - limit) // 2)
    return array[..., top : height - top, left : width - left, :]


def resized_crop(
    frame_HWC: np.ndarray,
    resized: tuple[int, int],
    corner: tuple[int, int],
    size: tuple[int, int],
    flip: bool = False,
    smooth: bool = False,
) -> np.ndarray:
    """A crop of a resized frame, without resizing what the crop leaves out.

    resized: (height, width) of the whole frame after resizing. corner: (top, left) of the crop in it. size: of the
    crop. flip: mirrored. smooth: bilinear in place of nearest, whose pixel i is pixel floor(i * side / resized) of
    the source, as torch's.
    """
    if smooth:
        height, width = frame_HWC.shape[:2]
        (top, left), (crop_h, crop_w) = corner, size
        scale_h, scale_w = height / resized[0], width / resized[1]
        # Pixel centres: x of the crop is (x + left + 0.5) * scale - 0.5 of the source.
        turn = np.array(
            [[scale_w, 0, (left + 0.5) * scale_w - 0.5], [0, scale_h, (top + 0.5) * scale_h - 0.5]], np.float64
        )
        inverse = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        cut_HWC = cv2.warpAffine(frame_HWC, turn, (crop_w, crop_h), flags=inverse, borderMode=cv2.BORDER_REPLICATE)
        return cut_HWC[:, ::-1] if flip else cut_HWC
    rows, columns = (
        ((first + np.arange(length)) * side) // whole
        for first, length, side, whole in zip(corner, size, frame_HWC.shape[:2], resized, strict=True)
    )
    cut: np.ndarray = frame_HWC[rows[:, None], columns[::-1] if flip else columns]
    return cut


# ------------------------------------------------------------------------------------------------- colour


class ColourJitter(NamedTuple):
    """One draw of colour changes, for a whole clip."""

    brightness: float
    """Added, in grey levels of 255."""
    saturation: float
    contrast: float
    hue: float
    """Turn of the hue circle, in full turns."""


def draw_colour_jitter(rng: np.random.Generator) -> ColourJitter:
    """Uniform draws from the module's ranges."""
    return ColourJitter(
        brightness=rng.uniform(-BRIGHTNESS, BRIGHTNESS),
        saturation=rng.uniform(*SATURATION),
        contrast=rng.uniform(*CONTRAST),
        hue=rng.uniform(-HUE, HUE),
    )


def jitter_colours(video_THWC: np.ndarray, jitter: ColourJitter) -> np.ndarray:
    """Brightness, saturation, contrast, hue, in this order, on every frame alike. uint8 in and out.

    The arithmetic is float; the result is clipped to [0, 255] and rounded to the nearest grey level, where
    the reference keeps floats (a difference of at most half a level). Contrast pulls each channel of each
    frame towards its mean, as tf.image.adjust_contrast.
    """
    return np.stack([_jitter_frame(frame_HWC, jitter) for frame_HWC in video_THWC])


def _jitter_frame(frame_HWC: np.ndarray, jitter: ColourJitter) -> np.ndarray:
    # OpenCV's float HSV: hue in degrees (it wraps by itself), saturation in [0, 1], any scale of value. Below
    # zero its hue would turn over, so black is where brightness and contrast stop.
    brighter = np.maximum(np.arange(256) + jitter.brightness, 0).astype(np.float32)
    hsv = cv2.cvtColor(cv2.LUT(frame_HWC, brighter), cv2.COLOR_RGB2HSV)
    np.minimum(hsv[..., 1] * np.float32(jitter.saturation), np.float32(1), out=hsv[..., 1])
    pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    mean_C = np.array(cv2.mean(pixels)[:3])
    scale_shift = np.column_stack([np.eye(3) * jitter.contrast, mean_C * (1 - jitter.contrast)])
    pixels = cv2.threshold(cv2.transform(pixels, scale_shift), 0, 0, cv2.THRESH_TOZERO)[1]
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    np.add(hsv[..., 0], np.float32(360 * jitter.hue), out=hsv[..., 0])
    return cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def drop_colours(video_THWC: np.ndarray) -> np.ndarray:
    """Every frame grey, as three equal channels: 0.299 R + 0.587 G + 0.114 B. uint8 in and out."""
    frames, height, width, _ = video_THWC.shape
    tall_HWC = np.ascontiguousarray(video_THWC).reshape(frames * height, width, 3)
    grey = cv2.cvtColor(tall_HWC, cv2.COLOR_RGB2GRAY)
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB).reshape(video_THWC.shape)


# ---------------------------------------------------------------------------------------- sound, minibatches


def spec_augment(spectrogram_TF: np.ndarray, augment: AudioAugment, rng: np.random.Generator) -> np.ndarray:
    """Bands of frequencies and of frames set to 0 in a copy.

    A width is int(most * u), u uniform in [0, 1), and at most the whole side; its place is uniform. The
    spectrogram is normalised already, so 0 means `AudioInput.mean`; with the official mean 0 and std 1,
    where nothing is normalised, it is a log-mel of 0. Source: lingvo's SpectrumAugmenter as
    configured in scenic (facts: its time masks are switched off by their ratio of 0).
    """
    masked_TF = spectrogram_TF.copy()
    frames, bins = masked_TF.shape
    for _ in range(augment.freq_mask_count):
        start, width = _draw_band(bins, augment.freq_mask_bins, rng)
        masked_TF[:, start : start + width] = 0
    for _ in range(augment.time_mask_count):
        start, width = _draw_band(frames, augment.time_mask_frames, rng)
        masked_TF[start : start + width] = 0
    return masked_TF


def mask_bands(
    spectrograms_STF: np.ndarray, frames: int, bins: int, fill: float, rng: np.random.Generator
) -> None:
    """Set one stretch of frames and one band of bins to `fill`, in place and the same in all spectrograms.

    frames, bins: most of each; drawn as in `spec_augment`, the band of bins first. Source: avbert's loader, whose
    masks are torchaudio's.
    """
    start, width = _draw_band(spectrograms_STF.shape[-1], bins, rng)
    spectrograms_STF[..., start : start + width] = fill
    start, width = _draw_band(spectrograms_STF.shape[-2], frames, rng)
    spectrograms_STF[..., start : start + width, :] = fill


def _draw_band(side: int, most: int, rng: np.random.Generator) -> tuple[int, int]:
    width = min(int(most * rng.random()), side)
    return int(rng.integers(side - width + 1)), width
