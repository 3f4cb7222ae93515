"""Videos with their sound to sequences of clips. See `polyvit/data/loading/example.py` for the two functions.

Legend: S clips, T frames of one, H height, W width, C = 3 RGB, F mel bins, V views (crops). One scale, one crop,
one flip and one pair of masks are drawn for the whole sequence, as the release does: its clips stay comparable.
What of it is not the release's, `SequenceAugment` says; its random crop never takes the last row and column, ours
may.
"""

from collections.abc import Callable

import numpy as np

from polyvit.config import AudiovisualTask, SequenceInput
from polyvit.data.decode.clip_spectrogram import clip_log_mel
from polyvit.data.decode.sequence import Cut, SequencePlan, read_sequence
from polyvit.data.loading.codecs.views import bytes_only
from polyvit.data.loading.example import AnyMedia
from polyvit.data.transforms import mask_bands, resized_crop

SHORTEST, LONGEST = 8 / 7, 10 / 7
"""Smaller side over input size in training when `resize_sides` is null: 128 and 160 for 112, the release."""


def training_arrays(
    media: AnyMedia,
    task: AudiovisualTask,
    spec: SequenceInput,
    rng: np.random.Generator,
    segment_s: tuple[float, float] = (0.0, -1.0),
) -> dict[str, np.ndarray]:
    """clips [1, S, T, H, W, 3] uint8 and spectrograms [1, S, time, F] float16 of one augmented sequence."""
    augment = task.augment

    def cutter(height: int, width: int) -> Cut:
        low, high = augment.resize_sides or (round(min(spec.size) * SHORTEST), round(min(spec.size) * LONGEST))
        resized = _resized(height, width, round(rng.uniform(low, high)), spec.size)
        top, left = (int(rng.integers(r - side + 1)) for r, side in zip(resized, spec.size, strict=True))
        flip = bool(rng.random() < augment.flip)
        smooth = augment.interpolation == "bilinear"
        return lambda frame_HWC: resized_crop(frame_HWC, resized, (top, left), spec.size, flip, smooth)

    clips_STHWC, spectrograms_STF = _sequence(bytes_only(media, task), task, spec, cutter, rng, segment_s)
    if clips_STHWC is None:
        clips_STHWC = np.zeros(spec.arrays["clips"].shape, np.uint8)
    mask_bands(spectrograms_STF, augment.time_mask_frames, augment.freq_mask_bins, augment.fill, rng)
    return {"clips": clips_STHWC[None], "spectrograms": spectrograms_STF.astype(np.float16)[None]}


def evaluation_arrays(
    media: AnyMedia,
    task: AudiovisualTask,
    spec: SequenceInput,
    segment_s: tuple[float, float] = (0.0, -1.0),
) -> dict[str, np.ndarray]:
    """clips [V, S, T, H, W, 3] uint8 and spectrograms [V, S, time, F] float16: a view for each crop.

    The file is decoded once; the sound of all views is the same.
    """
    augment, places = task.augment, (0.0, 0.5, 1.0) if task.eval_crops == 3 else (0.5,)

    def cutter(height: int, width: int) -> Cut:
        resized = _resized(height, width, augment.eval_resize_side or min(spec.size), spec.size)
        corners = [_corner(resized, spec.size, place) for place in places]
        smooth = augment.interpolation == "bilinear"
        return lambda frame_HWC: np.stack(
            [resized_crop(frame_HWC, resized, corner, spec.size, False, smooth) for corner in corners]
        )

    clips_STVHWC, spectrograms_STF = _sequence(bytes_only(media, task), task, spec, cutter, None, segment_s)
    if clips_STVHWC is None:
        clips_VSTHWC = np.zeros((len(places), *spec.arrays["clips"].shape), np.uint8)
    else:
        clips_VSTHWC = np.ascontiguousarray(clips_STVHWC.transpose(2, 0, 1, 3, 4, 5))
    spectrograms_VSTF = np.repeat(spectrograms_STF.astype(np.float16)[None], len(places), axis=0)
    return {"clips": clips_VSTHWC, "spectrograms": spectrograms_VSTF}


def preparation(task: AudiovisualTask, spec: SequenceInput) -> str:
    """Times, frames, resizing and log-mel of an evaluation, in words."""
    augment = task.augment
    where = "at even steps" if augment.spacing == "spread" else "one after the other, in the middle"
    side, size = augment.eval_resize_side or min(spec.size), " x ".join(map(str, spec.size))
    return (
        f"{spec.clips} clips of {augment.clip_seconds:.4g} s, {where}; of each {spec.frames} frames by time stamp,"
        f" RGB, smaller side to {side} ({augment.interpolation}), centre crop {size}, values 0 to 255; of each the"
        f" sound of the same seconds, mono at {spec.sample_rate} Hz, n_fft = 2 * (samples //"
        f" {spec.spectrogram_frames} + 1), hop n_fft / 2, periodic Hann windows, centred, reflected at the ends,"
        f" power, {spec.mel_bins} HTK mel filters from 0 Hz, ln(mel + 1e-6), padded with {augment.fill:g} to"
        f" {spec.spectrogram_frames} frames"
    )


def _sequence(
    data: bytes,
    task: AudiovisualTask,
    spec: SequenceInput,
    cutter: Callable[[int, int], Cut],
    rng: np.random.Generator | None,
    segment_s: tuple[float, float],
) -> tuple[np.ndarray | None, np.ndarray]:
    """Frames as cut, [S, T, ...] uint8, and spectrograms_STF float32, before any mask.

    A stream that the task does not read is None, or `fill`.
    """
    augment = task.augment
    plan = SequencePlan(
        spec.clips, spec.frames, augment.clip_seconds, augment.spacing, spec.sample_rate, task.loaded_streams
    )
    frames, sound_SN = read_sequence(data, plan, cutter, rng, segment_s)
    shape = (spec.clips, spec.spectrogram_frames, spec.mel_bins)
    if sound_SN is None:
        return frames, np.full(shape, augment.fill, np.float32)
    return frames, clip_log_mel(sound_SN, spec.sample_rate, shape[1], shape[2], augment.fill)


def _resized(height: int, width: int, side: int, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) with the smaller side `side`, the other rounded down as in the release; at least `size`."""
    smaller = min(height, width)
    return max(size[0], height * side // smaller), max(size[1], width * side // smaller)


def _corner(resized: tuple[int, int], size: tuple[int, int], place: float) -> tuple[int, int]:
    """(top, left) of a crop in the middle, but along the longer side at `place` of the way; halves are rounded
    up."""
    height, width = resized
    top, left = -(-(height - size[0]) // 2), -(-(width - size[1]) // 2)
    if height > width:
        return (top if place == 0.5 else round((height - size[0]) * place)), left
    return top, (left if place == 0.5 else round((width - size[1]) * place))
