"""Long videos as sequences of clips: which frames, which samples, and what becomes of odd files.

Sound is compared by the lag of its best correlation with what was written: 0 samples is exact.
"""

from collections.abc import Callable
from typing import Any

import av_kit
import numpy as np
import pytest

from polyvit.data.decode import sequence, soundtrack, video
from polyvit.data.decode.audio import mel_filters
from polyvit.data.decode.clip_spectrogram import clip_log_mel
from polyvit.data.decode.sequence import SequencePlan, clip_starts, frame_times, read_sequence, shown_frames
from polyvit.errors import BadMedia
from polyvit.synthetic import encode_video

RATE, FPS = 16_000, 20


def plan(
    clips: int = 3, frames: int = 4, seconds: float = 1.0, spacing: Any = "contiguous", **more: Any
) -> SequencePlan:
    return SequencePlan(clips, frames, seconds, spacing, **{"sample_rate": RATE, **more})


def counting(frames: int) -> np.ndarray:
    """clip_THWC whose halves' grey levels are the digits of the frame's number."""
    digits_TD = np.stack(np.divmod(np.arange(frames), 10), axis=1).astype(np.uint8)
    return np.broadcast_to(np.repeat(24 * digits_TD, 16, axis=1)[:, None, :, None], (frames, 16, 32, 3)).copy()


def noise(seconds: float, rate: int = RATE) -> np.ndarray:
    """Smoothed noise: no two places of it are alike, and encoders keep it."""
    return np.convolve(np.random.default_rng(0).normal(0, 0.2, int(seconds * rate)), np.ones(8) / 8, "same")


def whole(height: int, width: int) -> Callable[[np.ndarray], np.ndarray]:
    """Keeps the mean grey level of each half of a frame."""
    return lambda frame_HWC: frame_HWC.reshape(16, 2, 16, 3).mean((0, 2, 3), dtype=np.float64)


def numbers(frames: np.ndarray | None) -> np.ndarray:
    assert frames is not None
    return np.rint(frames / 24).astype(int) @ [10, 1]


def lag(found: np.ndarray, written: np.ndarray, start: int) -> int:
    """By how many samples `found` is late against `written` from sample `start` on."""
    reach, pad = 3000, np.pad(written, 8000)
    span = pad[8000 + start - reach : 8000 + start + len(found) + reach]
    scores = np.correlate(span, found, "valid")
    return reach - int(scores.argmax())


# ------------------------------------------------------------------------------------------- pure functions


@pytest.mark.parametrize(
    ("length", "clips", "seconds", "spacing", "expected"),
    [
        (10.0, 5, 2.0, "spread", [0, 2, 4, 6, 8]),
        (10.0, 1, 2.0, "spread", [4]),
        (1.5, 3, 2.0, "spread", [0, 0, 0]),
        (10.0, 4, 1.0, "contiguous", [3, 4, 5, 6]),
        (3.0, 4, 1.0, "contiguous", [0, 2 / 3, 4 / 3, 2]),
    ],
)
def test_where_clips_start(length: float, clips: int, seconds: float, spacing: str, expected: list[float]) -> None:
    assert clip_starts(length, plan(clips, 4, seconds, spacing)) == pytest.approx(expected)


def test_contiguous_clips_start_anywhere_in_training() -> None:
    starts = [clip_starts(10.0, plan(), np.random.default_rng(seed)) for seed in range(200)]
    assert min(s[0] for s in starts) < 0.2
    assert 6.8 < max(s[0] for s in starts) <= 7
    assert all(np.diff(s) == pytest.approx([1, 1]) for s in starts)


def test_sixteen_frames_a_second_are_evenly_spaced_over_clip_borders() -> None:
    times = frame_times(np.arange(3.0), plan(3, 16), 1 / 30)
    assert np.diff(times.ravel()) == pytest.approx(1 / 16)


def test_shown_is_the_last_frame_before() -> None:
    """A variable rate: frames stand until the next one; before the first and behind the last, these."""
    shown = shown_frames(np.array([0, 0.1, 0.5, 0.6]), np.array([-1, 0, 0.0999, 0.3, 0.49, 0.55, 9]))
    assert shown.tolist() == [0, 0, 1, 1, 1, 2, 3]


