"""The training loop: take the step's minibatch, step, log, evaluate, checkpoint.

All ranks run it in lockstep; every decision (task, learning rate, stop) follows from the step number and from
numbers already summed over ranks, so no rank has to be told anything.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from polyvit.checkpoint import TrainState
from polyvit.config import RunConfig
from polyvit.data.minibatch import Minibatch, Quarantined
from polyvit.errors import UserError
from polyvit.evaluate import evaluate
from polyvit.model.polyvit import PolyViT
from polyvit.optim import Optimiser, lr_factor
from polyvit.schedule import Schedule
from polyvit.step import StepResult, World, train_step

JUDGED_FROM = 100
"""Examples of a task that must have been read before its undecodable share can end the run."""


class Feed(Protocol):
    """Brings this rank its part of every step."""

    def train(self, start_step: int) -> Iterator[list[Minibatch]]:
        """The minibatches of steps start_step, start_step + 1, ... N."""

    def evaluation(self) -> Iterable[Minibatch]:
        """This rank's share of every task's evaluation split."""


class Events(Protocol):
    """Where the loop's news goes: display, MLflow, checkpoint store. Called on every rank."""

    def progress(self, snapshot: dict[str, Any]) -> None:
        """After every step: step, total, task, loss, examples_per_s, data_wait, eta_s."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Points of curves, every `train.log_every` steps and after an evaluation."""

    def checkpoint(self, state: TrainState) -> None:
        """Time to save."""


@dataclass
class Timer:
    """Shares of the recent steps' time, and the pace."""

    waits: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    steps: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    examples: deque[int] = field(default_factory=lambda: deque(maxlen=50))

    def add(self, wait_s: float, step_s: float, examples: int) -> None:
        """Seconds waited for data, seconds of the whole step, examples in it."""
        self.waits.append(wait_s)
        self.steps.append(step_s)
        self.examples.append(examples)

    def snapshot(self, steps_left: int) -> dict[str, float]:
        """examples_per_s, data_wait (0..1), step_s, eta_s."""
        seconds = max(sum(self.steps), 1e-9)
        mean = seconds / max(1, len(self.steps))
        return {
            "examples_per_s": sum(self.examples) / seconds,
            "data_wait": sum(self.waits) / seconds,
            "step_s": mean,
            "eta_s": mean * steps_left,
        }


def train(
    model: PolyViT,
    optimiser: Optimiser,
    schedule: Schedule,
    feed: Feed,
    config: RunConfig,
    world: World,
    state: TrainState,
    events: Events,
) -> TrainState:
    """Steps state.global_step + 1 .. N, then an evaluation and a last checkpoint.

    Raises UserError, on all ranks at the same step, for a loss that is not finite and for a task with too many
    undecodable examples.
    """
    total, timer, curves = len(schedule), Timer(), Curves()
    fresh: list[Quarantined] = []
    last = state.global_step
    batches = feed.train(last + 1)
    for step in range(last + 1, total + 1):
        began = time.perf_counter()
        minibatches = next(batches)
        waited = time.perf_counter() - began
        if any(minibatch.step != step for minibatch in minibatches):
            raise RuntimeError(f"the feed brought step {minibatches[0].step} at step {step}")
        lr = learning_rate(config, step, total, minibatches[0].task)
        result = train_step(model, optimiser, minibatches, lr, config, world)
        state.global_step = step
        fresh += [entry for minibatch in minibatches for entry in minibatch.bad]
        _count(state, minibatches, result, config)
        timer.add(waited, time.perf_counter() - began, sum(m.global_batch for m in minibatches))
        pace = timer.snapshot(total - step)
        task = minibatches[0].task if len(minibatches) == 1 else "all tasks"
        loss = sum(result.losses) / len(result.losses)
        events.progress({"step": step, "total": total, "task": task, "loss": loss, **pace})
        curves.add(minibatches, result, lr)
        if step % config.train.log_every == 0 or step == total:
            events.metrics(step, {**curves.take(), **{f"pace/{k}": v for k, v in pace.items()}})
        every = config.train.eval_every
        if step == total or (every and step % every == 0):
            fresh += _evaluate(model, feed, config, world, state, events)
        if step == total or step % config.train.checkpoint_every == 0:
            state.quarantined([entry for entries in world.gather(fresh) for entry in entries])
            fresh = []
            events.checkpoint(state)
    _judge(state, config, judged_from=1)
    return state


def learning_rate(config: RunConfig, step: int, total: int, task: str) -> float:
    """lr x the task's coefficient (the schedule's one, when accumulating) x cosine x warmup."""
    accumulating = config.schedule.kind == "accumulating"
    coef = config.schedule.accumulating_lr_coef if accumulating else config.tasks[task].lr_coef
    return config.optim.lr * coef * lr_factor(step, total, config.warmup_steps)


def _evaluate(
    model: PolyViT, feed: Feed, config: RunConfig, world: World, state: TrainState, events: Events
) -> list[Quarantined]:
    results, bad = evaluate(model, feed.evaluation(), config, world)
    state.evaluations.append({"step": state.global_step, "tasks": results})
    values = {
        f"eval/{task}/{key}": value
        for task, result in results.items()
        for key, value in result.items()
        if isinstance(value, float)
    }
    events.metrics(state.global_step, values)
    # Every rank has the whole list already; rank 0's copy alone goes on to be gathered.
    return bad if world.rank == 0 else []


def _count(state: TrainState, minibatches: list[Minibatch], result: StepResult, config: RunConfig) -> None:
    for minibatch, loss, bad in zip(minibatches, result.losses, result.bad, strict=True):
        task = minibatch.task
        state.read[task] = state.read.get(task, 0) + minibatch.global_batch
        state.bad[task] = state.bad.get(task, 0) + bad
        if not abs(loss) < float("inf"):
            raise UserError(
                f"loss of task {task} is {loss} at step {state.global_step}. Lower its learning rate "
                f"(tasks.{task}.lr_coef={config.tasks[task].lr_coef}) or lengthen optim.warmup_steps"
            )
    _judge(state, config, judged_from=JUDGED_FROM)


def _judge(state: TrainState, config: RunConfig, judged_from: int) -> None:
    allowed = config.data.max_bad_fraction
    for task, read in state.read.items():
        if read >= judged_from and state.bad[task] > allowed * read:
            raise UserError(
                f"task {task}: {state.bad[task]} of the {read} examples read so far cannot be decoded, above "
                f"data.max_bad_fraction={allowed}. Repair or remove the files that the quarantine list names, or "
                "raise the limit"
            )


class Curves:
    """Means since the last point: loss per task, gradient norm, learning rate."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def add(self, minibatches: list[Minibatch], result: StepResult, lr: float) -> None:
        """One step's numbers."""
        for minibatch, loss in zip(minibatches, result.losses, strict=True):
            self.values.setdefault(f"train/{minibatch.task}/loss", []).append(loss)
            self.values.setdefault(f"train/{minibatch.task}/lr", []).append(lr)
        self.values.setdefault("train/grad_norm", []).append(result.grad_norm)

    def take(self) -> dict[str, float]:
        """The means, and start again."""
        means = {key: sum(values) / len(values) for key, values in self.values.items()}
        self.values = {}
        return means
