"""The training loop: take the step's minibatch, step, log, evaluate, checkpoint.

All ranks run it in lockstep; every decision (task, learning rate, stop) follows from the step number and from
numbers already summed over ranks, so no rank has to be told anything.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch

from polyvit.checkpoint import TrainState, TrainUnit
from polyvit.config import RunConfig
from polyvit.data.loading import Minibatch, Quarantined, on_device
from polyvit.distributed import gathered, is_sharded
from polyvit.errors import UserError
from polyvit.evaluation import evaluate
from polyvit.model import device_of
from polyvit.schedule import SPARES, Schedule
from polyvit.training.optim import lr_factor
from polyvit.training.step import Communicator, StepResult, train_step
from polyvit.training.throughput import ThroughputMeter, memory

JUDGED_FROM = 100
"""Examples of a task that must have been read before its undecodable share can end the run."""
NAMED = 8
"""Broken files that the message of such an end names."""


class Feed(Protocol):
    """Gives this rank its part of every step."""

    def train(self, start_step: int) -> Iterator[list[Minibatch]]:
        """The minibatches of steps start_step, start_step + 1, ... N."""

    def evaluation(self) -> Iterable[Minibatch]:
        """This rank's share of every task's evaluation split."""


class TrainCallback(Protocol):
    """What the loop calls to display, log and save; on every rank."""

    def progress(self, snapshot: dict[str, Any]) -> None:
        """After every step: step, total, task, loss, examples_per_s, data_wait, eta_s."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Points of curves, every `train.log_every` steps and after an evaluation."""

    def evaluated(self, step: int, scores: dict[str, float]) -> None:
        """After an evaluation: each task's metric, and their `mean`."""

    def checkpoint(self, state: TrainState, last: bool) -> None:
        """Save the state now. last: the run ends after it."""

    def stop_requested(self) -> bool:
        """Whether this rank was told to end the run at the next step. Asked at every step: must cost nothing."""

    def anomaly(self, minibatch: Minibatch) -> str | None:
        """Keep a minibatch that gave a loss or gradient that is not finite; returns where."""


def train(
    learner: TrainUnit, schedule: Schedule, feed: Feed, config: RunConfig, world: Communicator, state: TrainState,
    callback: TrainCallback, take_step: Callable[..., StepResult] = train_step,
) -> TrainState:  # fmt: skip
    """Steps state.global_step + 1 .. N, then an evaluation and a last checkpoint.

    Ends earlier, with a checkpoint and `state.stopped`, when a rank's `callback.stop_requested()` says so. Raises
    UserError, on all ranks at the same step, for a loss that is not finite, for a task with too many undecodable
    examples, and for a step that lacks an example because none of its spares can be decoded either. `take_step`
    stands in for `polyvit.training.step.train_step` where the loop alone is measured.
    """
    model, total, curves = learner.model, len(schedule), Curves()
    device = device_of(model)
    meter = ThroughputMeter.of(config, device, world.size)
    fresh: list[Quarantined] = []
    last = state.global_step
    if last == total:  # a trial that was restarted after its end has yet to say how it ended
        callback.evaluated(last, state.scores())
    batches = on_device(feed.train(last + 1), device)
    for step in range(last + 1, total + 1):
        began = time.perf_counter()
        minibatches = next(batches)
        arrived = time.perf_counter()
        if any(minibatch.step != step for minibatch in minibatches):
            raise RuntimeError(f"the feed brought step {minibatches[0].step} at step {step}")
        lr = learning_rate(config, step, total, minibatches[0].task)
        flag = float(callback.stop_requested())
        result = take_step(
            model, learner.optimiser, minibatches, lr, config, world, flag=flag, microbatches=state.microbatches
        )
        if learner.ema:
            learner.ema.update()
        state.global_step, state.stopped = step, result.flag > 0 and step < total
        fresh += [entry for minibatch in minibatches for entry in minibatch.bad]
        _check_finite(minibatches, result, lr, config, world, callback)
        _count(state, minibatches, result, config, world, fresh)
        meter.add(arrived - began, time.perf_counter() - arrived, {m.task: m.global_batch for m in minibatches})
        callback.progress(_snapshot(minibatches, result, total, meter))
        curves.add(minibatches, result, lr)
        done = step == total or state.stopped
        values: dict[str, float] = {}
        if step % config.train.log_every == 0 or done:
            values |= {**curves.take(), **_timings(meter, device)}
        every = config.train.eval_every
        if step == total or (every and step % every == 0):
            with _timed(meter, "evaluate"):
                fresh += _evaluate(learner, feed, config, world, state, values)
        if values:
            callback.metrics(step, values)
        if state.evaluations and state.evaluations[-1]["step"] == step:
            callback.evaluated(step, state.scores())
        if done or step % config.train.checkpoint_every == 0:
            with _timed(meter, "checkpoint"):
                state.quarantined([entry for entries in world.gather(fresh) for entry in entries])
                fresh = []
                callback.checkpoint(state, last=done)
        if state.stopped:
            return state
    _judge(state, config, world, fresh, judged_from=1)
    return state


