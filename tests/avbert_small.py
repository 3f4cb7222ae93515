"""A tiny AVBert of two tasks and minibatches of made-up arrays: no files, no Ray."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from use_kit import write_checkpoint

from polyvit.config import RunConfig, validate_config
from polyvit.data.loading.minibatch import Minibatch
from polyvit.model import build_model
from polyvit.model.avbert import AVBert

TINY: dict[str, Any] = {
    "seed": 3,
    "model": {
        "kind": "avbert", "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24, "positions": 5, "dropout": 0.2,
        "visual_width": 2, "audio_width": 2, "blocks": [1, 1, 1, 1], "sharing": {"rank": 4},
        "audiovisual": {"clips": 3, "frames": 4, "size": 16, "mel_bins": 16, "spectrogram_frames": 16},
    },
    "optim": {"kind": "adamw", "lr": 1e-2, "ema_decay": 0.9},
    "tasks": {
        "one": {"modality": "audiovisual", "layout": "kinetics", "num_classes": 5, "steps": 4, "batch": 4},
        "two": {"modality": "audiovisual", "layout": "kinetics", "num_classes": 3, "steps": 4, "batch": 4},
    },
}  # fmt: skip


def tiny(**model: Any) -> RunConfig:
    changed = copy.deepcopy(TINY)
    changed["model"] |= model
    return validate_config(changed)


def contrastive(settings: dict[str, Any] | None = None, **model: Any) -> RunConfig:
    """One contrastive task, trained by plain SGD."""
    changed = copy.deepcopy(TINY)
    changed["model"] |= {"dropout": 0.0, **model}
    objective = {"loss": "contrastive", "metric": "retrieval", "contrastive": settings or {}}
    changed["tasks"] = {"one": {**TINY["tasks"]["one"], **objective}}
    changed["optim"] = {"kind": "sgd", "lr": 1.0, "momentum": 0.0, "clip_norm": None}
    return validate_config(changed)


def minibatch(config: RunConfig, task: str, step: int, rows: slice = slice(None)) -> Minibatch:
    """Arrays that follow from the step; `rows` of the global batch of four."""
    rng = np.random.Generator(np.random.Philox(step))
    arrays = {}
    for name, spec in config.model.input("audiovisual").arrays.items():
        whole = (
            rng.integers(0, 256, (4, *spec.shape)) if spec.dtype == "uint8" else rng.normal(size=(4, *spec.shape))
        )
        arrays[name] = whole.astype(spec.dtype)[rows]
    labels = np.eye(config.tasks[task].num_classes, dtype=np.uint8)[np.arange(4) % 3][rows]
    first = range(4)[rows].start
    return Minibatch(step, task, arrays, labels, ("",) * len(labels), first, 4)


def trained(folder: Path, **model: Any) -> tuple[Path, AVBert, RunConfig]:
    """A checkpoint of random weights and running averages in `folder`, as a run would leave it."""
    changed = copy.deepcopy(TINY)
    changed["model"] |= model
    changed["optim"]["ema_decay"] = None
    config = validate_config({**changed, "storage": str(folder)})
    made = build_model(config, seed=5)
    assert isinstance(made, AVBert)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for buffer in made.buffers():
            buffer.uniform_(0.5, 1.5, generator=generator)
        for head in made.heads.parameters():
            head.normal_(0.0, 0.5, generator=generator)
    return write_checkpoint(folder / "run" / "step_00000001", made, config), made.eval(), config
