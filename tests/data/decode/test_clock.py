"""Sound and picture of a file by one clock; recordings to their end; films behind a cover or an edit list."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
from kit import DATA_DIR

from polyvit.data.decode.audio import decode_waveform
from polyvit.data.decode.headers import video_header
from polyvit.data.decode.video import read_clip
from polyvit.errors import BadMedia

RATE = 16000
CASES = DATA_DIR.parent / "cases" / "media"


def _case(name: str) -> bytes:
    if not (CASES / name).is_file():
        pytest.skip(f"no case {name}")
    return (CASES / name).read_bytes()


def _tone(hz: float, seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def _hz(waveform_S: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(waveform_S)).argmax()) * RATE / len(waveform_S)


def _film(pieces: list[tuple[float, float]], container: str = "matroska", pictures: bool = True) -> bytes:
    """Grey pictures for 8 s at 10 a second, and a second of sound for each (start in seconds, Hz)."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        film = output.add_stream("mpeg4", rate=10) if pictures else None
        sound = output.add_stream("pcm_s16le", rate=RATE, layout="mono")
        if film is not None:
            film.width, film.height, film.pix_fmt = 32, 32, "yuv420p"
            for n in range(80):
                output.mux(film.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 3 * n, np.uint8), "rgb24")))
            output.mux(film.encode(None))
        for start, hz in pieces:
            samples = (_tone(hz) * 32767).astype(np.int16)
            for first in range(0, RATE, 1600):
                frame = av.AudioFrame.from_ndarray(samples[None, first : first + 1600], "s16", "mono")
                frame.rate, frame.pts = RATE, round(start * RATE) + first
                output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("pictures", [True, False])
def test_a_segment_of_sound_lies_where_its_time_stamps_say(pictures: bool) -> None:
    data = _film([(0, 440), (3, 880), (4, 660)], pictures=pictures)
    assert _hz(decode_waveform(data, RATE, 0, 1)) == 440
    assert decode_waveform(data, RATE, 1, 3).tolist() == [0.0] * 2 * RATE
    assert _hz(decode_waveform(data, RATE, 3, 4)) == 880
    assert _hz(decode_waveform(data, RATE, 4)) == 660
    assert decode_waveform(data, RATE, 2.5, 3.5).size == RATE
    assert decode_waveform(data, RATE).size == 3 * RATE
    with pytest.raises(BadMedia, match="no samples"):
        decode_waveform(data, RATE, 5, 6)


def test_sound_that_starts_late_is_late_for_segments() -> None:
    data = _film([(5, 880)])
    assert not decode_waveform(data, RATE, 0, 1).any()
    assert _hz(decode_waveform(data, RATE, 5, 6)) == 880
    assert _hz(decode_waveform(_film([(5, 880)], pictures=False), RATE, 0, 1)) == 880


def test_the_hole_of_the_case() -> None:
    assert np.abs(decode_waveform(_case("gap.mka"), RATE, 1, 2)).max() < 1e-3
    assert _hz(decode_waveform(_case("gap.mka"), RATE, 3, 4)) == pytest.approx(880, abs=2)


@pytest.mark.parametrize(("form", "subtype"), [("MP3", None), ("OGG", "VORBIS")])
def test_joined_recordings_are_read_to_their_end(form: str, subtype: str | None) -> None:
    parts = []
    for hz in (440, 880, 660):
        file = io.BytesIO()
        soundfile.write(file, _tone(hz, 2), RATE, format=form, subtype=subtype)
        parts.append(file.getvalue())
    joined = decode_waveform(b"".join(parts), RATE)
    assert joined.size / RATE == pytest.approx(6, abs=0.3)
    assert _hz(joined[-RATE:]) == pytest.approx(660, abs=2)
    alone = decode_waveform(parts[0], RATE)
    # libsndfile itself differs by a last bit from one read to the next.
    np.testing.assert_allclose(alone, soundfile.read(io.BytesIO(parts[0]), dtype="float32")[0], atol=5e-7)


def test_an_mp3_whose_length_is_a_guess_is_read_to_its_end() -> None:
    assert decode_waveform(_case("loud_then_quiet.mp3"), RATE).size / RATE == pytest.approx(10.03, abs=0.05)


def test_cover_art_is_not_the_film() -> None:
    data = _case("cover_first.mp4")
    assert video_header(data)["width"] == 96
    assert read_clip(data, 4, 1).shape == (4, 64, 96, 3)


def test_an_edit_list_shows_a_part_and_that_is_whole() -> None:
    data = _case("edit_head.mp4")
    assert read_clip(data, 25, 1).shape[0] == 25
    with pytest.raises(BadMedia):
        read_clip(data[: len(data) // 2], 25, 1)


def test_an_avi_of_variable_rate_is_whole() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as output:
        film = output.add_stream("mpeg4", rate=25)
        film.width, film.height, film.pix_fmt = 32, 32, "yuv420p"
        for n in range(0, 100, 4):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 2 * n, np.uint8), "rgb24")
            frame.pts, frame.time_base = n, Fraction(1, 25)
            output.mux(film.encode(frame))
        output.mux(film.encode(None))
    with av.open(io.BytesIO(file.getvalue())) as opened:
        assert opened.streams.video[0].frames > 90
    assert read_clip(file.getvalue(), 25, 1).shape[0] == 25
