"""Which examples make up step n, on which rank: pure functions of (seed, schedule, sizes of the train splits).

Task j's examples form an endless stream: epoch e is a permutation of the train split that depends on
(seed, task, e) alone, and visit v of the task takes the stream's entries [v * batch, (v + 1) * batch). No example
is dropped at an epoch's end. The global batch of a step never depends on the number of workers; a rank takes a
contiguous part of it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from polyvit.config import TaskConfig
from polyvit.schedule.schedule import Schedule

SPARES = 32
"""Substitutes named with every minibatch, tried in turn for an example that cannot be decoded. With half of all
files broken none is good once in 8 thousand million examples; then the run ends (`loop.train`)."""


@dataclass(frozen=True)
class PlannedBatch:
    """One task's minibatch at one step, whole or a rank's part of it.

    positions, epochs: [n] index into the task's train split in key order, and the epoch of each.
    first_slot: place of the first of them in the global batch of `global_batch` examples.
    spares: [SPARES] positions of the step's substitutes, the same for every rank.
    """

    step: int
    task: str
    positions: np.ndarray
    epochs: np.ndarray
    first_slot: int
    global_batch: int
    spares: np.ndarray


@dataclass(frozen=True)
class Plan:
    """The plan of a run: schedule + sizes of the train splits + seed."""

    schedule: Schedule
    tasks: Mapping[str, TaskConfig]
    sizes: Mapping[str, int]
    seed: int

    def at(self, step: int, rank: int = 0, world_size: int = 1) -> list[PlannedBatch]:
        """The minibatches of global step 1..N for one rank: one, or one a task when accumulating."""
        return [
            self._batch(step, task, task_step, rank, world_size)
            for task, task_step in self.schedule.tasks_at(step)
        ]

    def recent(self, step: int, count: int, rank: int = 0, world_size: int = 1) -> list[PlannedBatch]:
        """The last `count` minibatches of each task up to global step `step`, or its first where it had fewer."""
        return [
            self._batch(step, task, max(0, steps - count) + n, rank, world_size)
            for task, steps in self.schedule.counts(step).items()
            for n in range(count)
        ]

    def _batch(self, step: int, task: str, task_step: int, rank: int, world_size: int) -> PlannedBatch:
        config, size = self.tasks[task], self.sizes[task]
        start, stop = rank_slice(config.batch, rank, world_size, pairs=mixes(config))
        stream = task_step * config.batch + np.arange(start, stop)
        epochs, slots = stream // size, stream % size
        positions = np.empty_like(slots)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            positions[here] = epoch_permutation(self.seed, task, int(epoch), size)[slots[here]]
        rng = np.random.Generator(np.random.Philox(_key(self.seed, task, "spares", task_step)))
        spares = rng.integers(size, size=SPARES)
        return PlannedBatch(step, task, positions, epochs, start, config.batch, spares)


def mixes(task: TaskConfig) -> bool:
    """Whether a task's examples are mixed in pairs, so that a pair must lie on one rank."""
    return task.pairs_examples


def rank_slice(batch: int, rank: int, world_size: int, pairs: bool = False) -> tuple[int, int]:
    """[start, stop) of the global batch that `rank` takes: parts differ by one example (two with `pairs`).

    With `pairs`, slots 2i and 2i + 1 stay together.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is outside 0..{world_size - 1}")
    if pairs:
        halves = [(batch // 2) * r // world_size * 2 for r in (rank, rank + 1)]
        return halves[0], batch if rank == world_size - 1 else halves[1]
    return batch * rank // world_size, batch * (rank + 1) // world_size


@lru_cache(maxsize=24)
def epoch_permutation(seed: int, task: str, epoch: int, size: int) -> np.ndarray:
    """[size] the order of one epoch; computed once an epoch, kept for a few."""
    rng = np.random.Generator(np.random.Philox(_key(seed, task, "epoch", epoch)))
    order = rng.permutation(size)
    order.setflags(write=False)
    return order


def _key(seed: int, task: str, what: str, number: int) -> int:
    text = f"{seed}\x00{task}\x00{what}\x00{number}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
