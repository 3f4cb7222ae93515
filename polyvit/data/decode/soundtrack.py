"""Pieces of a video's sound track, cut by the picture's time stamps.

In: a walked container, and the seconds after the first picture at which pieces start. Out:
sound_SN, float32 mono, S pieces of N samples. What lies before the track's first sound, behind its last, or in a
hole of it is silence, as if the recorder had been switched off. Only the packets of the pieces are decoded, and
those of the tenth of a second before each that decoders need to warm up.

A piece starts where the time stamps say, to the sample, and is continuous from there on: a track whose time stamps
drift away from its samples is right again at the start of the next piece. Where they are further apart than a hole
(`GAP_S`) it is corrected within a piece too.
"""

import bisect
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import av
import numpy as np
import soxr
from av.audio.stream import AudioStream
from av.container import InputContainer

from polyvit.data.decode.audio import GAP_S, LOUDEST, MAX_RATE
from polyvit.errors import BadMedia

WARM_UP_S = 0.1
"""Decoded before a piece and thrown away: an MP3 refers to 0.04 s before, Opus needs 0.08 s to settle."""
MARGIN_S = 0.02
"""Read at both ends of a piece that is resampled; the filter is shorter."""
LEAST_SHARE = 0.9
"""A track of whose packets less than this share can be decoded is damaged."""


class Track(NamedTuple):
    """A sound track's packets in order. stamps: of each, in ticks. starts, ends: of each, in samples after the
    first picture."""

    stream: AudioStream
    packets: list[av.Packet]
    stamps: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        """When its last sample ends, without what an encoder adds where the file says how long it is."""
        ends, stream = float(self.ends[-1]) / self.rate, self.stream
        return (
            min(ends, float(stream.duration * stream.time_base)) if stream.duration and stream.time_base else ends
        )


class _Piece(NamedTuple):
    """Decoded samples; start: of the first one, in samples after the first picture."""

    start: int
    wave_N: np.ndarray


def sound_track(container: InputContainer, packets: Sequence[av.Packet], zero_s: float | None = None) -> Track:
    """The first sound track: where each packet's samples lie.

    packets: its packets, as demuxed. zero_s: the time stamp that samples are counted from, of the first picture;
    None: of the first sound. Samples are counted on, and started anew where a time stamp says otherwise: time
    stamps in milliseconds (MKV) are rounded, what is counted is not. Raises BadMedia: no sound track, one without
    packets or of an absurd rate.
    """
    if not container.streams.audio:
        raise BadMedia("audio: no sound track")
    stream = container.streams.audio[0]
    stored = [packet for packet in packets if packet.size and not packet.is_discard]
    rate, tick_s = int(stream.codec_context.sample_rate or 0), float(stream.time_base or 0)
    if not stored:
        raise BadMedia("audio: no samples")
    if not 0 < rate <= MAX_RATE:
        raise BadMedia(f"audio: {rate} samples a second; at most {MAX_RATE} are read")
    size, near = stream.codec_context.frame_size or 0, max(0.001, 2 * tick_s) * rate
    if zero_s is None and stream.start_time is not None:
        zero_s = stream.start_time * tick_s  # what an encoder puts before it is decoded, and not heard
    stamps, starts, at = list[int](), list[int](), 0
    for packet in stored:
        stamp = packet.dts if packet.pts is None else packet.pts
        stamps.append(stamp if stamp is not None else stamps[-1] if stamps else 0)
        if stamp is not None:
            zero_s = stamp * tick_s if zero_s is None else zero_s
            said = round((stamp * tick_s - zero_s) * rate)
            if not starts or abs(said - at) > near:
                at = said
        starts.append(at)
        at += size or round((packet.duration or 0) * tick_s * rate)
    ends = np.maximum.accumulate([*starts[1:], at])
    return Track(stream, stored, np.maximum.accumulate(stamps), np.array(starts), ends, rate)


