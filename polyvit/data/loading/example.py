"""One example: media bytes to named arrays, as they leave the CPU.

In: a file's bytes, or pixels that need no decoding (CIFAR rows). Out: the arrays that the modality's input section
names (`InputSection.arrays`): `tokens` [views, N, P], uint8 pixels of images and video, float16 normalised log-mel
of audio.

The input section names the module that decodes (`InputSection.codec`). It is imported on first use: a process that
decodes pictures never loads torch, torchaudio or decord, which costs seconds in every new Ray worker.
"""

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from polyvit.config import MODALITIES, InputSection, RunConfig, TaskConfig
from polyvit.errors import UserError

Arrays = dict[str, np.ndarray]
"""Named arrays of one example or minibatch; the first axis is the view or the example."""


@dataclass(frozen=True)
class Waveform:
    """A recording that needs no decoding: float32 mono samples [S] in about [-1, 1], and their rate in Hz."""

    samples: np.ndarray
    rate: int


Media = bytes | np.ndarray
"""What data sets hold: a file, or uint8 RGB pixels [H, W, 3] of a picture, which need no decoding."""
AnyMedia = Media | Waveform
"""What a trained model takes: these, all frames [T, H, W, 3] of a video, or a recording."""


class Codec(Protocol):
    """What a codec module has. Both functions raise BadMedia for media that cannot be decoded.

    segment_s: (start, end) seconds inside the recording or video; end < 0 is its end.
    """

    def training_arrays(
        self, media: AnyMedia, task: Any, spec: Any, rng: np.random.Generator, segment_s: tuple[float, float]
    ) -> Arrays:
        """One augmented view, [1, ...] each; every draw comes from `rng`."""

    def evaluation_arrays(self, media: AnyMedia, task: Any, spec: Any, segment_s: tuple[float, float]) -> Arrays:
        """Every evaluation view, [views, ...] each; one view that cannot be decoded spoils the example."""

    def preparation(self, task: Any, spec: Any) -> str:
        """How a file becomes the media of one evaluation view, in words, for whoever uses an exported model."""


def codec_of(spec: InputSection) -> Codec:
    """The module that decodes media for an input section. Raises UserError where this version has none."""
    try:
        return cast(Codec, importlib.import_module(spec.codec))
    except ModuleNotFoundError as error:
        if error.name != spec.codec:
            raise
        raise UserError(
            f"this version cannot read files for {type(spec).__name__}: it has no module {spec.codec}"
        ) from None


def check_readable(config: RunConfig) -> None:
    """Raises UserError where this version cannot read files of the config's tasks, before anything is started."""
    for modality in config.modalities:
        spec = config.model.input(modality)
        if not _is_there(spec.codec):
            raise UserError(
                f"this version cannot read files of {modality} tasks yet, so it cannot train, evaluate, probe or"
                " predict with them; `polyvit plan` works, and of a trained model `polyvit export` and `register`"
            )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def example_arrays(
    media: AnyMedia | Arrays,
    task: TaskConfig,
    spec: InputSection,
    rng: np.random.Generator | None,
    start_s: float = 0.0,
    end_s: float = -1.0,
) -> Arrays:
    """Named arrays [views, ...] of one example of `task`.

    media: the file's bytes, or what needs no decoding; arrays that were decoded before, which are given back as
    they are, the middle view for training.
    rng: the example's own generator (`augment.example_rng`) for training, one view; None: every evaluation view.
    start_s, end_s: seconds inside the recording or video; end_s < 0 is its end.

    Raises BadMedia for media that cannot be decoded, TypeError for arrays that the modality does not take.
    """
    entry = MODALITIES.get(task.modality)
    if entry and not isinstance(spec, entry.input):
        raise TypeError(f"a task of modality {task.modality} cannot take a {type(spec).__name__}")
    if isinstance(media, dict):
        return _decoded_before(media, spec, training=rng is not None)
    codec = codec_of(spec)
    if rng is None:
        return codec.evaluation_arrays(media, task, spec, (start_s, end_s))
    return codec.training_arrays(media, task, spec, rng, (start_s, end_s))


def _decoded_before(arrays: Arrays, spec: InputSection, training: bool) -> Arrays:
    given = {name: (array.shape[1:], array.dtype.name) for name, array in arrays.items()}
    expected = {name: (each.shape, each.dtype) for name, each in spec.arrays.items()}
    if given != expected:
        raise UserError(
            f"the tokens are {given}, the config's model takes {expected}; run `polyvit tokenize` with this"
            " config, or set the model's input sizes to those of the tokens"
        )
    middle = len(next(iter(arrays.values()))) // 2
    return {name: array[middle : middle + 1] for name, array in arrays.items()} if training else arrays


def blank_arrays(spec: InputSection, rows: int) -> Arrays:
    """Zeros in the shapes of a minibatch of `rows` views."""
    return {name: np.zeros((rows, *each.shape), each.dtype) for name, each in spec.arrays.items()}


def example_bytes(spec: InputSection) -> int:
    """Bytes of one view of one example."""
    return sum(math.prod(each.shape) * np.dtype(each.dtype).itemsize for each in spec.arrays.values())


def concatenated(parts: Sequence[Arrays]) -> Arrays:
    """Named arrays joined along their first axis."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def to_bytes(arrays: Arrays) -> bytes:
    """All arrays one after the other, as `from_bytes` reads them."""
    return b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())


def from_bytes(spec: InputSection, rows: int, payload: bytes, start: int = 0) -> Arrays:
    """Named arrays of `rows` views from what `to_bytes` gave, from byte `start` on; read-only, not copied."""
    arrays = {}
    for name, each in spec.arrays.items():
        shape, dtype = (rows, *each.shape), np.dtype(each.dtype)
        arrays[name] = np.frombuffer(payload, dtype, math.prod(shape), start).reshape(shape)
        start += arrays[name].nbytes
    return arrays
