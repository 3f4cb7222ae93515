"""Photos, clips and recordings for the decode section of `polyvit bench feed`, from a folder of real data.

Photos are used as they are; large ones are mosaics of them. Clips are pans and zooms over photos with sensor
noise, in H.264 by libx264: the noise makes the bit rate realistic, the motion is not. Recordings are real sounds,
joined to `RECORDING_S` and encoded again. All draws follow from the seed.
"""

import io
import random
from pathlib import Path

import av
import cv2
import numpy as np
import simplejpeg
import soundfile

from pipelines.runtime import console
from polyvit.data.decode import decode_image, decode_waveform
from polyvit.errors import BadMedia, UserError

LARGE = (1500, 2000)
"""Height and width of the large photos."""
SIZE, SECONDS, FPS = (256, 340), 10, 25
"""Height and width, length and rate of a clip: Kinetics scaled to a short side of 256."""
CLIPS = {
    "gop 250": {"preset": "medium", "crf": "23", "g": "250"},
    "gop 32": {"preset": "medium", "crf": "20", "g": "32", "sc_threshold": "0"},
    "gop 32 fastdecode": {"preset": "medium", "crf": "20", "g": "32", "sc_threshold": "0", "tune": "fastdecode"},
}
"""As files come, and as `polyvit shard` may prepare them; libx264 options."""
RECORDINGS = {
    "wav 16 kHz": ("WAV", 16_000),
    "flac 16 kHz": ("FLAC", 16_000),
    "wav 44.1 kHz": ("WAV", 44_100),
    "m4a 44.1 kHz": ("M4A", 44_100),
}
RECORDING_S = 8.0


def photos(data: Path, most: int, seed: int, least_pixels: int = 120_000) -> list[bytes]:
    """At most `most` JPEGs below `data`, of at least `least_pixels`; of any size where none is that large.

    Raises UserError where there is none at all.
    """
    files = sorted(path for path in data.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))
    large_files: list[bytes] = []
    small_files: list[bytes] = []
    for path in random.Random(seed).sample(files, len(files)):
        content = path.read_bytes()
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(content)
            large = height * width >= least_pixels
            if len(small_files) < most or large:
                decode_image(content)
                (large_files if large else small_files).append(content)
        except (ValueError, BadMedia):
            continue
        if len(large_files) == most:
            break
    if not large_files and small_files:
        console.print(f"{data}: no JPEG of {least_pixels} pixels or more; small ones are timed, which says little")
    if not large_files and not small_files:
        raise UserError(f"{data}: no JPEG below it; give a folder of photos")
    return large_files or small_files


def clip(photo: bytes, options: dict[str, str], seed: int) -> bytes:
    """The bytes of an MP4 of `SECONDS` s: a pan and zoom over one photo (a JPEG), with noise. options: of
    libx264."""
    picture_HWC = decode_image(photo)
    rng = np.random.default_rng(seed)
    (start_y, start_x), (end_y, end_x) = rng.random((2, 2))
    zoom_from, zoom_to = rng.uniform(0.5, 0.95, 2)
    height, width = SIZE
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for t in np.linspace(0, 1, SECONDS * FPS):
            share = zoom_from + (zoom_to - zoom_from) * t
            rows, columns = (share * side for side in picture_HWC.shape[:2])
            top = (picture_HWC.shape[0] - rows) * (start_y + (end_y - start_y) * t)
            left = (picture_HWC.shape[1] - columns) * (start_x + (end_x - start_x) * t)
            matrix = np.array([[columns / width, 0, left], [0, rows / height, top]])
            frame = cv2.warpAffine(
                picture_HWC, matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            )
            noisy = frame + rng.standard_normal(frame.shape, np.float32) * 3
            frame_HWC = np.clip(noisy, 0, 255).astype(np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def large_photos(photos: list[bytes], count: int) -> list[bytes]:
    """JPEGs of `LARGE`, quality 90, 4:2:0: sixteen photos each, side by side, so that detail is real."""
    height, width = LARGE[0] // 4, LARGE[1] // 4
    tiles = [cv2.resize(decode_image(photo), (width, height), interpolation=cv2.INTER_AREA) for photo in photos]
    mosaics = []
    for i in range(count):
        rows = [[tiles[(7 * i + 4 * y + x) % len(tiles)] for x in range(4)] for y in range(4)]
        mosaic_HWC = np.concatenate([np.concatenate(row, axis=1) for row in rows])
        mosaics.append(simplejpeg.encode_jpeg(mosaic_HWC, quality=90, colorsubsampling="420"))
    return mosaics


def recordings(data: Path, kind: str, count: int, seed: int) -> list[bytes]:
    """`count` files of one of `RECORDINGS`, mono, 16 bits or AAC. Raises UserError where no sound is found."""
    files = sorted(path for path in data.rglob("*") if path.suffix.lower() in (".wav", ".flac"))
    pieces: list[np.ndarray] = []
    container, rate = RECORDINGS[kind]
    samples = round(RECORDING_S * rate)
    for path in random.Random(seed).sample(files, len(files)):
        if "broken" in path.parts or sum(map(len, pieces)) >= count * samples:
            continue
        try:
            pieces.append(decode_waveform(path.read_bytes(), rate))
        except BadMedia:
            continue
    if not pieces:
        raise UserError(f"{data}: no .wav or .flac below it; give a folder with sounds")
    sound_S = np.clip(np.resize(np.concatenate(pieces), count * samples), -1, 1)
    return [_encoded(part_S, container, rate) for part_S in np.split(sound_S, count)]


def _encoded(waveform_S: np.ndarray, container: str, rate: int) -> bytes:
    buffer = io.BytesIO()
    if container != "M4A":
        soundfile.write(buffer, waveform_S, rate, format=container, subtype="PCM_16")
        return buffer.getvalue()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(waveform_S[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()
