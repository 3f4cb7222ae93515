"""What training changes and a checkpoint keeps, as protocols: their classes are of other packages.

In: a model, its optimiser, and what a config asks for besides. Out: a `TrainUnit`.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from polyvit.model import MultiTaskModel


class Optimiser(Protocol):
    """An optimiser as checkpoints see it: named tensors out and in. `polyvit.training` has the two kinds."""

    def step(self, lr: float) -> None:
        """One update of the parameters from their gradients."""

    def state(self) -> dict[str, torch.Tensor]:
        """Its tensors by name, `exp_avg.<parameter>` and so on."""

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `state` gave. Raises UserError for another optimiser's."""


class ParameterAverage(Protocol):
    """A running average of the parameters as checkpoints and the loop see it; `polyvit.training.ema` has one."""

    def update(self) -> None:
        """After a step."""

    def state(self, keeps: bool = True) -> dict[str, torch.Tensor]:
        """The average by parameter name, whole; all ranks call this together. keeps: see `training_tensors`."""

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `state` gave. Raises UserError where the names or shapes differ."""

    def swapped(self) -> AbstractContextManager[None]:
        """Within the block the model holds the average in place of its parameters."""


class TensorState(Protocol):
    """Named tensors that are whole and the same on every rank."""

    def state(self) -> dict[str, torch.Tensor]:
        """The tensors that training changes."""

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `state` gave."""


class LearnedWeights(TensorState, Protocol):
    """Learned weights of the tasks' losses; `polyvit.training.loss_weights` has them."""

    def weights(self) -> dict[str, torch.Tensor]:
        """What each task's loss weighs now, on the device."""

    def update(self, losses_T: torch.Tensor) -> None:
        """After a step with these losses."""


class TaskDrift(TensorState, Protocol):
    """How far each task's steps moved shared weights; `polyvit.training.drift` has it."""

    def before(self) -> None:
        """Before a step's update."""

    def after(self, task: str) -> None:
        """After the update of a task's step."""

    def points(self) -> dict[str, float]:
        """Of a run's curves; waits for the device."""


@dataclass(frozen=True)
class TrainUnit:
    """What training changes: model, optimiser, and what a config asks for besides: the running average of the
    parameters, learned weights of losses, each task's account of drift."""

    model: MultiTaskModel
    optimiser: Optimiser
    ema: ParameterAverage | None = None
    loss_weights: LearnedWeights | None = None
    drift: TaskDrift | None = None

    def besides(self) -> dict[str, TensorState]:
        """What else a checkpoint keeps, by the name of its file."""
        each: dict[str, TensorState | None] = {"loss_weights": self.loss_weights, "drift": self.drift}
        return {name: state for name, state in each.items() if state}
