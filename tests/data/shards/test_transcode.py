"""Media at a training size: what is made shows and sounds the same, and what is odd is left alone."""

import io
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import soundfile
from image_checks_kit import psnr
from kit import DATA_DIR, needs_data

from polyvit.data.decode.audio import decode_waveform
from polyvit.data.decode.containers import open_container
from polyvit.data.decode.video import read_clip, walk
from polyvit.data.shards.transcode import KEY_FRAMES, smaller_audio, smaller_image, smaller_video
from polyvit.errors import BadMedia
from polyvit.synthetic import encode_video

RATE = 16_000


def moving(
    frames: int, size: tuple[int, int], codec: str = "libx264", container: str = "mp4", ticks: tuple[int, ...] = ()
) -> bytes:
    """A bright square that moves to the right over a ramp; 25 frames a second, or at `ticks` of 1/100 s."""
    height, width = size
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25, options={"g": "250"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        if ticks:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 100)
        for n in range(frames):
            picture_HWC = np.linspace(40, 160, width, dtype=np.uint8)[None, :, None].repeat(height, 0).repeat(3, 2)
            left = (width - 20) * n // max(1, frames - 1)
            picture_HWC[height // 4 : height // 2, left : left + 20] = (250, 30, 30)
            frame = av.VideoFrame.from_ndarray(picture_HWC, format="rgb24")
            frame.pts = ticks[n] if ticks else n
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def walked(data: bytes) -> tuple[tuple[int, int], np.ndarray, list[int]]:
    """Sides, times, and the numbers of the key frames."""
    with open_container(data) as container:
        packets = walk(container)
        assert packets.whole
        assert container.streams.video[0].codec_context.name == "h264"
        assert not container.streams.audio
    return (
        (packets.height, packets.width),
        packets.times_s,
        [i for i, p in enumerate(packets.stored) if p.is_keyframe],
    )


def test_a_clip_keeps_its_frames_and_times_and_gets_key_frames() -> None:
    data = moving(80, (120, 160))
    smaller = smaller_video(data, 64)
    assert smaller is not None
    sides, times_s, keys = walked(smaller)
    assert sides == (64, 86)  # 85.3, rounded and made even
    assert max(np.diff([*keys, 80])) <= KEY_FRAMES
    assert np.allclose(times_s, np.arange(80) / 25, atol=1e-3)
    assert smaller_video(smaller, 64) is None
    assert smaller_video(data, 64) == smaller
    same_size = smaller_video(data, 500)
    assert same_size is not None
    assert psnr(read_clip(same_size, 20, 4), read_clip(data, 20, 4)) > 35


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_what_the_memory_held(tmp_path: Path) -> None:
    """glibc fills what malloc gives with a byte of MALLOC_PERTURB_; x264's mbtree once read it before writing."""
    (tmp_path / "clip.mp4").write_bytes(moving(80, (120, 160)))
    code = (
        "import hashlib, pathlib, sys; from polyvit.data.shards.transcode import smaller_video; "
        "print(hashlib.sha256(smaller_video(pathlib.Path(sys.argv[1]).read_bytes(), 64)).hexdigest())"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "clip.mp4")], env={**os.environ, "MALLOC_PERTURB_": byte},
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout.strip()
        for byte in ("0", "85", "170")
    ]  # fmt: skip
    assert len(digests[0]) == 64
    assert len(set(digests)) == 1


def test_uneven_times_and_another_codec() -> None:
    ticks = (0, 4, 5, 20, 21, 22, 60, 64, 65, 90)
    data = moving(10, (64, 64), "mpeg4", "matroska", ticks)
    smaller = smaller_video(data, 64)
    assert smaller is not None
    assert np.allclose(walked(smaller)[1], np.array(ticks) / 100, atol=2e-3)
    assert psnr(read_clip(smaller, 10, 1), read_clip(data, 10, 1)) > 32


