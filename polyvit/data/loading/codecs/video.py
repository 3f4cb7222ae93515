"""Clips to tokens. See `polyvit/data/loading/example.py` for the two functions.

Legend: T frames, H height, W width, C = 3 RGB, V views (clip x crop), N tokens, P patch_dim.
"""

from collections.abc import Sequence

import numpy as np

from polyvit.config import VideoInput, VideoTask
from polyvit.data.decode import video
from polyvit.data.loading.codecs.views import bytes_only, view_times
from polyvit.data.loading.example import AnyMedia
from polyvit.data.transforms import CropPosition, View, patchify_video, window_indices, window_start


def training_arrays(
    media: AnyMedia,
    task: VideoTask,
    spec: VideoInput,
    rng: np.random.Generator,
    segment_s: tuple[float, float] = (0.0, -1.0),
) -> dict[str, np.ndarray]:
    """tokens [1, N, P] uint8 of one augmented clip."""
    augment, data = task.augment, bytes_only(media, task)
    frames = video.read_frames(data, spec.frames, augment.frame_stride, rng, *segment_s, None, augment.reader)
    video_THWC = video.train_video(frames, spec.size, augment, rng)
    return {"tokens": patchify_video(video_THWC, spec.tubelet_size, spec.stride)[None]}


def evaluation_arrays(
    media: AnyMedia, task: VideoTask, spec: VideoInput, segment_s: tuple[float, float] = (0.0, -1.0)
) -> dict[str, np.ndarray]:
    """tokens [V, N, P] uint8 of every evaluation view, clips outermost; the crops of a clip are decoded once."""
    crops = crop_positions(task)
    views = [clip_tokens(media, task, spec, segment_s, time, crops) for time in view_times(task.eval_clips)]
    return {"tokens": np.concatenate(views)}


def crop_positions(task: VideoTask) -> tuple[CropPosition, ...]:
    """The centre, or three along the longer side."""
    return ("left", "centre", "right") if task.eval_crops == 3 else ("centre",)


def clip_tokens(
    media: AnyMedia,
    task: VideoTask,
    spec: VideoInput,
    segment_s: tuple[float, float],
    view: View | None,
    crops: Sequence[CropPosition],
) -> np.ndarray:
    """tokens [crops, N, P] uint8 of one clip, without augmentation.

    segment_s: (start, end) seconds of the file that count, end < 0 is its end. view: (i, n) for the i-th of n
    clips spread over the segment, None for the middle one. Frames that need no decoding count all.
    """
    augment = task.augment
    if isinstance(media, bytes):
        frames = video.read_frames(
            media, spec.frames, augment.frame_stride, None, *segment_s, view, augment.reader
        )
    else:
        frames = list(_window(_frames(media), spec.frames, augment.frame_stride, view))
    clips = [video.eval_video(frames, spec.size, augment, crop) for crop in crops]
    return np.stack([patchify_video(clip_THWC, spec.tubelet_size, spec.stride) for clip_THWC in clips])


def _frames(media: AnyMedia) -> np.ndarray:
    """video_THWC. Raises TypeError for anything else."""
    if not isinstance(media, np.ndarray):
        raise TypeError("a recording has no frames; this task is video")
    if media.dtype != np.uint8 or media.ndim != 4 or media.shape[3] != 3 or not media.size:
        raise TypeError(f"pixels {media.dtype}{list(media.shape)} are not uint8 [T, H, W, 3]; this task is video")
    return media


def _window(video_THWC: np.ndarray, frames: int, stride: int, view: View | None) -> np.ndarray:
    """The frames that `read_frames` takes out of a file with these."""
    start = window_start(len(video_THWC), frames, stride, None, view)
    return video_THWC[window_indices(len(video_THWC), frames, stride, start)]


def preparation(task: VideoTask, spec: VideoInput) -> str:
    """Frames and resizing of an evaluation, in words."""
    side = task.augment.resize_side or round(min(spec.size) * 256 / 224)
    return (
        f"{spec.frames} frames, every {task.augment.frame_stride}-th, from the middle; RGB, smaller side to "
        f"{side} (bilinear), centre crop {' x '.join(map(str, spec.size))}, values 0 to 255"
    )
