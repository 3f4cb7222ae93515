"""Which task is trained at which step: five kinds, each a pure function of (seed, step).

In: the tasks' step counts U_j. Out: a `Schedule`, whose `tasks_at(step)` names the tasks (one, or all of them
for `accumulating`) of global step 1..N. Source of the five kinds: PolyViT, section 3.2 (facts.md). Where the
official code is off by one (it trains the last entry twice and the first never), ours is not.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from polyvit.config import ScheduleConfig, TaskConfig


@dataclass(frozen=True)
class Schedule:
    """The task of every step.

    order: [N] index into `tasks`, one entry a step; for `accumulating` it is unused and all zeros.
    visit: [N] how many earlier steps trained the same task (its task_step, from 0).
    """

    kind: str
    tasks: tuple[str, ...]
    order: np.ndarray
    visit: np.ndarray

    def __len__(self) -> int:
        """Optimiser steps, N."""
        return len(self.order)

    def tasks_at(self, step: int) -> tuple[tuple[str, int], ...]:
        """(task, task_step) of global step 1..N, task_step from 0. Raises IndexError outside 1..N."""
        if not 1 <= step <= len(self):
            raise IndexError(f"step {step} is outside 1..{len(self)}")
        if self.kind == "accumulating":
            return tuple((task, step - 1) for task in self.tasks)
        return ((self.tasks[self.order[step - 1]], int(self.visit[step - 1])),)

    def counts(self, until: int | None = None) -> dict[str, int]:
        """Minibatches of each task in steps 1..until (all steps by default)."""
        until = len(self) if until is None else until
        if self.kind == "accumulating":
            return dict.fromkeys(self.tasks, until)
        counts = np.bincount(self.order[:until], minlength=len(self.tasks))
        return {task: int(n) for task, n in zip(self.tasks, counts, strict=True)}

    def steps_of(self, task: str) -> np.ndarray:
        """The steps, ascending, that train `task`."""
        if self.kind == "accumulating":
            return np.arange(1, len(self) + 1)
        return np.flatnonzero(self.order == self.tasks.index(task)) + 1

    def digest(self) -> str:
        """SHA-256 of the whole schedule, hex: equal means the same tasks at the same steps."""
        head = "\x00".join([self.kind, *self.tasks]).encode()
        return hashlib.sha256(head + b"\x00\x00" + self.order.astype("<i4").tobytes()).hexdigest()


def build_schedule(config: ScheduleConfig, tasks: Mapping[str, TaskConfig], seed: int) -> Schedule:
    """The schedule of a run; `config.seed` wins over `seed`."""
    names = tuple(tasks)
    steps = scaled_steps({name: task.steps for name, task in tasks.items()}, config.steps)
    counts = np.array([steps[name] for name in names])
    rng = np.random.Generator(np.random.Philox(seed if config.seed is None else config.seed))
    order = _order(config, counts, rng).astype(np.int32)
    return Schedule(config.kind, names, order, _visits(order, len(names)))


def scaled_steps(steps: Mapping[str, int], total: int | None) -> dict[str, int]:
    """U_j scaled in proportion to sum to `total`, by largest remainder, at least 1 each.

    Null `total` (and one below the number of tasks, which cannot be met) leaves U_j or gives 1 each.
    """
    if total is None:
        return dict(steps)
    whole = sum(steps.values())
    exact = {name: total * n / whole for name, n in steps.items()}
    scaled = {name: max(1, int(value)) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: scaled[name] - exact[name])
    for i in range(total - sum(scaled.values())):
        scaled[by_remainder[i % len(by_remainder)]] += 1
    while sum(scaled.values()) > max(total, len(scaled)):
        scaled[max(scaled, key=lambda name: scaled[name])] -= 1
    return scaled


def _order(config: ScheduleConfig, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Task indices of steps 1..N. `counts`: [T] U_j."""
    num_tasks, total = len(counts), int(counts.sum())
    if config.kind == "weighted":
        if config.replacement:
            return rng.choice(num_tasks, size=total, p=counts / total)
        return rng.permutation(np.repeat(np.arange(num_tasks), counts))
    if config.kind == "uniform":
        return rng.integers(num_tasks, size=total)
    if config.kind == "alternating":
        return np.arange(total) % num_tasks
    if config.kind == "task_by_task":
        blocks = rng.permutation(num_tasks)
        return np.repeat(blocks, counts[blocks])
    # accumulating: every step takes a minibatch of each task, so U / T steps see as many minibatches.
    return np.zeros(max(1, round(total / num_tasks)), dtype=np.int64)


def _visits(order: np.ndarray, num_tasks: int) -> np.ndarray:
    """[N] for every entry, how many equal entries stand before it."""
    visit = np.zeros(len(order), dtype=np.int64)
    for task in range(num_tasks):
        places = np.flatnonzero(order == task)
        visit[places] = np.arange(len(places))
    return visit