def read_pieces(
    track: Track, starts_s: Sequence[float], seconds: float, sample_rate: int, end_s: float = math.inf
) -> np.ndarray:
    """sound_SN, float32 mono at `sample_rate` Hz: `seconds` from each of `starts_s` on.

    end_s: nothing of the track counts from there on. Raises BadMedia: less than 90 % of the packets can be
    decoded, samples that are no numbers.
    """
    rate, same = track.rate, track.rate == sample_rate
    margin = 0 if same else math.ceil(MARGIN_S * rate)
    length = round(seconds * sample_rate)
    source = length if same else math.ceil(seconds * rate) + 2 * margin + 1
    firsts = [round(start * rate) if same else math.floor(start * rate) - margin for start in starts_s]
    pieces = _decoded(track, [(first, first + source) for first in firsts])
    sound_SN = np.zeros((len(firsts), length), np.float32)
    for target_N, first, start in zip(sound_SN, firsts, starts_s, strict=True):
        wave_N = _assembled(pieces, first, source, GAP_S * rate)
        if first + source > end_s * rate:
            wave_N[max(0, round(end_s * rate) - first) :] = 0
        if not same:
            # soxr's "HQ", as recordings are resampled (`audio.py`).
            wave_N = soxr.resample(wave_N, rate, sample_rate, quality="HQ")
            wave_N = wave_N[round((start - first / rate) * sample_rate) :][:length]
        target_N[: len(wave_N)] = wave_N
    return sound_SN


def _decoded(track: Track, spans: Sequence[tuple[int, int]]) -> list[_Piece]:
    """The samples that the spans (first, end) need, in order."""
    context = track.stream.codec_context
    context.thread_count = 1
    warm, needed = np.zeros((2, len(track.packets)), bool)
    for first, end in spans:
        needed |= (track.ends > first) & (track.starts < end)
        warm |= (track.ends > first - WARM_UP_S * track.rate) & (track.starts < end)
    planar, pieces, failed = av.AudioResampler(format="fltp"), list[_Piece](), 0
    for run in _neighbours(np.flatnonzero(warm)):
        at = int(track.starts[run[0]])
        for number in [*run, None]:
            try:
                frames = context.decode(None if number is None else track.packets[number])
            except av.error.FFmpegError:
                failed += number is not None and bool(needed[number])
                continue
            for frame in frames:
                if frame.sample_rate != track.rate:
                    raise BadMedia(f"audio: its rate changes from {track.rate} to {frame.sample_rate} Hz")
                at = _place(frame, track, at)
                for part in [frame] if frame.format.name == "fltp" else planar.resample(frame):
                    pieces.append(_Piece(at, _mono(part)))
                    at += part.samples
        context.flush_buffers()
    if failed > (1 - LEAST_SHARE) * max(1, int(needed.sum())):
        raise BadMedia("audio: damaged: more than a tenth of its packets cannot be decoded")
    return pieces


def _place(frame: av.AudioFrame, track: Track, otherwise: int) -> int:
    """Where a frame's first sample lies: its packet's place, and what the decoder cut off in front of it."""
    if frame.pts is None or track.stream.time_base is None:
        return otherwise
    number = max(0, int(np.searchsorted(track.stamps, frame.pts, side="right")) - 1)
    ahead = float((frame.pts - int(track.stamps[number])) * track.stream.time_base)
    return int(track.starts[number]) + round(ahead * track.rate)


def _mono(frame: av.AudioFrame) -> np.ndarray:
    wave_CN = frame.to_ndarray()
    wave_N = wave_CN[0] if len(wave_CN) == 1 else wave_CN.mean(axis=0, dtype=np.float32)
    loudest = float(np.abs(wave_N).max(initial=0))
    if not math.isfinite(loudest) or loudest > LOUDEST:
        raise BadMedia("audio: NaN or infinite samples" if not math.isfinite(loudest) else "audio: absurdly loud")
    return wave_N


def _neighbours(numbers: np.ndarray) -> Iterator[list[int]]:
    """Runs of whole numbers without a hole."""
    if len(numbers):
        for run in np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1):
            yield run.tolist()


def _assembled(pieces: Sequence[_Piece], first: int, length: int, gap: float) -> np.ndarray:
    """`length` samples from sample `first` on, anchored at the first piece that reaches it.

    gap: samples between where a piece should start and where it would without a hole.
    """
    wave_N, at = np.zeros(length, np.float32), None
    begin = bisect.bisect_right(pieces, first, key=lambda piece: piece.start + len(piece.wave_N))
    for start, part_N in pieces[begin:]:
        if start >= first + length:
            break
        at = start if at is None or abs(start - at) > gap else at
        low, high = max(at, first), min(at + len(part_N), first + length)
        if low < high:
            wave_N[low - first : high - first] = part_N[low - at : high - at]
        at += len(part_N)
    return wave_N
