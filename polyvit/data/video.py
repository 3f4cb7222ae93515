"""Video bytes to a clip, and a clip to the model's size. The only file that imports decord.

In: the bytes of a video file. Out: video_THWC, uint8 RGB; after `train_video` or `eval_video` H, W = `size`.

Two readers, the same frames: decord, which seeks to the frames that are wanted, and PyAV, which reads from
the beginning. decord 0.6 kills the whole process on files whose index and data disagree (a segmentation
fault in its constructor, met in a seventh of randomly damaged files), and where time stamps jump the frames
it gives depend on the timing of its threads. So PyAV walks the packets first (about 1 ms), and decord is given
whole MP4, MOV, MKV and WebM files of an even frame rate only.
"""

import io
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import av
import cv2
import decord
import numpy as np

from polyvit.data.augment import (
    CropPosition,
    View,
    centre_cut,
    draw_colour_jitter,
    drop_colours,
    jitter_colours,
    jittered_box,
    window_indices,
    window_start,
)
from polyvit.data.decoding import bad_media
from polyvit.data.image import smaller_side_size
from polyvit.errors import BadMedia
from polyvit.task_config import VideoAugment

MAX_CLIP_PIXELS = 2**28
"""Frames * height * width of one clip as read: 32 frames of 4K, 805 MB."""
LEAST_SHARE = 0.9
"""A file that holds less than this share of the frames its index promises is refused as cut short."""
RESIZE_RATIO = 256 / 224
"""Smaller side over input size when `resize_side` is null."""


# A damaged file is reported once, as BadMedia; FFmpeg's own lines on stderr would drown the log.
decord.logging.set_level(decord.logging.QUIET)


def read_clip(
    data: bytes,
    num_frames: int,
    frame_stride: int,
    rng: np.random.Generator | None = None,
    start_s: float = 0.0,
    end_s: float = -1.0,
    view: View | None = None,
) -> np.ndarray:
    """`num_frames` frames, `frame_stride` apart, as video_THWC, uint8 RGB.

    The window lies at random with `rng`; else `view` (i, n) is the i-th of n spread evenly; else the
    middle (`augment.window_start`). A short video starts again at its end. Only frames shown in
    [start_s, end_s) seconds after the first count; end_s < 0 is the end of the file. A rotation flag
    (phones) is applied. Frames are counted as stored, whatever their rate.
    Raises BadMedia: no video stream, nothing decodable, an empty segment, or a file cut short, that is with
    less than 90 % of the frames that its index promises. With more, what is there is used; formats
    without a frame count (MKV, WebM, MPEG-TS) are used as far as they go.
    """
    if not data:
        raise BadMedia("video: the file is empty")
    with bad_media("video"):
        stream = _probe(data)
    first, last = _segment(stream.times_s, start_s, end_s)
    start = window_start(last - first, num_frames, frame_stride, rng, view)
    indices = first + window_indices(last - first, num_frames, frame_stride, start)
    if num_frames * stream.height * stream.width > MAX_CLIP_PIXELS:
        raise BadMedia(f"video: frames of {stream.width} x {stream.height} pixels are too large")
    wanted, place = np.unique(indices, return_inverse=True)
    with bad_media("video"):
        frames_THWC = _read_frames(data, wanted.tolist(), stream)
    return frames_THWC if np.array_equal(wanted, indices) else frames_THWC[place]


class _Stream(NamedTuple):
    """What the packets of the first video stream say."""

    width: int
    height: int
    times_s: np.ndarray
    """When each frame is shown, seconds after the first, ascending."""
    sound: bool
    """Whether decord may open it."""


def _probe(data: bytes) -> _Stream:
    """Walk the packets without decoding them."""
    with av.open(io.BytesIO(data), "r") as container:
        if not container.streams.video:
            raise BadMedia("video: no video stream")
        stream = container.streams.video[0]
        counts, pts, whole = Counter[int](), [], True
        try:
            # All streams: decord's constructor trips over damaged sound too.
            for packet in container.demux():
                if packet.size:
                    counts[packet.stream.index] += 1
                    whole &= not packet.is_corrupt
                    if packet.stream.index == stream.index:
                        pts.append(packet.pts)
        except av.error.FFmpegError:
            whole = False
        if len(pts) < LEAST_SHARE * stream.frames or not pts:
            raise BadMedia(f"video: cut short: {len(pts)} of {stream.frames} frames are there")
        ticks = [p for p in pts if p is not None]
        if len(ticks) == len(pts) and stream.time_base is not None:
            times_s = (np.sort(ticks) - min(ticks)) * float(stream.time_base)
        else:
            times_s, whole = np.arange(len(pts)) / float(stream.average_rate or 25), False
        # An index of 0 packets says nothing: MKV and fragmented MP4 have none.
        whole &= all(s.frames in (0, counts[s.index]) for s in container.streams)
        steps_s = np.diff(times_s)
        whole &= len(steps_s) < 2 or bool(np.ptp(steps_s) <= 0.5 * np.median(steps_s))
        context = stream.codec_context
        known = container.format.name.startswith(("mov,", "matroska,"))
        sound = known and whole and context.pix_fmt is not None and context.width > 0 < context.height
        return _Stream(context.width, context.height, times_s, sound)


