"""The training loop: take the step's minibatch, step, log, evaluate, checkpoint.

All ranks run it in lockstep; every decision (task, learning rate, stop) follows from the step number and from
numbers already summed over ranks, so no rank has to be told anything. On a GPU a step's numbers are looked at
`readback.LAG` steps later, the same number on every rank, so that the host does not hold the device up; before an
evaluation, a checkpoint and the end all of them are.
"""

import gc
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from polyvit.checkpoint import TrainState, TrainUnit
from polyvit.config import RunConfig
from polyvit.data.loading import Minibatch, Quarantined, on_device, on_host
from polyvit.evaluation import evaluate
from polyvit.model import device_of
from polyvit.schedule import Schedule
from polyvit.training.checks import check_finite, count_examples, judge
from polyvit.training.curves import Curves, snapshot, timings
from polyvit.training.early_stopping import early_end
from polyvit.training.interference import MINIBATCHES, compare_gradients, curve_points, measure_gradients
from polyvit.training.loss_weights import dwa_weights
from polyvit.training.optim import lr_factor
from polyvit.training.readback import Readback, StepNumbers, readback_for
from polyvit.training.step import Communicator, TrainStep
from polyvit.training.throughput import ThroughputMeter
from polyvit.training.warm_up import compiled_graphs

COLLECT_EVERY = 50
"""Steps between collections of young garbage, as torchtitan; of all garbage at evaluations and checkpoints."""


class Feed(Protocol):
    """Gives this rank its part of every step."""

    def train(self, start_step: int) -> Iterator[list[Minibatch]]:
        """The minibatches of steps start_step, start_step + 1, ... to the last whose task is known."""

    def recent(self, step: int, count: int) -> Iterable[Minibatch]:
        """This rank's part of the last `count` minibatches of each task up to a step (`Plan.recent`)."""

    def evaluation(self) -> Iterable[Minibatch]:
        """This rank's share of every task's evaluation split."""


class TrainCallback(Protocol):
    """What the loop calls to display, log and save; on every rank."""

    def progress(self, snapshot: dict[str, Any]) -> None:
        """Of every step, once its numbers are there: step, total, task, loss, examples_per_s, data_wait, eta_s."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Points of curves, every `train.log_every` steps and after an evaluation."""

    def evaluated(self, step: int, scores: dict[str, float]) -> None:
        """After an evaluation: each task's metric, and their `mean`."""

    def checkpoint(self, state: TrainState, last: bool) -> None:
        """Save the state now. last: the run ends after it."""

    def stop_requested(self) -> bool:
        """Whether this rank was told to end the run. Asked at every step: must cost nothing. The run ends at this
        step, or on a GPU `readback.LAG` steps later."""

    def anomaly(self, minibatch: Minibatch) -> str | None:
        """Keep a minibatch that gave a loss or gradient that is not finite; returns where."""


@dataclass(frozen=True)
class Launched:
    """A step whose numbers are not read yet. minibatches: in host memory, to be saved should they be broken.

    copy: of its numbers, see `Readback`. waited: seconds for its data.
    """

    step: int
    minibatches: list[Minibatch]
    lr: float
    numbers: StepNumbers
    copy: Any
    waited: float


