"""A tiny co-training set-up on made-up arrays: no files, no Ray. Every modality, both losses, mixup, drop path."""

import copy
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from arrays_kit import token_dtype, token_shape

from polyvit.checkpoint.state import TrainState
from polyvit.config import RunConfig, apply_override, validate_config
from polyvit.data.loading.minibatch import Minibatch, Quarantined, multi_hot
from polyvit.model.polyvit import PolyViT
from polyvit.schedule.plan import Plan, PlannedBatch
from polyvit.schedule.schedule import Schedule, schedule_of
from polyvit.training.optim import Optimiser, build_optimiser

DOCUMENT: dict[str, Any] = {
    "name": "small",
    "seed": 7,
    "model": {
        "width": 16, "depth": 3, "num_heads": 2, "mlp_dim": 32, "l_adapt": 1,
        "image": {"size": 16, "patch_size": 8},
        "video": {"frames": 4, "size": 16, "tubelet_size": [2, 8, 8]},
        "audio": {"frames": 32, "mel_bins": 16, "patch_size": 16},
    },
    "optim": {"lr": 0.5, "warmup_steps": 3},
    "tasks": {
        "picture": {
            "modality": "image", "layout": "imagefolder", "num_classes": 5, "loss": "sigmoid", "steps": 5,
            "batch": 7, "lr_coef": 0.5, "drop_path": 0.2,
        },
        "clip": {
            "modality": "video", "layout": "kinetics", "num_classes": 4, "steps": 4, "batch": 4,
            "label_smoothing": 0.1,
        },
        "sound": {
            "modality": "audio", "layout": "audioset", "num_classes": 6, "loss": "sigmoid", "metric": "map",
            "steps": 6, "batch": 9, "lr_coef": 0.25, "mixup_alpha": 0.3, "drop_path": 0.3,
        },
        "word": {
            "modality": "audio", "layout": "csv", "num_classes": 3, "steps": 3, "batch": 3, "mixup_alpha": 0.3,
        },
    },
}  # fmt: skip
SIZES = {"picture": 20, "clip": 9, "sound": 30, "word": 7}


def document() -> dict[str, Any]:
    """A copy of DOCUMENT that a test may change."""
    return copy.deepcopy(DOCUMENT)


def small_config(*overrides: str) -> RunConfig:
    """DOCUMENT with `key.path=value` overrides, validated."""
    changed = document()
    for override in overrides:
        apply_override(changed, override)
    return validate_config(changed)


def small_plan(config: RunConfig, schedule: Schedule | None = None) -> Plan:
    """The plan over SIZES."""
    return Plan(schedule or schedule_of(config), config.tasks, SIZES, config.seed)


class ArrayFeed:
    """Arrays drawn from (task, position, epoch), as a decoder would draw augmentation; `bad` fail to decode."""

    def __init__(
        self, config: RunConfig, rank: int = 0, size: int = 1, bad: frozenset[tuple[str, int]] = frozenset(),
        schedule: Schedule | None = None,
    ) -> None:  # fmt: skip
        self.config, self.rank, self.size, self.bad = config, rank, size, bad
        self.plan = small_plan(config, schedule)
        self.started_at: list[int] = []

    def train(self, start_step: int) -> Iterator[list[Minibatch]]:
        self.started_at.append(start_step)
        for step in range(start_step, self.plan.schedule.known + 1):
            yield [self.minibatch(batch) for batch in self.plan.at(step, self.rank, self.size)]

    def recent(self, step: int, count: int) -> Iterator[Minibatch]:
        for batch in self.plan.recent(step, count, self.rank, self.size):
            yield self.minibatch(batch)

    def minibatch(self, batch: PlannedBatch) -> Minibatch:
        pairs = list(zip(batch.positions.tolist(), batch.epochs.tolist(), strict=True))
        found = [Quarantined(batch.task, str(p), f"{p}.bin", "made bad") for p, _ in pairs
                 if (batch.task, p) in self.bad]  # fmt: skip
        return self._arrays(batch.step, batch.task, pairs, batch.first_slot, batch.global_batch, tuple(found))

    def evaluation(self) -> Iterator[Minibatch]:
        for task in self.config.tasks:
            mine = [(1000 + i, -1) for i in range(10) if i % self.size == self.rank]
            yield self._arrays(0, task, mine, 0, 10, ())

    def _arrays(
        self, step: int, task: str, pairs: list[tuple[int, int]], slot: int, batch: int, bad: tuple
    ) -> Minibatch:
        config = self.config.tasks[task]
        shape = token_shape(self.config.model.input(config.modality))
        tokens = np.zeros((len(pairs), *shape), token_dtype(config))
        labels = []
        for i, (position, epoch) in enumerate(pairs):
            seed = int.from_bytes(hashlib.sha256(f"{task} {position} {epoch}".encode()).digest()[:8], "big")
            rng = np.random.Generator(np.random.Philox(seed))
            if tokens.dtype == np.uint8:
                tokens[i] = rng.integers(0, 256, shape)
            else:
                tokens[i] = rng.normal(size=shape)
            labels.append((position % config.num_classes,))
        keys = tuple(str(position) for position, _ in pairs)
        hot = multi_hot(labels, config.num_classes)
        return Minibatch(step, task, {"tokens": tokens}, hot, keys, slot, batch, bad, undecodable=len(bad))


class Heard:
    """Events that are kept, and states copied at checkpoints."""

    def __init__(self) -> None:
        self.snapshots: list[dict[str, Any]] = []
        self.points: list[tuple[int, dict[str, float]]] = []
        self.checkpoints: list[int] = []
        self.scores: list[tuple[int, dict[str, float]]] = []
        self.stop_at: int | None = None

    def progress(self, snapshot: dict[str, Any]) -> None:
        self.snapshots.append(snapshot)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.points.append((step, values))

    def evaluated(self, step: int, scores: dict[str, float]) -> None:
        self.scores.append((step, scores))

    def checkpoint(self, state: TrainState, last: bool) -> None:
        self.checkpoints.append(state.global_step)

    def stop_requested(self) -> bool:
        return len(self.snapshots) + 1 == self.stop_at

    def anomaly(self, minibatch: Minibatch) -> str | None:
        return f"somewhere/{minibatch.step}"


def fresh(config: RunConfig) -> tuple[PolyViT, Optimiser, Schedule]:
    """Model, optimiser and schedule as a worker builds them."""
    model = PolyViT(config.model, config.tasks, seed=config.seed)
    optimiser = build_optimiser(dict(model.named_parameters()), config.optim)
    return model, optimiser, schedule_of(config)


def write_yaml(path: Path, content: dict[str, Any]) -> Path:
    """A config file."""
    import yaml

    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