def test_the_released_frames_and_log_mel() -> None:
    """Frame numbers are equal; the log-mel is float32 noise away in near-silent cells (the kit's limit: 2e-3)."""
    kit = av_kit.arrays("visual_pipeline")
    fps, (views, frames) = int(kit["in/fps"]), kit["out/frame_index"].shape
    times = np.arange(len(kit["in/frames"])) / fps
    asked = plan(views, frames, frames * 2 / 30, "spread")
    starts = clip_starts(times[-1] + 1 / fps, asked)
    assert starts * fps == pytest.approx(kit["out/start_index"], abs=1e-9)
    assert (shown_frames(times, frame_times(starts, asked, 1 / fps)) == kit["out/frame_index"]).all()
    kit = av_kit.arrays("audio_frontend")
    names = [name.removeprefix("in/") for name in kit if name.startswith("in/")]
    assert names
    for name in names:
        bins, columns = kit[f"out/{name}"].shape[1:]
        found = clip_log_mel(kit[f"in/{name}"], 44100, columns, bins)
        assert found == pytest.approx(kit[f"out/{name}"].transpose(0, 2, 1), abs=2e-3), name
        filters = kit[f"mel_filters/{name}"]
        assert mel_filters(2 * len(filters) - 2, 0.0, 44100, bins) == pytest.approx(filters, abs=2e-5)
    silent = clip_log_mel(kit["silence/in"], 44100, columns, bins)
    assert silent == pytest.approx(kit["silence/out"].transpose(0, 2, 1), abs=1e-6)


def test_padding_of_a_short_spectrogram_is_the_fill() -> None:
    sound = np.zeros((1, 5003), np.float32)
    assert (clip_log_mel(sound, 44100, 128, 8)[0, 126:] == 0).all()
    assert clip_log_mel(sound, 44100, 128, 8, fill=-13.5)[0, 126:] == pytest.approx(-13.5)


# ----------------------------------------------------------------------------------------- real containers


@pytest.mark.parametrize(
    ("container", "delay", "rate"),
    [(box, *rest) for box in ("mp4", "mkv") for rest in ((0.0, RATE), (0.7, RATE), (0.0, 44_100))]
    + [("avi", 0.0, RATE)],  # an AVI holds no time stamps: its sound cannot start late
)
def test_frames_and_samples_of_the_same_seconds(container: Any, delay: float, rate: int) -> None:
    """Also where the sound starts 0.7 s after the picture: what comes before is silence."""
    wave = noise(5, rate)
    data = encode_video(counting(5 * FPS), FPS, wave, rate, container, delay)
    frames, sound = read_sequence(data, plan(5, 4), whole)
    assert numbers(frames).tolist() == [[20 * s + 5 * t for t in range(4)] for s in range(5)]
    assert sound is not None
    assert sound.shape == (5, RATE)
    written = wave if rate == RATE else soundtrack.soxr.resample(wave, rate, RATE)
    # MKV counts in milliseconds: its first stamp may be half of one off. AAC's encoder delay is in its stamps.
    near = 1 if container == "mp4" else 1 + RATE // 1000
    assert all(abs(lag(sound[s], written, int((s - delay) * RATE))) <= near for s in range(1, 4))
    assert np.abs(sound[0, : max(0, int(delay * RATE) - 1024)]).max(initial=0) < 1e-3


def test_late_sound_is_right_in_a_clip_that_is_decoded_alone() -> None:
    """Decoding starts in the middle of the file, not at its first packet."""
    wave = noise(8)
    data = encode_video(counting(8 * 10), 10, wave, RATE, "mp4", 0.3)
    _, sound = read_sequence(data, plan(1, 2, 0.5, "spread"), whole)
    assert sound is not None
    assert abs(lag(sound[0], wave, int((3.75 - 0.3) * RATE))) <= 1