def train(
    learner: TrainUnit, schedule: Schedule, feed: Feed, config: RunConfig, world: Communicator, state: TrainState,
    callback: TrainCallback, start_step: Callable[[list[Minibatch], float, float], StepNumbers] | None = None,
    readback: Readback | None = None,
) -> TrainState:  # fmt: skip
    """Steps state.global_step + 1 .. N, then an evaluation and a last checkpoint.

    Ends earlier, with a checkpoint and `state.stopped`, when a rank's `callback.stop_requested()` says so, and
    with `state.ended` at an evaluation where `train.early_stopping` does. Raises
    UserError, on all ranks at the same step, for a loss that is not finite, for a task with too many undecodable
    examples, and for a step that lacks an example because none of its spares can be decoded either. `start_step`
    stands in for `TrainStep.start` where the loop alone is measured, `readback` for the device's.
    """
    run = _Run(learner, schedule, feed, config, world, state, callback, readback)
    state.ended = early_end(config, state.evaluations, state.global_step)
    last = state.global_step if state.ended else run.total
    if state.global_step == last:  # a trial that was restarted after its end has yet to say how it ended
        callback.evaluated(last, state.scores())
    model, optimiser, learned, drift = learner.model, learner.optimiser, learner.loss_weights, learner.drift
    trainer = TrainStep(model, optimiser, config, world, state.microbatches, learned, drift)
    trainer.loss_weights = dwa_weights(config, state.evaluations)
    start_step = start_step or trainer.start
    schedule.follow(state.decisions)
    batches = _batches(feed, schedule, state.global_step + 1, run.device)
    with no_collection_inside_steps():
        for step in range(state.global_step + 1, last + 1):
            began = time.perf_counter()
            minibatches = next(batches)
            waited = time.perf_counter() - began
            if any(minibatch.step != step for minibatch in minibatches):
                raise RuntimeError(f"the feed brought step {minibatches[0].step} at step {step}")
            lr = learning_rate(config, step, run.total, minibatches[0].task)
            numbers = start_step(minibatches, lr, float(callback.stop_requested()))
            if learner.ema:
                learner.ema.update()
            run.launched(step, minibatches, lr, numbers, waited)
            evaluations = len(state.evaluations)
            if run.between_steps(step):
                break
            if len(state.evaluations) > evaluations:
                trainer.loss_weights = dwa_weights(config, state.evaluations)
    if not state.stopped:
        run.judge(1)
    return state


def _batches(feed: Feed, schedule: Schedule, start: int, device: torch.device) -> Iterator[list[Minibatch]]:
    """The minibatches of steps start .. N. The feed is asked again where a decision made more steps known, so that
    nothing is read ahead over an evaluation that decides."""
    while start <= len(schedule):
        known = schedule.known
        yield from on_device(feed.train(start), device)
        start = known + 1


