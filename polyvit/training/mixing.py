"""Mixing examples in pairs: mixup, and CutMix of pictures.

In: a minibatch on the device. Out: the same, mixed, with mixed labels. Every draw follows from (seed, step, task),
one for the whole minibatch, so that any number of workers mixes alike. Legend: B batch, N tokens, P patch_dim, K
classes.
"""

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

from polyvit.config import ImageInput, RunConfig
from polyvit.data.transforms import patchify_image
from polyvit.model import upload
from polyvit.objectives import mixup, neighbours


def seed_of(seed: int, step: int, task: str, what: str) -> int:
    """The seed of one kind of draws at one step."""
    text = f"{seed}\x00{step}\x00{task}\x00{what}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little")


def mixup_weight(alpha: float, seed: int, step: int, task: str) -> float:
    """The step's one mixup weight, from Beta(alpha, alpha); the same on every rank."""
    return float(_rng(seed, step, task, "mixup").beta(alpha, alpha))


def cutmix_box(
    height: int, width: int, alpha: float, seed: int, step: int, task: str
) -> tuple[slice, slice, float]:
    """Rows and columns that come from the partner, and the share of the picture that stays.

    lambda from Beta(alpha, alpha); sides sqrt(1 - lambda) of the picture's; the centre even over the picture,
    where what lies outside is cut off and lambda follows. Source: CutMix, arXiv:1905.04899, algorithm A1.
    """
    rng = _rng(seed, step, task, "cutmix")
    side = math.sqrt(1.0 - rng.beta(alpha, alpha))
    middle = int(rng.integers(height)), int(rng.integers(width))
    spans = []
    for centre, whole in zip(middle, (height, width), strict=True):
        half = int(whole * side) // 2
        spans.append(slice(max(0, centre - half), min(whole, centre + half)))
    rows, columns = spans
    return rows, columns, 1.0 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)


def mixed(
    inputs: dict[str, Tensor], labels_BK: Tensor, config: RunConfig, step: int, task_name: str
) -> tuple[dict[str, Tensor], Tensor]:
    """Each example with its neighbour (`neighbours`): by CutMix or mixup, as the task's keys and the step's draw
    say.

    inputs: by name; CutMix reads tokens [B, N, P] of pictures.
    """
    task, seed = config.tasks[task_name], config.seed
    partner = neighbours(len(labels_BK), labels_BK.device)
    if task.cutmix and (not task.mixup or _rng(seed, step, task_name, "switch").random() < task.mix_switch):
        spec = config.model.input(task.modality)
        assert isinstance(spec, ImageInput)  # the task's class says so
        height, width = spec.size
        rows, columns, weight = cutmix_box(height, width, task.cutmix, seed, step, task_name)
        inside_HWC = np.zeros((height, width, 3), np.bool_)
        inside_HWC[rows, columns] = True
        patches_NP = patchify_image(inside_HWC, spec.patch_size, spec.stride)
        inside_NP = upload(torch.tensor(patches_NP), labels_BK.device)
        inputs = {name: torch.where(inside_NP, values[partner], values) for name, values in inputs.items()}
    else:
        weight = mixup_weight(task.mixup, seed, step, task_name)
        inputs = {name: mixup(values, partner, weight) for name, values in inputs.items()}
    return inputs, mixup(labels_BK, partner, weight)


def _rng(seed: int, step: int, task: str, what: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed_of(seed, step, task, what)))
