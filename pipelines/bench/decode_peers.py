"""Contenders of the decode benchmark: other libraries decode the same bytes to the same crops, windows and shapes.

Image: (data, box, size) -> tokens_NP; video: (clip, frame numbers) -> video_THWC; audio: data -> waveform_S. One
thread each. A peer that is not installed, or does not start here, is named with its reason (`absent`).
"""

import functools
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import simplejpeg
import soundfile
import torch
import torchaudio
from PIL import Image

from polyvit.data.transforms import Box, patchify_image

ImagePeer = Callable[[bytes, Box, int], np.ndarray]
ClipPeer = Callable[["Clip", list[int]], np.ndarray]
SoundPeer = Callable[[bytes], np.ndarray]
PATCH = (16, 16)
LIBRARIES = {"decord": "decord", "torchvision": "torchvision", "torchcodec": "torchcodec.decoders"}


@dataclass(frozen=True)
class Clip:
    """A video in memory, and as a file for peers that need a path."""

    data: bytes
    path: Path


@functools.cache
def absent() -> dict[str, str]:
    """Optional peers that do not start here, with the reason."""
    missing = {}
    for name, module in LIBRARIES.items():
        try:
            importlib.import_module(module)
        except ImportError:
            missing[name] = "not installed"
        except (OSError, RuntimeError) as error:  # torchcodec without FFmpeg's libraries
            missing[name] = f"does not start: {str(error).strip().splitlines()[0]}"
    return missing


def image_peers() -> dict[str, ImagePeer]:
    """The image peers of this machine. All resize with antialias, except those called bilinear."""
    peers = {
        "PIL": pil, "PIL + draft": pil_draft, "OpenCV bilinear": opencv_bilinear, "simplejpeg + OpenCV": bare,
        "torchvision": torchvision_resized_crop, "limit: decode only": decode_only,
    }  # fmt: skip
    return {name: peer for name, peer in peers.items() if name not in absent()}


def pil(data: bytes, box: Box, out: int) -> np.ndarray:
    """Pillow's antialiased bilinear crop: the reference of the PSNR."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    return patchify_image(np.asarray(picture.resize((out, out), Image.Resampling.BILINEAR, box=corners)), PATCH)


def pil_draft(data: bytes, box: Box, out: int) -> np.ndarray:
    """The same behind Pillow's scaled decoding, which keeps a factor of two for its filter."""
    picture: Image.Image = Image.open(io.BytesIO(data))
    width, height = picture.size
    share = min(box.width, box.height) / (2 * out)
    if share > 1:
        picture.draft("RGB", (int(width / share), int(height / share)))
    x, y = picture.size[0] / width, picture.size[1] / height
    corners = (box.left * x, box.top * y, (box.left + box.width) * x, (box.top + box.height) * y)
    resized = picture.convert("RGB").resize((out, out), Image.Resampling.BILINEAR, box=corners)
    return patchify_image(np.asarray(resized), PATCH)


def opencv_bilinear(data: bytes, box: Box, out: int) -> np.ndarray:
    """OpenCV's decoder and its bilinear resize without a filter."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    image_HWC = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), flags))
    return patchify_image(cv2.resize(box.cut(image_HWC), (out, out)), PATCH)


def bare(data: bytes, box: Box, out: int) -> np.ndarray:
    """Exact bilinear without a filter: the same two libraries as ours, in three lines and without any check."""
    return patchify_image(cv2.resize(box.cut(simplejpeg.decode_jpeg(data)), (out, out)), PATCH)


def torchvision_resized_crop(data: bytes, box: Box, out: int) -> np.ndarray:
    """torchvision's decode_jpeg and v2 resized_crop with antialias."""
    import torchvision
    from torchvision.transforms.v2 import functional

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    image_CHW = torchvision.io.decode_jpeg(encoded, mode=torchvision.io.ImageReadMode.RGB)
    image_CHW = functional.resized_crop(image_CHW, *box, size=[out, out], antialias=True)
    return patchify_image(image_CHW.permute(1, 2, 0).numpy(), PATCH)


def decode_only(data: bytes, box: Box, out: int) -> np.ndarray:
    """The whole picture decoded and not resized: no contender that resizes can be faster."""
    return simplejpeg.decode_jpeg(data)


def clip_peers() -> dict[str, ClipPeer]:
    """The video peers of this machine."""
    peers = {
        "decord": decord_batch,
        "PyAV, seeking": pyav_seek,
        "OpenCV": opencv_clip,
        "torchcodec": torchcodec_range,
    }
    return {name: peer for name, peer in peers.items() if name not in absent()}