class _Run:
    """What happens between steps: numbers are read, looked at, shown; evaluations; checkpoints."""

    def __init__(
        self, learner: TrainUnit, schedule: Schedule, feed: Feed, config: RunConfig, world: Communicator,
        state: TrainState, callback: TrainCallback, readback: Readback | None,
    ) -> None:  # fmt: skip
        self.learner, self.feed, self.config, self.world = learner, feed, config, world
        self.state, self.callback, self.total = state, callback, len(schedule)
        self.schedule = schedule
        self.device = device_of(learner.model)
        self.readback = readback or readback_for(self.device)
        self.graphs = compiled_graphs()
        self.curves, self.meter = Curves(), ThroughputMeter.of(config, self.device, world.size)
        self.fresh: list[Quarantined] = []
        state.stopped = False
        self.ahead: deque[Launched] = deque()
        self.settled_at, self.waits = time.perf_counter(), 0.0

    def launched(
        self, step: int, minibatches: list[Minibatch], lr: float, numbers: StepNumbers, waited: float
    ) -> None:
        """A step is under way; begin to copy its numbers."""
        self.state.global_step = step
        self.waits += waited
        copy = self.readback.start(numbers.values)
        self.ahead.append(Launched(step, [on_host(m) for m in minibatches], lr, numbers, copy, waited))

    def between_steps(self, step: int) -> bool:
        """After step `step` was launched; returns whether the run ends here."""
        config, state, every = self.config, self.state, self.config.train.eval_every
        evaluates = step == self.total or bool(every and step % every == 0)
        saves = step == self.total or step % config.train.checkpoint_every == 0
        values = self._settle(0 if evaluates or saves else self.readback.lag)
        if state.stopped:
            values |= self._settle(0)
        done = step == self.total or state.stopped
        if done and not values:
            values = self._point()
        if evaluates:
            with self._timed("evaluate"):
                self.fresh += _evaluate(self.learner, self.feed, config, self.world, state, values)
                values |= self.learner.drift.points() if self.learner.drift else {}
                if step < self.total and not done:
                    state.ended = self.world.gather(early_end(config, state.evaluations, step))[0]
                if state.ended:
                    done = True
                    values |= {} if "train/grad_norm" in values else self._point()
                elif step == self.schedule.known < self.total:
                    values |= self._decide()
        if config.train.interference_every and step % config.train.interference_every == 0:
            with self._timed("evaluate"):
                values |= self._interference(step)
        if values:
            self.callback.metrics(step, values)
        if evaluates:
            self.callback.evaluated(step, state.scores())
        if done or saves:
            with self._timed("checkpoint"):
                state.quarantined([entry for entries in self.world.gather(self.fresh) for entry in entries])
                self.fresh = []
                self.callback.checkpoint(state, last=done)
        if evaluates or saves or step % COLLECT_EVERY == 0:
            gc.collect(2 if evaluates or saves else 1)
        return done

    def _decide(self) -> dict[str, float]:
        """An adaptive schedule's next interval, as rank 0 decides it; returns its shares."""
        decision = self.schedule.decide(self.state.evaluations, self.state.decisions)
        self.state.decisions.append(self.world.gather(decision)[0])
        self.schedule.follow(self.state.decisions)
        return {f"schedule/{task}/share": x for task, x in self.state.decisions[-1]["shares"].items()}

    def _interference(self, step: int) -> dict[str, float]:
        """Points of curves: how gradients of the tasks' last minibatches agree."""
        model, minibatches = self.learner.model, self.feed.recent(step, MINIBATCHES)
        gradients = measure_gradients(model, minibatches, self.config, self.world, self.state.microbatches)
        return curve_points(compare_gradients(gradients, model.modality, None))

    def judge(self, judged_from: int) -> None:
        """See `checks.judge`."""
        judge(self.state, self.config, self.world, self.fresh, judged_from)

    def _settle(self, lag: int) -> dict[str, float]:
        """Look at the numbers of all steps but the last `lag`. Returns the point of the newest step, where it has
        one; the points of others are given to the callback here."""
        values: dict[str, float] = {}
        while len(self.ahead) > lag:
            entry = self.ahead.popleft()
            self._look(entry)
            if entry.step % self.config.train.log_every == 0:
                values = self._point()
                if entry.step < self.state.global_step:
                    self.callback.metrics(entry.step, values)
                    values = {}
        return values

    def _look(self, entry: Launched) -> None:
        """At the numbers of one step."""
        result = entry.numbers.result(self.readback.read(entry.copy))
        state, minibatches = self.state, entry.minibatches
        state.stopped = state.stopped or (result.flag > 0 and state.global_step < self.total)
        self.fresh += [bad for minibatch in minibatches for bad in minibatch.bad]
        check_finite(minibatches, result, entry.lr, self.config, self.world, self.callback.anomaly)
        count_examples(state, entry.step, minibatches, result, self.config, self.world, self.fresh)
        now = time.perf_counter()
        spent = max(0.0, now - self.settled_at - self.waits)
        self.settled_at, self.waits = now, 0.0
        self.meter.add(entry.waited, spent, {m.task: m.global_batch for m in minibatches})
        self.callback.progress(snapshot(minibatches, result, self.total, self.meter, entry.lr))
        self.curves.add(minibatches, result, entry.lr)

    def _point(self) -> dict[str, float]:
        values = {**self.curves.take(), **timings(self.meter, self.device)}
        if self.learner.model.compiled:  # none after the warm-up, or shapes change that should not
            values["pace/recompilations"] = float(compiled_graphs() - self.graphs)
        return values

    @contextmanager
    def _timed(self, timer: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.meter.timed(timer, time.perf_counter() - began)
        self.settled_at = time.perf_counter()


@contextmanager
def no_collection_inside_steps() -> Iterator[None]:
    """Python's garbage collector keeps still, which would stop the launches for tens of milliseconds wherever it
    likes; `_Run.between_steps` runs it.

    What is there before the first step (modules, model, optimiser) is set aside, so that a collection looks at
    what the steps have left and no more: of all objects of a process with torch and Ray it took 0.1 to 0.4 s.
    """
    was, mine = gc.isenabled(), not gc.get_freeze_count()
    gc.disable()
    if mine:
        gc.freeze()
    try:
        yield
    finally:
        if mine:
            gc.unfreeze()
        if was:
            gc.enable()


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
        results, bad = evaluate(learner.model, feed.evaluation(), config, world)
    state.evaluations.append({"step": state.global_step, "tasks": results})
    values |= {
        f"eval/{task}/{key}": value
        for task, result in results.items()
        for key, value in result.items()
        if isinstance(value, float)
    }
    values |= {f"eval/{key}": value for key, value in state.scores().items() if key == "mean"}
    # Every rank has the whole list already; rank 0's copy alone goes on to be gathered.
    return bad if world.rank == 0 else []
