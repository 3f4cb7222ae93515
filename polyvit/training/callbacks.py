"""Callbacks: what a user's own code, MLflow and TensorBoard hear of a run.

In: what the training loop reads anyway. Out: calls of `Callback` objects, in one process of the run (rank 0).
Nothing here waits for a device: a step's numbers come when they are on the host, on a GPU `LAG` steps later.
"""

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyvit.config import RunConfig, load_attribute
from polyvit.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunInfo:
    """What is known when training starts.

    folder: the run's. total: its optimiser steps. start_step: steps that are done; more than 0 where it goes on
    from a checkpoint. past: points of the curves up to there, (step, {name: value}).
    """

    config: RunConfig
    folder: Path
    total: int
    start_step: int = 0
    past: Sequence[tuple[int, dict[str, float]]] = ()


@dataclass(frozen=True)
class StepReport:
    """One optimiser step, over all workers.

    step, total: from 1 to `total`. losses: mean loss by task; several tasks where the schedule is accumulating.
    lr: learning rate of the step. grad_norm: of the reduced gradient, before it is clipped.
    examples_per_s: throughput of the last steps.
    """

    step: int
    total: int
    losses: dict[str, float]
    lr: float
    grad_norm: float
    examples_per_s: float

    @classmethod
    def of(cls, snapshot: dict[str, Any]) -> "StepReport":
        """From the live line's snapshot."""
        return cls(**{name: snapshot[name] for name in cls.__dataclass_fields__})


class Callback:
    """Override what you want to hear of; what is not overridden does nothing.

    One instance lives in one process: the one that trains, or rank 0 of several workers. It is called between
    steps, by the thread that trains, so that the run waits for it. A run that goes on from a checkpoint does the
    steps behind the checkpoint again, and reports them again.

    What a method raises ends the run after a step, with a checkpoint and a message that names the callback.
    """

    def on_start(self, run: RunInfo) -> None:
        """Before the first step."""

    def on_step(self, report: StepReport) -> None:
        """Of every step, once its numbers are read; on a GPU two steps later."""

    def on_log(self, step: int, values: dict[str, float]) -> None:
        """A point of the curves, as MLflow gets it: every `train.log_every` steps, and after an evaluation.

        values: by name, such as `train/pets/loss` (mean since the last point), `eval/pets/top1`, `pace/...`.
        """

    def on_evaluation(self, step: int, scores: dict[str, float]) -> None:
        """After an evaluation: each task's metric by its name, and their `mean`."""

    def on_checkpoint(self, step: int, address: str) -> None:
        """A checkpoint is whole on its storage: of which step, and its folder or URL. Checkpoints are written
        beside training, so this is called some steps later."""

    def on_end(self) -> None:
        """Once, however the run ended; nothing is called after it."""


@dataclass
class CallbackList:
    """Calls every callback, and keeps the first mistake of one, which ends the run between steps.

    failure: that mistake. Without callbacks nothing is done, so other ranks than 0 have an empty list.
    """

    callbacks: Sequence[Callback] = ()
    failure: UserError | None = None
    _written: "deque[tuple[int, str]]" = field(default_factory=deque)
    _out: set[int] = field(default_factory=set)

    def start(self, run: RunInfo) -> None:
        """See `Callback.on_start`."""
        self._call("on_start", run)

    def step(self, snapshot: dict[str, Any]) -> None:
        """See `Callback.on_step`."""
        if self.callbacks:
            self._call("on_step", StepReport.of(snapshot))

    def log(self, step: int, values: dict[str, float]) -> None:
        """See `Callback.on_log`; each gets its own copy."""
        self._call("on_log", step, values)

    def evaluation(self, step: int, scores: dict[str, float]) -> None:
        """See `Callback.on_evaluation`."""
        self._call("on_evaluation", step, scores)

    def written(self, step: int, address: str) -> None:
        """A checkpoint was written; called from any thread, told to the callbacks by the one that trains."""
        self._written.append((step, address))

    def end(self) -> None:
        """See `Callback.on_end`; those that failed before are told too, to close what they opened."""
        self._out.clear()
        self._call("on_end")

    def check(self) -> None:
        """Raises UserError where a callback failed."""
        if self.failure:
            raise self.failure

    def _call(self, method: str, *arguments: Any) -> None:
        while self._written:
            self._each("on_checkpoint", *self._written.popleft())
        self._each(method, *arguments)

    def _each(self, method: str, *arguments: Any) -> None:
        for i, callback in enumerate(self.callbacks):
            if i in self._out:
                continue
            try:
                getattr(callback, method)(*(dict(x) if isinstance(x, dict) else x for x in arguments))
            except Exception as error:
                logger.exception("callback %s failed in %s", type(callback).__name__, method)
                self._out.add(i)
                if self.failure is None:
                    where = f"{type(callback).__module__}:{type(callback).__qualname__}.{method}"
                    self.failure = UserError(
                        f"callback {where} raised {type(error).__name__}: {error}; its traceback is in the log."
                        " The run ended after a step, with a checkpoint: mend the callback, or leave it out"
                    )
                    self.failure.__cause__ = error


def checked_callbacks(callbacks: Iterable[Any]) -> list[Callback]:
    """The callbacks as a list. Raises UserError for what is none."""
    given = list(callbacks)
    for callback in given:
        if not isinstance(callback, Callback):
            what = f"the class {callback.__name__}" if isinstance(callback, type) else type(callback).__name__
            raise UserError(
                f"callbacks: {what} is no polyvit.Callback; derive a class from it and give an instance of that"
            )
    return given


def callbacks_of(config: RunConfig) -> list[Callback]:
    """An instance of each class that `train.callbacks` names, and TensorBoard's where `train.tensorboard` is set.

    Raises UserError for a name that is no subclass of `Callback`, and where one cannot be built without arguments.
    """
    built = list[Callback]()
    for address in config.train.callbacks:
        kind = load_attribute(address)
        if not (isinstance(kind, type) and issubclass(kind, Callback)):
            raise UserError(f"train.callbacks: {address} is no subclass of polyvit.Callback; name a class that is")
        try:
            built.append(kind())
        except Exception as error:
            raise UserError(
                f"train.callbacks: {address}() raised {type(error).__name__}: {error}; a class that is named there"
                " is built without arguments"
            ) from error
    if config.train.tensorboard:
        from polyvit.training.tensorboard import TensorBoard  # start-up: tensorboardX

        built.append(TensorBoard())
    return built
