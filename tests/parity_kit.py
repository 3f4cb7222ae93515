"""Read a parity kit: references' weights, inputs and outputs, and the configs that they imply.

A kit is the folder POLYVIT_PARITY_DIR (default: shared/parity beside the repository); its README says what
each array is. Every size, task and case is read from the kit's own info files, since other kits hold other
numbers.
"""

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polyvit.config import AudioInput, ImageInput, ModelConfig, RunConfig, VideoInput
from polyvit.data.transforms.patchify import patchify_audio, patchify_image, patchify_video
from polyvit.model.polyvit import PolyViT
from polyvit.model.pretrained.convert import official_to_state

DIR = Path(os.environ.get("POLYVIT_PARITY_DIR") or Path(__file__).parents[2] / "shared" / "parity")
LOSSES = {"multilabel": "sigmoid", "label": "softmax"}


def require(path: Path) -> Path:
    """`path`, or skip the test where this kit lacks it."""
    if not path.exists():
        pytest.skip(f"the parity kit has no {path.relative_to(DIR) if path.is_relative_to(DIR) else path}")
    return path


@cache
def info(name: str) -> dict[str, Any]:
    """A JSON file of the kit; empty where there is none (parametrised tests then have no cases)."""
    path = DIR / name
    return json.loads(path.read_text()) if path.is_file() else {}


@cache
def arrays(name: str) -> Mapping[str, np.ndarray]:
    """An npz of the kit; skips the test where there is none."""
    with np.load(require(DIR / name), allow_pickle=False) as file:
        return dict(file)


def sizes() -> dict[str, Any]:
    """Sizes of the kit's PolyViT; empty without a kit."""
    return info("polyvit/info.json").get("sizes", {})


def adapts() -> list[int]:
    """The values of L_adapt that the kit holds."""
    return list(sizes().get("L_adapt", []))


def tasks() -> list[str]:
    """The kit's tasks, in its order."""
    return [task["name"] for task in sizes().get("tasks", [])]


def task_info(name: str) -> dict[str, Any]:
    """What the kit says of one task."""
    return next(task for task in sizes()["tasks"] if task["name"] == name)


def model_config(kit: Mapping[str, Any], l_adapt: int) -> ModelConfig:
    """The model of a kit. The kit gives tubelets as (h, w, t), spectrograms as `nspec` pieces of frames."""
    encoder = sizes()
    height, width, frames = kit["vpatch"]
    return ModelConfig(
        width=encoder["hidden"],
        depth=encoder["layers"],
        num_heads=encoder["heads"],
        mlp_dim=encoder["mlp"],
        l_adapt=l_adapt,
        image=ImageInput(size=tuple(kit["image"]), patch_size=tuple(kit["ipatch"])),
        video=VideoInput(
            frames=kit["video"][0], size=tuple(kit["video"][1:]), tubelet_size=(frames, height, width)
        ),
        audio=AudioInput(
            frames=kit["nspec"] * kit["spec_shape"][0],
            mel_bins=kit["spec_shape"][1],
            patch_size=tuple(kit["apatch"]),
        ),
    )


def run_config(l_adapt: int, **optim: Any) -> RunConfig:
    """The kit's training run; `optim` as in `OptimConfig`. Skips the test where the kit has no PolyViT."""
    require(DIR / "polyvit" / "info.json")
    described = {
        task["name"]: {
            "modality": task["modality"],
            "layout": "imagefolder",
            "num_classes": task["classes"],
            "loss": LOSSES[task["task"]],
            "steps": task["steps"],
            "batch": task["batch"],
            "lr_coef": task["coef"],
        }
        for task in sizes()["tasks"]
    }
    return RunConfig.model_validate({"model": model_config(sizes(), l_adapt), "tasks": described, "optim": optim})


def kit_model(config: RunConfig, parameters: str) -> PolyViT:
    """The kit's model with the official parameters of one npz."""
    model = PolyViT(config.model, config.tasks)
    model.load_state_dict(official_to_state(arrays(parameters), config.model))
    return model


def tokens(config: ModelConfig, inputs: np.ndarray, modality: str) -> Tensor:
    """Channels-last inputs [B, ..., C] -> tokens [B, N, P]; what patches do not cover is cut off (VALID)."""
    if modality == "image":
        patch, step = config.image.patch_size, config.image.stride
        return _stack(patchify_image(x, patch, step) for x in _covered(inputs, patch, step))
    if modality == "video":
        tubelet, strides = config.video.tubelet_size, config.video.stride
        return _stack(patchify_video(x, tubelet, strides) for x in _covered(inputs, tubelet, strides))
    patch, step = config.audio.patch_size, config.audio.stride
    planes = inputs[..., 0] if inputs.ndim == 4 else inputs
    return _stack(patchify_audio(x, patch, step) for x in _covered(planes, patch, step))


def batch(config: RunConfig, task: str, index: int) -> tuple[Tensor, Tensor]:
    """(tokens [B, N, P], labels [B, K]) of the kit's batch 0 or 1 of a task."""
    data = arrays("polyvit/batches.npz")
    inputs = data[f"{task}/batch{index}/inputs"]
    labels = torch.from_numpy(data[f"{task}/batch{index}/label"])
    return tokens(config.model, inputs, config.tasks[task].modality), labels


def batches(expected: Mapping[str, np.ndarray], task: str) -> list[int]:
    """The batches of a task that an npz of `<task>/batch<i>/...` holds."""
    return sorted(
        {int(name.split("/")[1].removeprefix("batch")) for name in expected if name.startswith(task + "/")}
    )


def close(found: Any, expected: Any, tolerance: float, what: str = "") -> None:
    """Assert that every entry is within `tolerance`, relative to max(1, largest expected magnitude)."""
    found = np.asarray(found.detach() if isinstance(found, Tensor) else found, dtype=np.float64)
    expected = np.asarray(expected, dtype=np.float64)
    assert found.shape == expected.shape, f"{what}: {found.shape} is not {expected.shape}"
    error = np.abs(found - expected).max(initial=0.0)
    limit = tolerance * max(1.0, np.abs(expected).max(initial=0.0))
    assert error <= limit, f"{what}: off by {error:.2e}, more than {limit:.2e}"


def _covered(arrays_B: np.ndarray, patch: tuple[int, ...], stride: tuple[int, ...] | None) -> np.ndarray:
    steps = stride or patch
    sides = arrays_B.shape[1 : 1 + len(patch)]
    ends = [(s - p) // d * d + p for s, p, d in zip(sides, patch, steps, strict=True)]
    return arrays_B[(slice(None), *(slice(end) for end in ends))]


def _stack(rows: Any) -> Tensor:
    return torch.from_numpy(np.stack(list(rows)))
