"""Which task is trained at which step: five kinds, each a pure function of (seed, step), and one that reacts.

In: the tasks' step counts U_j. Out: a `Schedule`, whose `tasks_at(step)` names the tasks (one, or all of them
for `accumulating`) of global step 1..N. Source of the five kinds: PolyViT, section 3.2 (facts.md). Where the
official code is off by one (it trains the last entry twice and the first never), ours is not. `adaptive` is a pure
function of the seed and of the decisions taken at evaluations (`adaptive.py`): it is known up to the next one.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyvit.config import RunConfig, ScheduleConfig, TaskConfig
from polyvit.schedule.adaptive import Adaptive, Decision, whole_counts


@dataclass
class Schedule:
    """The task of every step.

    order: [n] index into `tasks`, one entry a step; for `accumulating` it is unused and all zeros.
    visit: [n] how many earlier steps trained the same task (its task_step, from 0). n is N, or the steps that are
    `known`. adaptive: what an adaptive schedule follows. shares: [T] its shares of the next interval; owed: [T]
    steps that rounding to whole numbers kept back so far, sum 0.
    """

    kind: str
    tasks: tuple[str, ...]
    order: np.ndarray
    visit: np.ndarray
    adaptive: Adaptive | None = None
    shares: np.ndarray = field(default_factory=lambda: np.zeros(0))
    owed: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __len__(self) -> int:
        """Optimiser steps, N."""
        return self.adaptive.total if self.adaptive else len(self.order)

    @property
    def known(self) -> int:
        """Steps whose tasks are known: all, or those up to the next decision."""
        return len(self.order)

    def follow(self, decisions: Sequence[Decision]) -> None:
        """Learn the tasks of the intervals that these decisions open; those followed before change nothing.

        Raises ValueError where a decision is missing between.
        """
        for decision in decisions:
            if decision["step"] > self.known:
                raise ValueError(f"the decision at step {self.known} is missing before that of {decision['step']}")
            if decision["step"] == self.known:
                shares = np.array([decision["shares"][task] for task in self.tasks])
                self._open(shares / shares.sum())

    def decide(self, evaluations: Sequence[Mapping[str, Any]], decisions: Sequence[Decision]) -> Decision:
        """The decision of an adaptive schedule at its last known step, where an evaluation has just been made."""
        assert self.adaptive is not None
        before = self.counts(evaluations[-2]["step"] if len(evaluations) > 1 else 0)
        steps = {task: n - before[task] for task, n in self.counts(self.known).items()}
        return self.adaptive.decide(self.tasks, steps, evaluations, decisions)

    def _open(self, shares: np.ndarray) -> None:
        """Draw the next interval; what rounding leaves over is carried to the one after."""
        assert self.adaptive is not None
        length = min(self.adaptive.interval, len(self) - self.known)
        owed = self.owed + shares * length
        order = self.adaptive.order(self.known + 1, owed)
        self.shares, self.owed = shares, owed - np.bincount(order, minlength=len(shares))
        self.order = np.concatenate([self.order, order.astype(np.int32)])
        self.visit = _visits(self.order, len(self.tasks))

    def tasks_at(self, step: int) -> tuple[tuple[str, int], ...]:
        """(task, task_step) of global step 1..N, task_step from 0. Raises IndexError outside 1..N, and beyond what
        is known."""
        if not 1 <= step <= len(self):
            raise IndexError(f"step {step} is outside 1..{len(self)}")
        if step > self.known:
            raise IndexError(f"the task of step {step} is decided at the evaluation of step {self.known}")
        if self.kind == "accumulating":
            return tuple((task, step - 1) for task in self.tasks)
        return ((self.tasks[self.order[step - 1]], int(self.visit[step - 1])),)

    def counts(self, until: int | None = None) -> dict[str, int]:
        """Minibatches of each task in steps 1..until (all steps by default).

        Of an adaptive schedule, steps that are not known yet count as if its present shares stayed.
        """
        until = len(self) if until is None else until
        if self.kind == "accumulating":
            return dict.fromkeys(self.tasks, until)
        counts = np.bincount(self.order[:until], minlength=len(self.tasks))
        if until > self.known:
            counts = counts + whole_counts(self.owed + self.shares * (until - self.known))
        return {task: int(n) for task, n in zip(self.tasks, counts, strict=True)}

    def steps_of(self, task: str) -> np.ndarray:
        """The known steps, ascending, that train `task`."""
        if self.kind == "accumulating":
            return np.arange(1, len(self) + 1)
        return np.flatnonzero(self.order == self.tasks.index(task)) + 1

    def digest(self) -> str:
        """SHA-256 of the whole schedule, hex: equal means the same tasks at the same steps.

        Of an adaptive schedule: the same rule, base shares and intervals, and so the same tasks where the same
        is measured; decisions do not change it.
        """
        head = "\x00".join([self.kind, *self.tasks]).encode()
        order = self.order
        if rule := self.adaptive:
            head += f"\x00{rule.settings.model_dump_json()}\x00{rule.total} {rule.interval} {rule.seed}".encode()
            order = order[: rule.interval]
        return hashlib.sha256(head + b"\x00\x00" + order.astype("<i4").tobytes()).hexdigest()


def schedule_of(config: RunConfig) -> Schedule:
    """The schedule of a run, as far as it is known before the run."""
    return build_schedule(config.schedule, config.tasks, config.seed, config.train.eval_every)


def build_schedule(
    config: ScheduleConfig, tasks: Mapping[str, TaskConfig], seed: int, interval: int | None = None
) -> Schedule:
    """The schedule of a run; `config.seed` wins over `seed`.

    interval: steps between evaluations, at which an adaptive schedule decides; raises ValueError without it.
    """
    names, seed = tuple(tasks), seed if config.seed is None else config.seed
    steps = scaled_steps({name: task.steps for name, task in tasks.items()}, config.steps)
    counts = tempered_counts(np.array([steps[name] for name in names]), config.temperature)
    if config.kind == "adaptive":
        if interval is None:
            raise ValueError("an adaptive schedule needs the interval between evaluations")
        base, none = tempered_shares(np.array(list(steps.values())), config.temperature), np.zeros(0, np.int32)
        rule = Adaptive(config.adaptive, base, int(counts.sum()), interval, seed)
        schedule = Schedule(config.kind, names, none, none.astype(np.int64), rule, base, np.zeros(len(names)))
        schedule._open(base)
        return schedule
    rng = np.random.Generator(np.random.Philox(seed))
    order = _order(config, counts, rng).astype(np.int32)
    return Schedule(config.kind, names, order, _visits(order, len(names)))


def tempered_shares(counts: np.ndarray, temperature: float) -> np.ndarray:
    """[T] shares in proportion to U_j^(1/temperature), sum 1. Source: mT5 (arXiv:2010.11934), section 3.1, and the
    multilingual BERT before it."""
    weights = (counts / counts.max()) ** (1 / temperature)
    return weights / weights.sum()


def tempered_counts(counts: np.ndarray, temperature: float) -> np.ndarray:
    """[T] U_j in these shares: of the same sum, at least 1 each, by largest remainder; 1 leaves them alone."""
    spare = counts.sum() - len(counts)
    if temperature == 1 or spare == 0:
        return counts
    above_one = np.maximum(0, tempered_shares(counts, temperature) * counts.sum() - 1)
    return 1 + whole_counts(above_one * spare / above_one.sum())


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
