"""A fourth modality that lives outside of the package: one-dimensional sensor signals in .npy files.

A config names it as `plugins.modalities: {sensor: "toy_sensor:SENSOR"}`. This module holds all of it: the input
section, the augmentation section, the tasks, and the codec. Legend: S samples, N tokens, P samples of a patch.
"""

import io
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from polyvit.config import ArraySpec, InputSection, ModalityEntry, Section, TaskBase
from polyvit.errors import BadMedia


class SensorInput(InputSection):
    """`samples` numbers, cut into patches of `patch_size`."""

    codec: ClassVar[str] = "toy_sensor"
    sides: ClassVar[tuple[str, ...]] = ("samples",)
    size_keys: ClassVar[tuple[str, ...]] = ("samples",)
    channels_last: ClassVar[bool] = False
    vit_positions: ClassVar[Literal["resize", "new"]] = "new"

    samples: PositiveInt = 64
    patch_size: PositiveInt = 8

    @property
    def media_size(self) -> tuple[int, ...]:
        return (self.samples,)

    @property
    def patch(self) -> tuple[int, ...]:
        return (self.patch_size,)

    @property
    def arrays(self) -> dict[str, ArraySpec]:
        return {"tokens": ArraySpec((self.num_tokens, self.patch_dim), "float16")}


class SensorAugment(Section):
    """Noise."""

    noise: PositiveFloat = 0.05


class SensorTask(TaskBase):
    """A task on sensor signals."""

    extensions: ClassVar[tuple[str, ...]] = (".npy",)

    modality: Literal["sensor"] = "sensor"
    augment: SensorAugment = SensorAugment()


SENSOR = ModalityEntry(SensorInput, SensorTask)


def training_arrays(media, task, spec, rng, segment_s=(0.0, -1.0)):
    """tokens [1, N, P] float16 of the signal with noise."""
    signal_S = _signal(media, spec)
    noisy_S = signal_S + task.augment.noise * rng.standard_normal(len(signal_S))
    return {"tokens": noisy_S.astype(np.float16).reshape(1, -1, spec.patch_size)}


def evaluation_arrays(media, task, spec, segment_s=(0.0, -1.0)):
    """tokens [1, N, P] float16."""
    return {"tokens": _signal(media, spec).astype(np.float16).reshape(1, -1, spec.patch_size)}


def preparation(task, spec):
    """How a file becomes the model's input."""
    return f"{spec.samples} numbers"


def _signal(media: bytes, spec: SensorInput) -> np.ndarray:
    try:
        signal_S = np.load(io.BytesIO(media), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BadMedia(f"sensor: not an .npy file: {error}") from None
    if signal_S.ndim != 1 or not len(signal_S):
        raise BadMedia(f"sensor: an array {list(signal_S.shape)} is not [S]")
    return np.resize(signal_S, spec.samples)


def write_signals(root: Path, examples: int = 24) -> None:
    """Two classes, slow and fast waves, as an image folder of .npy files with train and val."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, waves in (("fast", 8), ("slow", 1)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(examples):
                phase, grid = rng.uniform(0, 2 * np.pi), np.linspace(0, 2 * np.pi, 64)
                np.save(folder / f"{i:03d}.npy", np.sin(waves * grid + phase).astype(np.float32))