def test_what_could_change_stays_as_it_is() -> None:
    data = moving(40, (64, 64))
    assert smaller_video(moving(20, (64, 64)), 64) is None  # one key frame is enough for twenty
    assert smaller_video(moving(40, (64, 64), container="mpegts"), 32) is None
    damaged = bytearray(data)
    damaged[len(data) // 3 : len(data) // 3 + 200] = bytes(200)
    with pytest.raises(BadMedia, match="video: "):
        smaller_video(data[: len(data) // 2], 32)
    kept = smaller_video(bytes(damaged), 32)
    assert kept is None or len(walked(kept)[1]) == 40
    with pytest.raises(BadMedia):
        smaller_video(b"no video", 32)


@needs_data
def test_every_video_of_the_kit() -> None:
    """Frames of the copy against those of the original, made smaller: the same pictures at the same places."""
    files = sorted(DATA_DIR.glob("kinetics400/**/*.mp4"))[:3]
    files += sorted(DATA_DIR.glob("broken/**/*rotated*.mp4"))
    assert files
    for path in files:
        data = path.read_bytes()
        theirs = read_clip(data, 8, 2)
        smaller = smaller_video(data, min(theirs.shape[1:3]) * 3 // 4)
        assert smaller is not None
        ours = read_clip(smaller, 8, 2)
        assert (ours.shape[1] > ours.shape[2]) == (theirs.shape[1] > theirs.shape[2])
        small = [cv2.resize(frame, ours.shape[2:0:-1], interpolation=cv2.INTER_AREA) for frame in theirs]
        assert psnr(ours, np.stack(small)) > 30, path


def test_a_recording_becomes_mono_flac_at_the_rate() -> None:
    seconds = np.arange(2 * 44_100) / 44_100
    stereo_SC = 0.5 * np.stack([np.sin(2 * np.pi * 440 * seconds), np.sin(2 * np.pi * 660 * seconds)], axis=1)
    buffer = io.BytesIO()
    soundfile.write(buffer, stereo_SC, 44_100, format="WAV")
    smaller = smaller_audio(buffer.getvalue(), RATE)
    assert smaller is not None
    facts = soundfile.info(io.BytesIO(smaller))
    assert (facts.format, facts.channels, facts.samplerate, facts.frames) == ("FLAC", 1, RATE, 2 * RATE)
    expected_S = decode_waveform(buffer.getvalue(), RATE)
    np.testing.assert_allclose(decode_waveform(smaller, RATE), expected_S, atol=1 / 2**15)
    assert smaller_audio(smaller, RATE) is None
    assert smaller_audio(smaller, 8000) is not None


def test_sound_above_full_scale_stays_and_what_is_no_sound_is_bad() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(8000) / 9) * 3, 44_100, format="WAV", subtype="FLOAT")
    assert smaller_audio(buffer.getvalue(), RATE) is None
    with pytest.raises(BadMedia, match="audio"):
        smaller_audio(b"no sound", RATE)


def test_a_picture_that_is_small_enough_stays() -> None:
    picture_HWC = np.indices((40, 60)).sum(0).astype(np.uint8)[..., None].repeat(3, -1)
    data = cv2.imencode(".png", picture_HWC)[1].tobytes()
    assert smaller_image(data, 40, 90) is None
    smaller = smaller_image(data, 20, 90)
    assert smaller is not None
    assert cv2.imdecode(np.frombuffer(smaller, np.uint8), cv2.IMREAD_COLOR).shape == (20, 30, 3)


@pytest.mark.parametrize(("container", "delay"), [("mp4", 0.0), ("mkv", 0.5)])
def test_sound_is_copied_where_it_is_asked_for(container: Any, delay: float) -> None:
    """Bit by bit, and at the same times after the first picture."""
    wave = np.random.default_rng(0).normal(0, 0.1, 16_000)
    clip = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    data = encode_video(clip, 20, wave, 8000, container, delay)
    assert smaller_video(data, 32) is not None
    smaller = smaller_video(data, 32, sound=True)
    assert smaller is not None
    walked = []
    for content in (data, smaller):
        with open_container(content) as source:
            packets = walk(source)
            walked.append([bytes(packet) for packet in packets.sound])
            first = packets.sound[0]
            assert first.time_base is not None
            start = float((first.pts or 0) * first.time_base) - packets.zero_s
            assert start == pytest.approx(delay - 0.128, abs=2e-3)  # AAC's delay of 1024 samples
    assert walked[0] == walked[1]
    assert smaller_video(smaller, 32, sound=True) is None
