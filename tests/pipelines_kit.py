"""Two datasets of one's own (pictures in folders, sounds in a CSV) and a config for them."""

from pathlib import Path
from typing import Any

import numpy as np
from small import write_yaml

from pipelines.index import Indexes
from polyvit.config import RunConfig, load_config
from polyvit.data.layouts.scanner import scan
from polyvit.data.loading.minibatch import Minibatch
from polyvit.schedule.plan import Plan
from polyvit.schedule.schedule import build_schedule

Signature = tuple[int, str, bytes, bytes, tuple[str, ...], tuple, int]


def pair_document(root: Path) -> dict[str, Any]:
    """What the README's own-data tutorial has its reader write, made tiny."""
    return {
        "seed": 1,
        "model": {
            "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32, "l_adapt": 1,
            "image": {"size": 16, "patch_size": 8},
            "audio": {"frames": 32, "mel_bins": 16, "patch_size": 16, "channels": 1},
        },
        "optim": {"kind": "adamw", "lr": 0.003, "warmup_steps": 2},
        "tasks": {
            "shapes": {
                "modality": "image", "layout": "imagefolder", "num_classes": 3, "steps": 20, "batch": 8,
            },
            "sounds": {
                "modality": "audio", "layout": "csv", "num_classes": 3, "steps": 8, "batch": 2,
                "mixup_alpha": 0.3, "drop_path": 0.2,
            },
        },
        "data": {"root": str(root)},
    }  # fmt: skip


def pair_config(root: Path, folder: Path, *overrides: str) -> RunConfig:
    """The config, through a file."""
    return load_config(str(write_yaml(folder / "pair.yaml", pair_document(root))), overrides)


def scanned(config: RunConfig) -> Indexes:
    """Indexes without Ray."""
    roots = {name: Path(task.root or f"{config.data.root}/{name}") for name, task in config.tasks.items()}
    return Indexes({name: scan(task, roots[name], name) for name, task in config.tasks.items()}, roots)


def planned(config: RunConfig, indexes: Indexes) -> Plan:
    """The plan as a train worker makes it."""
    sizes = {name: len(found.split("train")) for name, found in indexes.scans.items()}
    return Plan(build_schedule(config.schedule, config.tasks, config.seed), config.tasks, sizes, config.seed)


def signature(made: list[Minibatch]) -> Signature:
    """The minibatch that the ranks' parts make together, as bytes."""
    first = made[0]
    assert {(p.step, p.task, p.global_batch) for p in made} == {(first.step, first.task, first.global_batch)}
    assert [p.first_slot for p in made] == np.cumsum([0, *(len(p.keys) for p in made)])[:-1].tolist()
    assert (
        len(
            {
                (p.inputs["tokens"].dtype, p.inputs["tokens"].shape[1:], p.labels.dtype, p.labels.shape[1:])
                for p in made
            }
        )
        == 1
    )
    return (
        first.step, first.task, b"".join(p.inputs["tokens"].tobytes() for p in made),
        b"".join(p.labels.tobytes() for p in made), sum((p.keys for p in made), ()),
        sum((p.bad for p in made), ()), sum(p.undecodable for p in made),
    )  # fmt: skip