def _snapshot(
    minibatches: list[Minibatch], result: StepResult, total: int, meter: ThroughputMeter
) -> dict[str, Any]:
    """The live line's numbers."""
    step = minibatches[0].step
    task = minibatches[0].task if len(minibatches) == 1 else "all tasks"
    loss = sum(result.losses) / len(result.losses)
    return {"step": step, "total": total, "task": task, "loss": loss, **meter.line(total - step)}


def _timings(meter: ThroughputMeter, device: torch.device) -> dict[str, float]:
    """Of a point of the curves."""
    return {f"pace/{key}": value for key, value in {**meter.take(), **memory(device)}.items()}


@contextmanager
def _timed(meter: ThroughputMeter, timer: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    meter.timed(timer, time.perf_counter() - began)


def learning_rate(config: RunConfig, step: int, total: int, task: str) -> float:
    """lr x the task's coefficient (the schedule's one, when accumulating) x cosine x warmup."""
    accumulating = config.schedule.kind == "accumulating"
    coef = config.schedule.accumulating_lr_coef if accumulating else config.tasks[task].lr_coef
    return config.optim.lr * coef * lr_factor(step, total, config.warmup_steps, config.optim.lr_decay)


def _evaluate(
    learner: TrainUnit, feed: Feed, config: RunConfig, world: Communicator, state: TrainState,
    values: dict[str, float],
) -> list[Quarantined]:  # fmt: skip
    with ExitStack() as stack:
        if learner.ema:
            stack.enter_context(learner.ema.swapped())
        if is_sharded(learner.model):
            stack.enter_context(gathered(learner.model))
        results, bad = evaluate(learner.model, feed.evaluation(), config, world)
    state.evaluations.append({"step": state.global_step, "tasks": results})
    values |= {
        f"eval/{task}/{key}": value
        for task, result in results.items()
        for key, value in result.items()
        if isinstance(value, float)
    }
    # Every rank has the whole list already; rank 0's copy alone goes on to be gathered.
    return bad if world.rank == 0 else []


def _check_finite(
    minibatches: list[Minibatch],
    result: StepResult,
    lr: float,
    config: RunConfig,
    world: Communicator,
    callback: TrainCallback,
) -> None:
    """Raises UserError where a loss or the gradient is not finite, with the examples' keys and what was saved."""
    broken = [m.task for m, loss in zip(minibatches, result.losses, strict=True) if not math.isfinite(loss)]
    if not broken and math.isfinite(result.grad_norm):
        return
    suspects = [m for m in minibatches if not broken or m.task in broken]
    gathered = world.gather([(m.keys, callback.anomaly(m)) for m in suspects])
    step, task = minibatches[0].step, suspects[0].task
    what = f"loss of task {task} is {result.losses[[m.task for m in minibatches].index(task)]}"
    if not broken:
        what = f"the gradient's norm is {result.grad_norm} for task {task}"
    keys = [key for entries in gathered for part, _ in entries for key in part]
    saved = [path for entries in gathered for _, path in entries if path]
    raise UserError(
        f"{what} at step {step} (learning rate {lr:g}). Lower the task's learning rate "
        f"(tasks.{task}.lr_coef={config.tasks[task].lr_coef}) or lengthen optim.warmup_steps; the checkpoints "
        "before this step are whole",
        [f"examples: {', '.join(keys[:8])}{f' and {len(keys) - 8} more' if len(keys) > 8 else ''}",
         *(f"minibatch saved: {path}" for path in saved)],
    )  # fmt: skip


def _count(
    state: TrainState, minibatches: list[Minibatch], result: StepResult, config: RunConfig, world: Communicator,
    fresh: list[Quarantined],
) -> None:  # fmt: skip
    for minibatch, bad in zip(minibatches, result.bad, strict=True):
        task = minibatch.task
        state.read[task] = state.read.get(task, 0) + minibatch.global_batch
        state.bad[task] = state.bad.get(task, 0) + bad
    _judge(state, config, world, fresh, judged_from=JUDGED_FROM)
    if missing := sum(minibatch.global_batch for minibatch in minibatches) - result.examples:
        # Later examples have moved up: pairs and draws of this step are not those of the plan.
        tasks = " and ".join(minibatch.task for minibatch in minibatches)
        raise UserError(
            f"task {tasks}: {missing} examples of step {state.global_step} cannot be decoded, nor can any of the "
            f"step's {SPARES} substitutes. Repair or remove the task's broken files; the checkpoints before this "
            "step are whole",
            _first_broken(world, fresh),
        )


def _judge(
    state: TrainState, config: RunConfig, world: Communicator, fresh: list[Quarantined], judged_from: int
) -> None:
    """Raises UserError where too large a share of a task's planned examples could not be decoded.

    Every rank holds the same counts, so all of them come to the same end at the same step.
    """
    allowed = config.data.max_bad_fraction
    for task, read in state.read.items():
        if read >= judged_from and state.bad[task] > allowed * read:
            raise UserError(
                f"task {task}: {state.bad[task]} of the {read} examples read so far cannot be decoded, above "
                f"data.max_bad_fraction={allowed}. Repair or remove them, or raise the limit; some of them:",
                _first_broken(world, [*state.quarantine, *fresh], task),
            )


def _first_broken(world: Communicator, fresh: list[Quarantined], task: str | None = None) -> list[str]:
    """`path: reason` of the first few that all ranks together have met; called by all of them."""
    entries = sorted(
        {(entry.task, entry.path, entry.reason) for entries in world.gather(fresh) for entry in entries}
    )
    lines = [f"{name}: {path}: {reason}" for name, path, reason in entries if task in (None, name)]
    more = [f"and {len(lines) - NAMED} more"] if len(lines) > NAMED else []
    return [*lines[:NAMED], *more]


class Curves:
    """Means since the last point: loss per task, gradient norm, learning rate."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def add(self, minibatches: list[Minibatch], result: StepResult, lr: float) -> None:
        """One step's numbers."""
        for minibatch, loss in zip(minibatches, result.losses, strict=True):
            self.values.setdefault(f"train/{minibatch.task}/loss", []).append(loss)
            self.values.setdefault(f"train/{minibatch.task}/lr", []).append(lr)
        for task, measures in result.measures.items():
            for name, value in measures.items():
                self.values.setdefault(f"train/{task}/{name}", []).append(value)
        self.values.setdefault("train/grad_norm", []).append(result.grad_norm)

    def take(self) -> dict[str, float]:
        """The means, and start again."""
        means = {key: sum(values) / len(values) for key, values in self.values.items()}
        self.values = {}
        return means
