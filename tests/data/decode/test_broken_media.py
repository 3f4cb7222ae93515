"""Media made to harm: bombs, forged sizes, lists of other files. And odd but valid media that the kit lacks."""

import io
import struct
import tracemalloc
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from polyvit.config import AudioInput
from polyvit.data.decode.audio import MAX_RATE, MAX_SAMPLES, decode_waveform, eval_waveform
from polyvit.data.decode.image import MAX_PIXELS, decode_image
from polyvit.data.decode.media_type import detect_modality
from polyvit.data.decode.video import read_clip
from polyvit.errors import BadMedia

# ------------------------------------------------------------------------------------------------ pictures


def png(width: int, height: int, depth: int = 8, colour: int = 2, rows: bytes = b"") -> bytes:
    """A PNG with any header, and whatever rows of it there are."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("sides", [(50_000, 50_000), (2**31 - 1, 2**31 - 1), (2**30, 1), (MAX_PIXELS + 1, 1)])
def test_pictures_of_absurd_sizes_are_refused_unread(sides: tuple[int, int]) -> None:
    tracemalloc.start()
    with pytest.raises(BadMedia, match="pixels"):
        decode_image(png(*sides))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_small_file_that_unpacks_to_gigabytes_is_refused() -> None:
    bomb = png(30_000, 30_000, 1, 0, bytes(30_000 * 3751))
    assert len(bomb) < 200_000
    with pytest.raises(BadMedia, match="pixels"):
        decode_image(bomb)
    jpeg = io.BytesIO()
    Image.new("L", (40, 40)).save(jpeg, "JPEG")
    data = bytearray(jpeg.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65_000, 65_000)
    with pytest.raises(BadMedia, match="65000 x 65000 pixels; at most"):
        decode_image(bytes(data))


def test_programs_are_not_pictures(tmp_path: Path) -> None:
    """Pillow would hand PostScript to Ghostscript; the feed's decoder does not even look at it."""
    page = io.BytesIO()
    Image.new("RGB", (8, 8)).save(page, "EPS")
    with pytest.raises(BadMedia, match="cannot identify"):
        decode_image(page.getvalue())
    with pytest.raises(BadMedia, match="not a known picture"):
        detect_modality(page.getvalue())