def test_drifting_sound_is_right_at_the_start_of_each_clip() -> None:
    """Its time stamps run 2 % slower than its samples: after 5 s they are 100 ms apart."""
    wave, blocks = noise(5), []
    data = drifting(wave, 1.02)
    _, sound = read_sequence(data, plan(5, 2), whole)
    assert sound is not None
    for s in range(1, 4):
        head = sound[s, : RATE // 8]
        blocks.append(lag(head, wave, round(s / 1.02 * RATE)))
    assert np.abs(blocks).max() <= 0.005 * RATE, blocks


def drifting(wave: np.ndarray, slower: float) -> bytes:
    """A video whose sound packets are shown later and later."""
    import io
    from fractions import Fraction

    import av

    source, out = av.open(io.BytesIO(encode_video(counting(100), FPS, wave, RATE)), "r"), io.BytesIO()
    with source, av.open(out, "w", format="matroska") as box:
        streams = {stream.index: box.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is None:
                continue
            stream = packet.stream
            packet.stream = streams[stream.index]
            if stream.type == "audio":
                packet.pts = packet.dts = round((packet.pts or 0) * slower)
                packet.time_base = Fraction(1, RATE)
            box.mux(packet)
    return out.getvalue()


def test_a_variable_frame_rate_is_read_by_time() -> None:
    times = np.concatenate([np.arange(0, 2, 0.1), np.arange(2, 4, 0.25)])
    data = encode_video(counting(len(times)), FPS, noise(4), RATE, "mkv", frame_times_s=times)
    frames, _ = read_sequence(data, plan(4, 4), whole)
    asked = np.arange(16) / 4
    assert numbers(frames).ravel().tolist() == [int((times <= t + 1e-3).sum()) - 1 for t in asked]


def test_videos_shorter_than_the_sequence_and_than_a_clip() -> None:
    data = encode_video(counting(40), FPS, noise(2), RATE)
    frames, sound = read_sequence(data, plan(5, 4), whole)
    assert numbers(frames)[:, 0].tolist() == [0, 5, 10, 15, 20]
    assert sound is not None
    assert all(abs(lag(sound[s], noise(2), s * RATE // 4)) <= 1 for s in range(5))
    frames, sound = read_sequence(data, plan(2, 4, 4.0), whole)
    assert numbers(frames).tolist() == [[0, 20, 39, 39]] * 2
    assert sound is not None
    assert np.abs(sound[:, int(2.2 * RATE) :]).max() == 0


def test_a_segment_is_the_whole_world() -> None:
    """Neither frames nor sound of what lies beyond it; seconds count from the first picture."""
    wave = noise(5)
    data = encode_video(counting(100), FPS, wave, RATE)
    frames, sound = read_sequence(data, plan(2, 4, 1.0, "spread"), whole, None, (2.0, 3.5))
    assert (numbers(frames).min(), numbers(frames).max()) == (40, 69)
    assert sound is not None
    assert abs(lag(sound[0], wave, 2 * RATE)) <= 1
    _, sound = read_sequence(data, plan(1, 2, 2.0, "spread"), whole, None, (2.0, 3.0))
    assert sound is not None
    assert np.abs(sound[0, RATE:]).max() == 0


def test_nothing_is_decoded_that_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two short clips of a video of ten seconds: frames once each, and a tenth of the sound."""
    shown: list[Any] = []
    pieces: list[Any] = []
    upright, decoded = video.upright, soundtrack._decoded

    def counted(frame: Any, colours: Any) -> np.ndarray:
        shown.append(frame.pts)
        return upright(frame, colours)

    def kept(*given: Any) -> list[Any]:
        pieces.extend(decoded(*given))
        return pieces

    monkeypatch.setattr(video, "upright", counted)
    monkeypatch.setattr(soundtrack, "_decoded", kept)
    data = encode_video(counting(80), 8, noise(10), RATE)
    frames, _ = read_sequence(data, plan(2, 8, 0.25, "spread"), whole)
    assert len(shown) == len(np.unique(numbers(frames))) == 4
    seconds = sum(len(piece.wave_N) for piece in pieces) / RATE
    assert 0.5 <= seconds <= 1.1


def test_one_stream_alone() -> None:
    wave = noise(3)
    both, pictures = encode_video(counting(60), FPS, wave, RATE), encode_video(counting(60), FPS, None, RATE)
    sound_only = encode_video(None, FPS, wave, RATE)
    frames, sound = read_sequence(pictures, plan(streams="visual"), whole)
    assert sound is None
    assert numbers(frames)[0, 0] == 0
    for data in (both, sound_only):
        frames, sound = read_sequence(data, plan(3, 4, 1.0, "spread", streams="audio"), whole)
        assert frames is None
        assert sound is not None
        assert abs(lag(sound[1], wave, RATE)) <= 1


@pytest.mark.parametrize(
    ("data", "streams", "reason"),
    [
        (b"", "both", "the file is empty"),
        (b"no media", "both", "InvalidDataError"),
        (encode_video(counting(8), 8, None, RATE), "both", "no sound track"),
        (encode_video(counting(8), 8, None, RATE), "audio", "no sound track"),
        (encode_video(None, 8, noise(1), RATE), "both", "no video stream"),
        (encode_video(None, 8, noise(1), RATE), "visual", "no video stream"),
    ],
)
def test_what_cannot_be_read_says_why(data: bytes, streams: Any, reason: str) -> None:
    with pytest.raises(BadMedia, match=reason):
        read_sequence(data, plan(streams=streams), whole)


def test_a_file_cut_short_or_damaged_is_refused_or_read() -> None:
    data = bytearray(encode_video(counting(40), FPS, noise(2), RATE))
    with pytest.raises(BadMedia):
        read_sequence(bytes(data[: len(data) // 2]), plan(), whole)
    for place in range(200, len(data) - 200, len(data) // 40):
        hurt = data.copy()
        hurt[place : place + 24] = bytes(24)
        try:
            frames, sound = read_sequence(bytes(hurt), plan(), whole)
        except BadMedia:
            continue
        assert frames is not None
        assert sound is not None
        assert np.isfinite(sound).all()


def test_frames_larger_than_any_screen_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "MAX_FRAME_PIXELS", 500)
    with pytest.raises(BadMedia, match="32 x 16 pixels are too large"):
        read_sequence(encode_video(counting(8), 8, noise(1), RATE), plan(), whole)