def _segment(times_s: np.ndarray, start_s: float, end_s: float) -> tuple[int, int]:
    """First frame, and the one after the last, of [start_s, end_s)."""
    first = int(np.searchsorted(times_s, start_s - 1e-6))
    last = int(np.searchsorted(times_s, end_s - 1e-6)) if end_s >= 0 else len(times_s)
    if last <= first:
        raise BadMedia(f"video: no frame from {start_s:g} s to {end_s:g} s; it lasts {times_s[-1]:.1f} s")
    return first, last


def _read_frames(data: bytes, wanted: Sequence[int], stream: _Stream) -> np.ndarray:
    if stream.sound:
        try:
            # One thread: clips are decoded in parallel by processes; more threads cost CPU (speed notes 2).
            reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
            if len(reader) == len(stream.times_s):
                return reader.get_batch(wanted).asnumpy()
        except Exception:
            # A damaged packet ends decord's decoder; PyAV reads on behind it.
            return _read_with_pyav(data, wanted)
    return _read_with_pyav(data, wanted)


def _read_with_pyav(data: bytes, wanted: Sequence[int]) -> np.ndarray:
    """Decode from the beginning to the last frame wanted.

    Damage can cost frames: where a tenth or less is lost the last good frame stands for those behind it.
    """
    keep, frames, count = set(wanted), [], 0
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        frame: av.VideoFrame | None = None
        try:
            for frame in container.decode(stream):
                if count in keep:
                    frames.append(_upright(frame))
                count += 1
                if count > wanted[-1]:
                    break
        except av.error.FFmpegError:
            pass
    if frame is None or count < LEAST_SHARE * (wanted[-1] + 1):
        raise BadMedia(f"video: damaged: {count} of {wanted[-1] + 1} frames can be decoded")
    frames += [_upright(frame)] * (len(wanted) - len(frames))
    return np.stack(frames)


def _upright(frame: av.VideoFrame) -> np.ndarray:
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


def train_video(
    video_THWC: np.ndarray, size: tuple[int, int], augment: VideoAugment, rng: np.random.Generator
) -> np.ndarray:
    """Resize, scale jitter, random crop to `size`, flip, colours: one draw for the whole clip.

    The crop's box is found in source pixels and only that is resized, once, bilinear; the reference
    resizes twice and crops then. Colour changes come with probability `colour_jitter`, grey with
    `colour_drop`, in that order (`augment.jitter_colours` says how uint8 differs from its floats).
    """
    height, width = video_THWC.shape[1:3]
    scale_h = scale_w = _resize_side(size, augment) / min(height, width)
    if augment.scale_jitter is not None:
        scale_h *= rng.uniform(*augment.scale_jitter)
        scale_w *= rng.uniform(*augment.scale_jitter)
    box = jittered_box(height, width, size, (scale_h, scale_w), rng)
    flip, jitter, drop = rng.random(3) < (augment.flip, augment.colour_jitter, augment.colour_drop)
    video_THWC = _resize_frames(box.cut(video_THWC), size)
    if flip:
        video_THWC = video_THWC[:, :, ::-1]
    if jitter:
        video_THWC = jitter_colours(video_THWC, draw_colour_jitter(rng))
    return drop_colours(video_THWC) if drop else video_THWC


def eval_video(
    video_THWC: np.ndarray, size: tuple[int, int], augment: VideoAugment, position: CropPosition = "centre"
) -> np.ndarray:
    """Smaller side to `resize_side`, then the crop of `size` in the centre, or at an end of the longer side.

    "left" is the top and "right" the bottom of an upright video.
    """
    video_THWC = centre_cut(video_THWC, longest=4 * max(size) / min(size))
    height, width = smaller_side_size(video_THWC.shape[1:3], _resize_side(size, augment), size)
    video_THWC = _resize_frames(video_THWC, (height, width))
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    if position != "centre":
        end = position == "right"
        if height > width:
            top = (height - size[0]) * end
        else:
            left = (width - size[1]) * end
    return video_THWC[:, top : top + size[0], left : left + size[1]]


def _resize_side(size: tuple[int, int], augment: VideoAugment) -> int:
    return augment.resize_side or round(min(size) * RESIZE_RATIO)


def _resize_frames(video_THWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if video_THWC.shape[1:3] == size:
        return video_THWC
    resized_THWC = np.empty((len(video_THWC), *size, 3), np.uint8)
    for source_HWC, target_HWC in zip(video_THWC, resized_THWC, strict=True):
        cv2.resize(source_HWC, size[::-1], dst=target_HWC, interpolation=cv2.INTER_LINEAR)
    return resized_THWC
