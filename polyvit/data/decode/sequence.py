"""A long video with its sound as a sequence of clips. What decodes is in `video.py` and `soundtrack.py`.

In: the bytes of a file. Out: for each of S clips its frames, as far as a `cut` keeps them, and its waveform.
Legend: S clips, T frames of one, H W C, N samples.

All times are seconds after the first picture of the segment. A clip's frame is the last one that is shown at its
time stamp or before, whatever the frame rate; its sound is what the time stamps put at the same seconds. The file
is walked once, as for a clip of a video task; decoding starts at the last key frame before frames that are wanted
and ends with the last of these.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from av.container import InputContainer

from polyvit.data.decode.containers import bad_media, open_container
from polyvit.data.decode.soundtrack import read_pieces, sound_track
from polyvit.data.decode.video import read_numbers, segment, walk
from polyvit.errors import BadMedia

MAX_FRAME_PIXELS = 2**25
"""Height * width of a frame as read: 8K. One at a time is in memory."""
Spacing = Literal["spread", "contiguous"]
Cut = Callable[[np.ndarray], np.ndarray]
"""From frame_HWC, uint8 RGB, to what is kept of it."""


class SequencePlan(NamedTuple):
    """What is read of a file: so many `clips` of so many `frames` and `seconds`, the sound at `sample_rate` Hz.

    spacing: see `clip_starts`. streams: where it is not `both`, the other one need not be there.
    """

    clips: int
    frames: int
    seconds: float
    spacing: Spacing
    sample_rate: int
    streams: Literal["both", "visual", "audio"] = "both"


def read_sequence(
    data: bytes,
    plan: SequencePlan,
    cutter: Callable[[int, int], Cut],
    rng: np.random.Generator | None = None,
    segment_s: tuple[float, float] = (0.0, -1.0),
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(frames [S, T, ...] as cut, sound_SN float32 mono); None for a stream that the plan does not ask for.

    data: of the file. cutter: from height and width to what cuts a frame; asked once. rng: for the place of
    contiguous clips. segment_s: (start, end) seconds after the first picture that count, or after the first sound
    where only that is asked for; end < 0 is the end.
    Raises BadMedia: no pictures or no sound track, a file cut short, nothing decodable, frames of several sizes.
    """
    if not data:
        raise BadMedia("video: the file is empty")
    with bad_media("video"):
        container = open_container(data)
    with container:
        if plan.streams == "audio":
            with bad_media("audio"):
                return None, _sound_alone(container, plan, rng, segment_s)
        with bad_media("video"):
            packets = walk(container)
        if packets.height * packets.width > MAX_FRAME_PIXELS:
            raise BadMedia(f"video: frames of {packets.width} x {packets.height} pixels are too large")
        first, last = segment(packets.times_s, *segment_s)
        zero_s = float(packets.times_s[first])
        times_s = packets.times_s[first:last] - zero_s
        steps_s = np.diff(packets.times_s) if len(packets.times_s) > 1 else np.array([1 / 25])
        step_s = float(np.median(steps_s))
        # The last frame stands as long as the one before it, but no hole in the file's time stamps.
        end = packets.times_s[last] - zero_s if last < len(packets.times_s) else times_s[-1] + min(steps_s[-1], 1)
        starts_S = clip_starts(float(end), plan, rng)
        sound_SN = None
        if plan.streams == "both":
            with bad_media("audio"):
                track = sound_track(container, packets.sound, packets.zero_s + zero_s)
                end_s = segment_s[1] - zero_s if segment_s[1] >= 0 else math.inf
                sound_SN = read_pieces(track, starts_S.tolist(), plan.seconds, plan.sample_rate, end_s)
        numbers_ST = first + shown_frames(times_s, frame_times(starts_S, plan, step_s))
        wanted, place = np.unique(numbers_ST, return_inverse=True)
        with bad_media("video"):
            kept = read_numbers(data, wanted, container, packets, _same_cut(cutter))
    return np.stack(kept)[place.reshape(numbers_ST.shape)], sound_SN


def _sound_alone(
    container: InputContainer,
    plan: SequencePlan,
    rng: np.random.Generator | None,
    segment_s: tuple[float, float],
) -> np.ndarray:
    """sound_SN of a recording, or of a video whose pictures are not looked at."""
    track = sound_track(container, list(container.demux(audio=0)) if container.streams.audio else [])
    first_s = max(0.0, segment_s[0])
    last_s = track.seconds if segment_s[1] < 0 else min(track.seconds, segment_s[1])
    if last_s <= first_s:
        raise BadMedia(f"audio: nothing from {first_s:g} s to {last_s:g} s; it lasts {track.seconds:.1f} s")
    starts_S = first_s + clip_starts(last_s - first_s, plan, rng)
    return read_pieces(track, starts_S.tolist(), plan.seconds, plan.sample_rate, last_s)


def clip_starts(length_s: float, plan: SequencePlan, rng: np.random.Generator | None = None) -> np.ndarray:
    """When each clip starts, float64 [S].

    `spread`: at even steps from 0 to the last that fits (a single clip: the middle). `contiguous`: one after the
    other, at a uniform place with `rng`, else in the middle; where they do not fit, as `spread`, so that they
    overlap. A video shorter than one clip starts all at 0. Source: avbert's loader, delta * i / (n - 1), whose
    division by 0 for one clip and whose delta of 0 we guard.
    """
    clips, seconds = plan.clips, plan.seconds
    room = length_s - clips * seconds
    if plan.spacing == "contiguous" and room >= 0:
        return (rng.uniform(0, room) if rng else room / 2) + seconds * np.arange(clips)
    room = max(0.0, length_s - seconds)
    return np.array([room / 2]) if clips == 1 else room * np.arange(clips) / (clips - 1)


def frame_times(starts_S: np.ndarray, plan: SequencePlan, step_s: float) -> np.ndarray:
    """When each wanted frame is shown, float64 [S, T].

    `spread`: from the clip's first frame to its last, both among them, as the release does. `contiguous`: `frames`
    / `seconds` a second, so that the steps between clips are those within. step_s: from frame to frame of the
    video.
    """
    frames, seconds = plan.frames, plan.seconds
    inside_T = np.arange(frames) * (seconds / frames)
    if plan.spacing == "spread":
        inside_T = np.linspace(0, max(0.0, seconds - step_s), frames)
    return starts_S[:, None] + inside_T


def shown_frames(times_s: np.ndarray, wanted_s: np.ndarray) -> np.ndarray:
    """The number of the last frame that is shown at each wanted time or before; in the shape of `wanted_s`."""
    # Time stamps are rounded, in MKV to milliseconds; a frame that comes half a millisecond late is in time.
    numbers = np.searchsorted(times_s, wanted_s + 6e-4, side="right") - 1
    return np.clip(numbers, 0, len(times_s) - 1)


def _same_cut(cutter: Callable[[int, int], Cut]) -> Cut:
    """`cutter` for the size of the first frame, and no other size."""
    known: list[tuple[tuple[int, ...], Cut]] = []

    def cut(frame_HWC: np.ndarray) -> np.ndarray:
        if not known:
            known.append((frame_HWC.shape, cutter(*frame_HWC.shape[:2])))
        shape, kept = known[0]
        if frame_HWC.shape != shape:
            raise BadMedia("video: its frames are of several sizes")
        return kept(frame_HWC)

    return cut
