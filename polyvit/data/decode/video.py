"""Video bytes to a clip, and a clip to the model's size. The only file that imports decord.

In: the bytes of a video file. Out: frames, uint8 RGB, as a list of frame_HWC (no copy) or as video_THWC; after
`train_video` or `eval_video` H, W = `size`.

PyAV walks the packets of a file first (a millisecond at most), which tells when each frame is shown and where
decoding can begin. Of a whole MP4, MOV, MKV or WebM the decoder is then given the packets from the last key frame
before the window to the window's end; H.264 frames that are neither wanted nor referred to are skipped, undecoded.
All else is read from the beginning. The frames are the same, and so are decord's (`VideoAugment.reader`), which
seeks by itself. decord 0.6 kills the whole process on files whose index and data disagree (a segmentation fault in
its constructor, met in a seventh of randomly damaged files), and where time stamps jump its frames depend on the
timing of its threads: it is given whole files of an even frame rate only.
"""

import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from polyvit.config import VideoAugment, VideoReader
from polyvit.data.decode.containers import bad_media, moving_pictures, open_container
from polyvit.data.decode.image import smaller_side_size
from polyvit.data.transforms import (
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
from polyvit.errors import BadMedia

MAX_CLIP_PIXELS = 2**28
"""Frames * height * width of one clip as read: 32 frames of 4K, 805 MB."""
LEAST_SHARE = 0.9
"""A file that holds less than this share of the frames its index promises is refused as cut short."""
RESIZE_RATIO = 256 / 224
"""Smaller side over input size when `resize_side` is null."""
Take = Callable[[np.ndarray], np.ndarray]
"""From a whole frame_HWC, whose memory may not be kept, to what is kept of it."""


def read_clip(
    data: bytes,
    num_frames: int,
    frame_stride: int,
    rng: np.random.Generator | None = None,
    start_s: float = 0.0,
    end_s: float = -1.0,
    view: View | None = None,
    reader: VideoReader = "pyav",
) -> np.ndarray:
    """`read_frames` as one array, video_THWC."""
    return np.stack(read_frames(data, num_frames, frame_stride, rng, start_s, end_s, view, reader))


def read_frames(
    data: bytes,
    num_frames: int,
    frame_stride: int,
    rng: np.random.Generator | None = None,
    start_s: float = 0.0,
    end_s: float = -1.0,
    view: View | None = None,
    reader: VideoReader = "pyav",
) -> list[np.ndarray]:
    """`num_frames` frames, `frame_stride` apart, each frame_HWC, uint8 RGB, all of one size.

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
        container = open_container(data)
    with container:
        with bad_media("video"):
            packets = walk(container)
        first, last = segment(packets.times_s, start_s, end_s)
        start = window_start(last - first, num_frames, frame_stride, rng, view)
        indices = first + window_indices(last - first, num_frames, frame_stride, start)
        if num_frames * packets.height * packets.width > MAX_CLIP_PIXELS:
            raise BadMedia(f"video: frames of {packets.width} x {packets.height} pixels are too large")
        wanted, place = np.unique(indices, return_inverse=True)
        with bad_media("video"):
            frames = _read(data, wanted, container, packets, reader)
    if len({frame_HWC.shape for frame_HWC in frames}) > 1:
        raise BadMedia("video: its frames are of several sizes")
    return [frames[i] for i in place]


class Packets(NamedTuple):
    """The packets of the first video stream and what they say, and those of the first sound track."""

    width: int
    height: int
    stored: list[av.Packet]
    """In the order of decoding."""
    ticks: np.ndarray
    """Time stamp of each frame, ascending."""
    times_s: np.ndarray
    """When each frame is shown, seconds after the first, ascending."""
    whole: bool
    """An undamaged file of a known format, with a time stamp of its own for every frame."""
    even: bool
    """Whole, and of an even frame rate."""
    zero_s: float
    """The first frame's time stamp in seconds, which the sound is placed by."""
    sound: list[av.Packet]
    """Of the first sound track, in the order of the file."""


def walk(container: InputContainer) -> Packets:
    """All packets of a file, without decoding them."""
    if not (streams := moving_pictures(container)):
        raise BadMedia("video: no video stream")
    stream = streams[0]
    counts, stored, whole = Counter[int](), [], True
    sound: list[av.Packet] = []
    sound_index = container.streams.audio[0].index if container.streams.audio else -1
    try:
        # All streams: decord's constructor trips over damaged sound too.
        for packet in container.demux():
            if packet.size:
                counts[packet.stream_index] += 1
                whole &= not packet.is_corrupt
                if packet.stream_index == stream.index:
                    stored.append(packet)
                elif packet.stream_index == sound_index:
                    sound.append(packet)
    except av.error.FFmpegError:
        whole = False
    promised = _promised(container, stream)
    if _places(container, stored) < LEAST_SHARE * promised or not stored:
        raise BadMedia(f"video: cut short: {len(stored)} of {promised} frames are there")
    # Packets before an edit list's start are decoded but never shown.
    shown = [packet.pts for packet in stored if not packet.is_discard]
    ticks = np.sort([pts for pts in shown if pts is not None])
    zero_s = 0.0
    if len(ticks) == len(shown) > 0 and stream.time_base is not None:
        times_s, zero_s = (ticks - ticks[0]) * float(stream.time_base), float(ticks[0] * stream.time_base)
    else:
        times_s, whole = np.arange(len(stored)) / float(stream.average_rate or 25), False
    # An index of 0 packets says nothing: MKV and fragmented MP4 have none.
    whole &= all(s.frames in (0, counts[s.index]) for s in container.streams)
    context = stream.codec_context
    whole &= container.format.name.startswith(("mov,", "matroska,"))
    whole &= context.pix_fmt is not None and context.width > 0 < context.height
    whole &= bool((np.diff(ticks) > 0).all())
    steps_s = np.diff(times_s)
    first = stream.index == container.streams.video[0].index  # decord would take the cover
    even = whole and first and (len(steps_s) < 2 or bool(np.ptp(steps_s) <= 0.5 * np.median(steps_s)))
    return Packets(context.width, context.height, stored, ticks, times_s, whole, even, zero_s, sound)


def _promised(container: InputContainer, stream: VideoStream) -> int:
    """Frames that should be there by the file's index; 0 where it has none. An edit list may show only some."""
    if container.format.name.startswith("mov,") and stream.duration and stream.time_base and stream.average_rate:
        return min(stream.frames, math.ceil(stream.duration * stream.time_base * stream.average_rate))
    return stream.frames


def _places(container: InputContainer, stored: list[av.Packet]) -> int:
    """Frames of the index that the packets stand for: an AVI counts the frames that are shown again, too."""
    ticks = [packet.dts for packet in stored if packet.dts is not None]
    if container.format.name == "avi" and ticks:
        return max(len(stored), max(ticks) - min(ticks) + 1)
    return len(stored)


def segment(times_s: np.ndarray, start_s: float, end_s: float) -> tuple[int, int]:
    """First frame, and the one after the last, of [start_s, end_s)."""
    first = int(np.searchsorted(times_s, start_s - 1e-6))
    last = int(np.searchsorted(times_s, end_s - 1e-6)) if end_s >= 0 else len(times_s)
    if last <= first:
        raise BadMedia(f"video: no frame from {start_s:g} s to {end_s:g} s; it lasts {times_s[-1]:.1f} s")
    return first, last


def _read(
    data: bytes, wanted: np.ndarray, container: InputContainer, packets: Packets, reader: VideoReader
) -> list[np.ndarray]:
    """The frames of the ascending numbers `wanted`."""
    frames: list[np.ndarray] | None = None
    if reader == "decord" and packets.even:
        frames = _read_with_decord(data, wanted.tolist(), len(packets.ticks))
    elif reader == "pyav":
        return read_numbers(data, wanted, container, packets, _as_it_is)
    return _read_from_start(data, wanted.tolist(), _as_it_is) if frames is None else frames


def _as_it_is(frame_HWC: np.ndarray) -> np.ndarray:
    return frame_HWC


def read_numbers(
    data: bytes, wanted: np.ndarray, container: InputContainer, packets: Packets, take: Take
) -> list[np.ndarray]:
    """`take` of the frames of the ascending numbers `wanted`, each decoded once; none of the others is kept."""
    frames = _read_wanted(container, packets, wanted, take) if packets.whole else None
    return _read_from_start(data, wanted.tolist(), take) if frames is None else frames


def _read_wanted(
    container: InputContainer, packets: Packets, wanted: np.ndarray, take: Take
) -> list[np.ndarray] | None:
    """Decode from the last key frame before each wanted frame, and only what those need; None if it fails."""
    codec = moving_pictures(container)[0].codec_context
    codec.thread_count = 1  # clips are decoded in parallel by processes; more threads cost CPU (speed notes 2)
    # In H.264 no frame ever refers to one of nal_ref_idc 0. Other codecs' layers are not as simple.
    skips = codec.name == "h264"
    ticks, colours = packets.ticks[wanted].tolist(), VideoReformatter()
    frames: dict[int, np.ndarray] = {}
    try:
        for run, missing in _runs(packets.stored, ticks):
            for packet in [*run, None]:
                if skips and packet is not None:
                    codec.skip_frame = "DEFAULT" if packet.pts in missing else "NONREF"
                for frame in codec.decode(packet):
                    if frame.pts in missing and not frame.is_corrupt:
                        missing.remove(frame.pts)
                        frames[frame.pts] = take(upright(frame, colours))
                if not missing:
                    break
            if missing:
                return None
            codec.flush_buffers()
    except av.error.FFmpegError:
        return None
    return [frames[tick] for tick in ticks]


def _runs(stored: Sequence[av.Packet], ticks: Sequence[int]) -> Iterator[tuple[list[av.Packet], set[int]]]:
    """(packets from a key frame to the last that the ticks of its group need, these ticks), in order.

    What is shown before a key frame but stored behind it belongs to the group before.
    """
    keys = [i for i, packet in enumerate(stored) if packet.is_keyframe and packet.pts is not None]
    shown = np.maximum.accumulate([stored[i].pts or 0 for i in keys]) if keys else np.zeros(0, np.int64)
    places = {packet.pts: i for i, packet in enumerate(stored)}
    groups: dict[int, list[int]] = {}
    for tick in ticks:
        group = int(np.searchsorted(shown, tick, side="right")) - 1
        groups.setdefault(keys[group] if group >= 0 else 0, []).append(tick)
    for first, some in groups.items():
        yield list(stored[first : max(places[tick] for tick in some) + 1]), set(some)


def _read_with_decord(data: bytes, wanted: Sequence[int], length: int) -> list[np.ndarray] | None:
    try:
        reader = _decord().VideoReader(io.BytesIO(data), num_threads=1)
        return list(reader.get_batch(wanted).asnumpy()) if len(reader) == length else None
    except Exception:
        # A damaged packet ends decord's decoder, and PyAV reads on behind it. A model trained with decord may also
        # be used where decord is not installed.
        return None


def _decord() -> ModuleType:
    import decord

    # A damaged file is reported once, as BadMedia; FFmpeg's own lines on stderr would drown the log.
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _read_from_start(data: bytes, wanted: Sequence[int], take: Take) -> list[np.ndarray]:
    """Decode from the beginning to the last frame wanted.

    Damage can cost frames: where a tenth or less is lost the last good frame stands for those behind it.
    """
    keep, frames, count, colours = set(wanted), [], 0, VideoReformatter()
    with open_container(data) as container:
        stream = moving_pictures(container)[0]
        stream.codec_context.thread_count = 1
        frame: av.VideoFrame | None = None
        try:
            for frame in container.decode(stream):
                if count in keep:
                    frames.append(take(upright(frame, colours)))
                count += 1
                if count > wanted[-1]:
                    break
        except av.error.FFmpegError:
            pass
        if frame is None or count < LEAST_SHARE * (wanted[-1] + 1):
            raise BadMedia(f"video: damaged: {count} of {wanted[-1] + 1} frames can be decoded")
        if len(frames) < len(wanted):
            frames += [take(upright(frame, colours))] * (len(wanted) - len(frames))
        return frames


def upright(frame: av.VideoFrame, colours: VideoReformatter) -> np.ndarray:
    """frame_HWC: a view of the converted frame's memory, whose rows may be padded."""
    plane = colours.reformat(frame, format="rgb24").planes[0]
    rows_HB = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    return np.rot90(rows_HB[:, : 3 * plane.width].reshape(plane.height, plane.width, 3), frame.rotation // 90)


def train_video(
    video: Sequence[np.ndarray] | np.ndarray,
    size: tuple[int, int],
    augment: VideoAugment,
    rng: np.random.Generator,
) -> np.ndarray:
    """Resize, scale jitter, random crop to `size`, flip, colours: one draw for the whole clip. `video` is a
    list of frames, or video_THWC.

    The crop's box is found in source pixels and only that is resized, once, bilinear; the reference
    resizes twice and crops then. Colour changes come with probability `colour_jitter`, grey with
    `colour_drop`, in that order (`augment.jitter_colours` says how uint8 differs from its floats).
    """
    height, width = video[0].shape[:2]
    scale_h = scale_w = video_eval_side(size, augment) / min(height, width)
    if augment.scale_jitter is not None:
        scale_h *= rng.uniform(*augment.scale_jitter)
        scale_w *= rng.uniform(*augment.scale_jitter)
    box = jittered_box(height, width, size, (scale_h, scale_w), rng)
    flip, jitter, drop = rng.random(3) < (augment.flip, augment.colour_jitter, augment.colour_drop)
    video_THWC = _resize_frames([box.cut(frame_HWC) for frame_HWC in video], size, bool(flip))
    if jitter:
        video_THWC = jitter_colours(video_THWC, draw_colour_jitter(rng))
    return drop_colours(video_THWC) if drop else video_THWC


def eval_video(
    video: Sequence[np.ndarray] | np.ndarray,
    size: tuple[int, int],
    augment: VideoAugment,
    position: CropPosition = "centre",
) -> np.ndarray:
    """Smaller side to `resize_side`, then the crop of `size` in the centre, or at an end of the longer side.

    "left" is the top and "right" the bottom of an upright video. `video` is a list of frames, or video_THWC.
    """
    frames = [centre_cut(frame_HWC, longest=4 * max(size) / min(size)) for frame_HWC in video]
    height, width = smaller_side_size(frames[0].shape[:2], video_eval_side(size, augment), size)
    video_THWC = _resize_frames(frames, (height, width))
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    if position != "centre":
        end = position == "right"
        if height > width:
            top = (height - size[0]) * end
        else:
            left = (width - size[1]) * end
    return video_THWC[:, top : top + size[0], left : left + size[1]]


def video_eval_side(size: tuple[int, int], augment: VideoAugment) -> int:
    """Pixels of the smaller side of a frame before it is cropped to `size`."""
    return augment.resize_side or round(min(size) * RESIZE_RATIO)


def _resize_frames(frames: Sequence[np.ndarray], size: tuple[int, int], flip: bool = False) -> np.ndarray:
    """video_THWC of `size`; mirrored, with `flip`, in memory: patches of a mirrored view cost ten times more."""
    resized_THWC = np.empty((len(frames), *size, 3), np.uint8)
    for source_HWC, target_HWC in zip(frames, resized_THWC, strict=True):
        if source_HWC.shape[:2] != size:
            source_HWC = cv2.resize(source_HWC, size[::-1], dst=None if flip else target_HWC)
        if flip:
            cv2.flip(source_HWC, 1, dst=target_HWC)
        elif source_HWC is not target_HWC:
            target_HWC[:] = source_HWC
    return resized_THWC
