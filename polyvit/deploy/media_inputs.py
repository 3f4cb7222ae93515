"""What a user has at hand, a path, bytes, a picture, an array or a tensor, as the media that codecs take.

In: one input of a trained model. Out: a file's bytes; uint8 RGB pixels [H, W, 3] of a picture, or [T, H, W, 3] of
all frames of a video; or a `Waveform`. What files of the same content give comes out of both.
Legend: T frames, H height, W width, C channels, S samples.
"""

import os
from collections.abc import Iterable, Mapping
from io import IOBase
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from polyvit.data.decode import picture_pixels
from polyvit.data.loading import AnyMedia, Waveform
from polyvit.deploy.predict import read_media
from polyvit.errors import BadMedia, UserError

MediaInput = Any
"""One input: a path (str or Path), a file's bytes, a Pillow picture, an array or a tensor, (samples, rate)."""
ACCEPTED = (
    "give a path, a file's bytes, a Pillow picture, an array [H, W, 3] or [T, H, W, 3], a tensor [3, H, W] or"
    " [T, 3, H, W], or a recording as (samples, rate in Hz)"
)
_SINGLE = (str, bytes, bytearray, memoryview, os.PathLike, Tensor)


def is_many(x: object) -> bool:
    """Whether `x` is several inputs: a list, another iterable, or an array of paths; not (samples, rate)."""
    if isinstance(x, np.ndarray):
        return x.dtype.kind in "OU"
    if isinstance(x, _SINGLE) or _is_picture(x) or _is_recording(x):
        return False
    return isinstance(x, Iterable) and not isinstance(x, Mapping | IOBase)


def as_media(x: MediaInput) -> AnyMedia:
    """One input as media.

    A path or bytes: the file. A Pillow picture: its pixels. An array of uint8, or of floats from 0 to 1:
    [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] is a picture (alpha is dropped, as of a file), [T, H, W, 3] all
    frames of a video. A tensor: the same with the channels before H, as torchvision has them. (samples, rate): a
    recording, mono [S], or with channels, of which the shorter axis is one, averaged; floats of about -1 to 1, or
    whole numbers of 8, 16 or 32 bits. Raises BadMedia for what cannot be read, UserError for anything else.
    """
    if isinstance(x, str | os.PathLike):
        return read_media(Path(x).expanduser())
    if isinstance(x, bytes | bytearray | memoryview):
        return bytes(x)
    if _is_picture(x):
        return picture_pixels(x)
    if _is_recording(x):
        return _waveform(_array(x[0]), _rate(x[1]))
    if isinstance(x, Tensor):
        return _pixels(_channels_last(_array(x)))
    if isinstance(x, np.ndarray):
        return _pixels(x)
    hint = "of an open file give the path, or what it reads; " if isinstance(x, IOBase) else ""
    raise UserError(f"a {type(x).__name__} is no input of a model; {hint}{ACCEPTED}")


def _is_picture(x: Any) -> bool:
    return any(kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(x).__mro__)


def _is_recording(x: Any) -> bool:
    return (
        isinstance(x, tuple)
        and len(x) == 2
        and isinstance(x[0], np.ndarray | Tensor)
        and not isinstance(x[1], np.ndarray | Tensor)
    )


def _rate(given: Any) -> int:
    if isinstance(given, int | float | np.integer | np.floating) and 1 <= given < 2**31:
        return int(given)
    raise BadMedia(f"audio: (samples, rate in Hz) with the rate {given!r}; give a number such as 16000")


def _array(x: np.ndarray | Tensor) -> np.ndarray:
    return x.detach().cpu().float().numpy() if isinstance(x, Tensor) and x.is_floating_point() else np.asarray(x)


def _channels_last(array: np.ndarray) -> np.ndarray:
    if array.ndim == 2:
        return array
    if array.ndim not in (3, 4) or array.shape[-3] not in (1, 3, 4):
        hint = "; it looks like an array's order: give x.numpy()" if array.ndim in (3, 4) else ""
        raise BadMedia(f"a tensor {list(array.shape)} is neither [C, H, W] nor [T, C, H, W], C of 1, 3 or 4{hint}")
    return np.moveaxis(array, -3, -1)


def _pixels(array: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] or [T, H, W, 3]."""
    shape = f"{array.dtype}{list(array.shape)}"
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim not in (3, 4) or array.shape[-1] not in (1, 3, 4) or not array.size:
        raise BadMedia(
            f"an array {shape} is neither a picture [H, W, C] nor a video [T, H, W, C], C of 1, 3 or 4; a batch is"
            " a list of pictures, a recording is (samples, rate in Hz)"
        )
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not 0 <= low <= high <= 1:  # also of NaN
            raise BadMedia(
                f"pixels {shape} from {low:.3g} to {high:.3g}: floats are taken from 0 to 1, not normalised; or"
                " give uint8 from 0 to 255"
            )
        array = np.rint(array * 255)
    elif array.dtype != np.uint8:
        raise BadMedia(f"pixels {shape}: give uint8 from 0 to 255, or floats from 0 to 1")
    array = array[..., :3] if array.shape[-1] != 1 else np.repeat(array, 3, axis=-1)
    return np.ascontiguousarray(array, dtype=np.uint8)


def _waveform(samples: np.ndarray, rate: int) -> Waveform:
    if samples.ndim not in (1, 2) or not samples.size:
        raise BadMedia(f"audio: samples {list(samples.shape)} are neither mono [S] nor [C, S]")
    scaled: np.ndarray
    if samples.dtype.kind == "f":
        scaled = samples.astype(np.float32)
    elif samples.dtype == np.uint8:
        scaled = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype in (np.int16, np.int32):
        scaled = np.divide(samples, np.iinfo(samples.dtype).max + 1, dtype=np.float64).astype(np.float32)
    else:
        raise BadMedia(f"audio: samples of {samples.dtype}; give floats of about -1 to 1, int16, int32 or uint8")
    if scaled.ndim == 2:
        channels_last_SC = scaled.T if scaled.shape[0] < scaled.shape[1] else scaled
        scaled = np.ascontiguousarray(channels_last_SC).mean(axis=1, dtype=np.float32)
    return Waveform(scaled, rate)
