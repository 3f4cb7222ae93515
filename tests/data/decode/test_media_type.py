"""One table of what is read: a file is taken by its name where its bytes are known, and the other way round."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from kit import task, write
from PIL import Image

from polyvit.config import FORMATS
from polyvit.data.decode.audio import decode_waveform
from polyvit.data.decode.image import decode_image
from polyvit.data.decode.media_type import detect_modality
from polyvit.data.decode.video import read_clip
from polyvit.data.layouts.scanner import scan

PICTURES = {
    ".jpg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF",
    ".tiff": "TIFF", ".ppm": "PPM", ".avif": "AVIF", ".jp2": "JPEG2000", ".j2k": "JPEG2000",
}  # fmt: skip
SOUNDS = {
    ".wav": "WAV", ".flac": "FLAC", ".mp3": "MP3", ".ogg": "OGG", ".aiff": "AIFF", ".caf": "CAF", ".w64": "W64",
    ".rf64": "RF64", ".au": "AU", ".sph": "NIST", ".voc": "VOC",
}  # fmt: skip
TRACKS = {
    ".ac3": ("ac3", "ac3"), ".eac3": ("eac3", "eac3"), ".aac": ("adts", "aac"), ".mka": ("matroska", "aac"),
    ".m4a": ("ipod", "aac"), ".wma": ("asf", "wmav2"), ".mp2": ("mp2", "mp2"),
}  # fmt: skip
FILMS = {
    ".mp4": ("mp4", "mpeg4"), ".avi": ("avi", "mpeg4"), ".mkv": ("matroska", "mpeg4"), ".mov": ("mov", "mpeg4"),
    ".mpg": ("mpeg", "mpeg2video"), ".m2ts": ("mpegts", "mpeg2video"), ".flv": ("flv", "flv1"),
    ".wmv": ("asf", "wmv2"), ".3gp": ("3gp", "mpeg4"), ".webm": ("webm", "vp8"),
}  # fmt: skip


def _picture(extension: str) -> bytes:
    file = io.BytesIO()
    options = {"no_jp2": True} if extension == ".j2k" else {}
    Image.new("RGB", (32, 24), (200, 30, 30)).save(file, PICTURES[extension], **options)
    return file.getvalue()


def _sound(extension: str) -> bytes:
    file = io.BytesIO()
    tone = 0.5 * np.sin(np.arange(44100) * 0.06)
    subtype = "PCM_16" if extension in (".caf", ".w64", ".rf64", ".sph", ".voc") else None
    soundfile.write(file, tone, 44100, format=SOUNDS[extension], subtype=subtype)
    return file.getvalue()


def _track(extension: str) -> bytes:
    file, (container, codec) = io.BytesIO(), TRACKS[extension]
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=44100, layout="mono")
        stream.bit_rate = 64000
        tone = (0.5 * np.sin(np.arange(44100) * 0.06)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(tone[None], "fltp", "mono")
        frame.rate, frame.pts = 44100, 0
        output.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


def _film(extension: str) -> bytes:
    file, (container, codec) = io.BytesIO(), FILMS[extension]
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * n, np.uint8), "rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("extension", [*PICTURES, *SOUNDS, *TRACKS, *FILMS])
def test_what_is_decoded_is_found_in_folders_and_predicted(tmp_path: Path, extension: str) -> None:
    modality = "image" if extension in PICTURES else "video" if extension in FILMS else "audio"
    makers = ((PICTURES, _picture), (SOUNDS, _sound), (TRACKS, _track), (FILMS, _film))
    make = next(make for table, make in makers if extension in table)
    content = make(extension)
    assert detect_modality(content) == modality
    if modality == "image":
        assert decode_image(content).shape == (24, 32, 3)
    elif modality == "video":
        assert read_clip(content, 4, 1).shape == (4, 48, 64, 3)
    else:
        assert decode_waveform(content, 44100).size > 40000
    write(tmp_path, {f"a/1{extension}": content, f"a/2{extension.upper()}": content})
    assert len(scan(task("imagefolder", modality=modality, num_classes=1), tmp_path).examples) == 2


def test_every_extension_is_of_one_kind() -> None:
    kinds: dict[str, set[str]] = {}
    for entry in FORMATS:
        for extension in entry.extensions:
            kinds.setdefault(extension, set()).add(entry.holds)
    assert not {extension: held for extension, held in kinds.items() if len(held) > 1}