def sequential(clip: Clip, numbers: list[int]) -> np.ndarray:
    """Every frame from the first, by PyAV: the frames that all others must give."""
    keep, frames = set(numbers), []
    with av.open(io.BytesIO(clip.data), "r") as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in keep:
                frames.append(frame.to_ndarray(format="rgb24"))
            if number == numbers[-1]:
                break
    return np.stack(frames)


def decord_batch(clip: Clip, numbers: list[int]) -> np.ndarray:
    """decord, without any check of the file before."""
    import decord

    return decord.VideoReader(io.BytesIO(clip.data), num_threads=1).get_batch(numbers).asnumpy()


def pyav_seek(clip: Clip, numbers: list[int]) -> np.ndarray:
    """A seek to the key frame, then every frame decoded: the usual way with PyAV, for an even frame rate."""
    keep, frames = set(numbers), []
    with av.open(io.BytesIO(clip.data), "r") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        frame_ticks = float(1 / ((stream.average_rate or 1) * (stream.time_base or 1)))
        container.seek(int(numbers[0] * frame_ticks), stream=stream)
        for frame in container.decode(stream):
            number = round((frame.pts or 0) / frame_ticks)
            if number in keep:
                frames.append(frame.to_ndarray(format="rgb24"))
            if number >= numbers[-1]:
                break
    return np.stack(frames)


def opencv_clip(clip: Clip, numbers: list[int]) -> np.ndarray:
    """OpenCV's FFmpeg reader, from the file."""
    capture = cv2.VideoCapture(str(clip.path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    capture.set(cv2.CAP_PROP_POS_FRAMES, numbers[0])
    keep, frames = set(numbers), []
    for number in range(numbers[0], numbers[-1] + 1):
        capture.grab()
        if number in keep:
            frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    capture.release()
    return np.stack(frames)


def torchcodec_range(clip: Clip, numbers: list[int]) -> np.ndarray:
    """torchcodec in its exact mode."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(clip.data, num_ffmpeg_threads=1, dimension_order="NHWC")
    return decoder.get_frames_at(numbers).data.numpy()


def sound_peers(m4a: bool) -> dict[str, SoundPeer]:
    """The audio peers of this machine, to mono at 16 kHz. m4a: whether they must read MP4 sound."""
    peers = {"PyAV": pyav_sound, "torchcodec": torchcodec_sound}
    if not m4a:
        peers["soundfile"] = soundfile_sound
    return {name: peer for name, peer in peers.items() if name not in absent()}


def soundfile_sound(data: bytes) -> np.ndarray:
    """soundfile, and torchaudio's default resampling."""
    waveform_S, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    return resample(waveform_S, rate)


def pyav_sound(data: bytes) -> np.ndarray:
    """PyAV frame by frame, and torchaudio's default resampling."""
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.audio[0]
        parts = [frame.to_ndarray() for frame in container.decode(stream)]
        waveform_S = np.concatenate(parts, axis=1)[0]
        if waveform_S.dtype != np.float32:
            waveform_S = waveform_S.astype(np.float32) / np.float32(-int(np.iinfo(waveform_S.dtype).min))
        return resample(waveform_S, int(stream.rate))


def torchcodec_sound(data: bytes) -> np.ndarray:
    """torchcodec, which resamples by FFmpeg's swresample."""
    from torchcodec.decoders import AudioDecoder

    return AudioDecoder(data, sample_rate=16_000, num_channels=1).get_all_samples().data[0].numpy()


def resample(waveform_S: np.ndarray, rate: int) -> np.ndarray:
    """torchaudio's default, its kernel kept."""
    return waveform_S if rate == 16_000 else _resampler(rate)(torch.from_numpy(waveform_S)).numpy()


@functools.cache
def _resampler(rate: int) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(rate, 16_000)


def torchaudio_log_mel(waveform_S: np.ndarray) -> np.ndarray:
    """800 frames of torchaudio's MelSpectrogram, padded so that they are those of `decode.audio.log_mel`."""
    # torchaudio puts the window in the middle of its FFT frame: 312 zeros on the left line both up.
    padded = torch.nn.functional.pad(torch.from_numpy(waveform_S[:128_400]), (312, 712))
    return (_mel()(padded) + 1e-6).log_()[:, :800].T.numpy()


@functools.cache
def _mel() -> torchaudio.transforms.MelSpectrogram:
    return torchaudio.transforms.MelSpectrogram(
        16_000, n_fft=1024, win_length=400, hop_length=160, f_min=20.0, n_mels=128, center=False
    )