def test_odd_pictures_have_their_colours() -> None:
    rng = np.random.default_rng(0)
    wide_HWC = rng.integers(0, 2**16, (5, 7, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide_HWC)
    assert np.abs(decode_image(png(7, 5, 16, 2, rows)).astype(int) - (wide_HWC >> 8)).max() <= 1  # 48 bits a pixel
    grey_HW = rng.integers(0, 256, (5, 7), dtype=np.uint8)
    for form in (Image.fromarray(grey_HW).convert("LA"), Image.fromarray(grey_HW)):
        buffer = io.BytesIO()
        form.save(buffer, "PNG")
        assert (decode_image(buffer.getvalue()) == grey_HW[..., None]).all()
    bits_HW = rng.integers(0, 2, (9, 11)).astype(bool)
    buffer = io.BytesIO()
    Image.fromarray(bits_HW).save(buffer, "TIFF", compression="group4")
    assert (decode_image(buffer.getvalue()) == 255 * bits_HW[..., None]).all()
    frames = [Image.fromarray(np.full((6, 6), level, np.uint8)) for level in (40, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert (decode_image(buffer.getvalue()) == 40).all()  # an animation's first


# ------------------------------------------------------------------------------------------------ videos


def video(
    frames: list[np.ndarray], times: list[int], pix_fmt: str = "yuv420p", side: tuple[int, int] = (48, 64)
) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *side, pix_fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, 10)
        for frame_HWC, pts in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
            frame.pts = pts
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def grey(level: int, side: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.full((*side, 3), level, np.uint8)


def test_a_variable_frame_rate_is_counted_in_frames_and_cut_in_seconds() -> None:
    times = [0, 1, 2, 10, 11, 30]
    data = video([grey(40 * i) for i in range(6)], times)
    levels = read_clip(data, 6, 1).mean((1, 2, 3)) / 40
    assert np.round(levels).tolist() == [0, 1, 2, 3, 4, 5]
    cut = read_clip(data, 2, 1, start_s=0.9, end_s=2.0)
    assert np.round(cut.mean((1, 2, 3)) / 40).tolist() == [3, 4]


def test_odd_sides_are_decoded() -> None:
    data = video([grey(100, (49, 63))] * 3, [0, 1, 2], "yuv444p", (49, 63))
    clip = read_clip(data, 3, 1)
    assert clip.shape == (3, 49, 63, 3)
    assert abs(clip.mean() - 100) < 2


def test_a_giant_frame_is_refused() -> None:
    """8192 x 8192 pixels, 17 kB of file: 6.4 GB were it decoded."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width = stream.height = 8192
        stream.pix_fmt = "yuv420p"
        output.mux(stream.encode(av.VideoFrame(8192, 8192, "yuv420p")))
        output.mux(stream.encode())
    with pytest.raises(BadMedia, match="8192 x 8192 pixels are too large"):
        read_clip(buffer.getvalue(), 32, 1)


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{0}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{1}'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        '<?xml version="1.0"?><MPD><Period><BaseURL>{0}</BaseURL></Period></MPD>',
    ],
)
def test_lists_of_other_files_are_never_followed(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg would open what such a text names; relative names are seen from the current folder."""
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(video([grey(77)] * 3, [0, 1, 2]))
    monkeypatch.chdir(tmp_path)
    data = text.format(secret.as_uri(), secret.name).encode()
    for read in (
        lambda: read_clip(data, 2, 1),
        lambda: decode_waveform(data, 16000),
        lambda: detect_modality(data),
    ):
        with pytest.raises(BadMedia):
            read()


# -------------------------------------------------------------------------------------------- recordings


def sound(samples_SC: np.ndarray, rate: int = 16000, form: str = "WAV", subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples_SC, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def tones() -> np.ndarray:
    t = np.arange(16000)
    return np.stack([0.3 * np.sin(t * 0.01 * (c + 1)) for c in range(6)], axis=1).astype(np.float32)


@pytest.mark.parametrize(("form", "subtype"), [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_24")])
def test_surround_sound_is_averaged(form: str, subtype: str) -> None:
    found = decode_waveform(sound(tones(), 16000, form, subtype), 16000)
    assert np.allclose(found, tones().mean(axis=1), atol=1e-4)


def test_surround_sound_in_aac_is_averaged() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000, layout="5.1")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(tones().T), format="fltp", layout="5.1")
        frame.rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    found = decode_waveform(buffer.getvalue(), 16000)
    assert abs(len(found) - 16000) <= 2048
    middle = slice(3000, 13000)
    # The codec has its own delay, and of the fourth channel (bass alone) little is left.
    expected = np.delete(tones(), 3, axis=1).sum(axis=1) / 6
    best = max(np.corrcoef(found[3000 + d : 13000 + d], expected[middle])[0, 1] for d in range(-1200, 1201, 8))
    assert best > 0.9


def test_channels_that_change_on_the_way_crash_nothing() -> None:
    """Found by the fuzzer: FFmpeg's sample queue reads two channels of a frame that has one."""

    def adts(channels: int) -> bytes:
        layout = ("mono", "stereo")[channels - 1]
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="adts") as output:
            stream = output.add_stream("aac", rate=16000, layout=layout)
            samples = np.ascontiguousarray(tones().T[:channels])
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
            frame.rate = 16000
            output.mux(stream.encode(frame))
            output.mux(stream.encode())
        return buffer.getvalue()

    for first, second in ((2, 1), (1, 2)):
        one = len(decode_waveform(adts(first), 16000))
        found = decode_waveform(adts(first) + adts(second), 16000)
        assert one + 15_000 < len(found) < one + 18_500
        assert np.abs(found).max() < 1.0


def test_a_recording_of_a_thousand_channels_takes_no_gigabyte() -> None:
    data = sound(np.zeros((2000, 1000), np.float32))
    tracemalloc.start()
    assert decode_waveform(data, 16000).shape == (2000,)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_rates_beyond_any_recorder_are_refused() -> None:
    with pytest.raises(BadMedia, match=f"{MAX_RATE + 1} samples a second"):
        decode_waveform(sound(np.zeros(100), MAX_RATE + 1), 16000)
    assert decode_waveform(sound(np.zeros(1000), 48_001), 16000).size in (333, 334)  # no common divisor


def test_silence_that_unpacks_to_gigabytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from polyvit.data.decode import audio

    assert MAX_SAMPLES == 2**28
    monkeypatch.setattr(audio, "MAX_SAMPLES", 2**21)
    silence = sound(np.zeros(2**21 + 2**18, np.int16), 48_000, "FLAC")
    assert len(silence) < 30_000
    with pytest.raises(BadMedia, match="more than 2097152 samples"):
        decode_waveform(silence, 16000)
    assert decode_waveform(sound(np.zeros(2**20, np.int16), 48_000, "FLAC"), 48_000).shape == (2**20,)


@pytest.mark.parametrize(
    ("level", "reason"), [(1e30, "samples of 1e"), (np.inf, "NaN or inf"), (np.nan, "NaN or inf")]
)
def test_samples_that_would_reach_the_model_as_infinity_are_refused(level: float, reason: str) -> None:
    samples = np.zeros(16000, np.float32)
    samples[5000] = level
    with pytest.raises(BadMedia, match=reason):
        decode_waveform(sound(samples, subtype="FLOAT"), 16000)


def test_whole_numbers_that_nobody_divided_are_borne() -> None:
    loud = decode_waveform(sound(tones()[:, 0] * np.float32(2**31), subtype="FLOAT"), 16000)
    assert np.isfinite(eval_waveform(loud, AudioInput(frames=100)).astype(np.float16)).all()
