"""What a step's numbers are, and how they come to the host without holding the device up.

In: one vector of a step's sums, still being computed on the device. Out: a `StepResult`, `lag` steps later: a GPU
works on the next steps while the host reads those of an earlier one. On a CPU there is nothing to wait for.
Legend: m minibatches of a step (one, unless accumulating), M measures of a contrastive task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from polyvit.objectives import measured

LAG = 2
"""Steps that the host runs ahead of a GPU: enough to cover the launches of a step, short of pinning many
minibatches."""


@dataclass(frozen=True)
class StepResult:
    """What a step did, over all ranks.

    losses: mean loss of each minibatch. grad_norm: of the reduced gradient, before it is clipped.
    bad: planned examples of each minibatch that could not be decoded. flag: the sum of what the ranks gave as
    `flag`. examples: that went through the model. reduced_bytes: what this rank gave to be summed by all-reduce.
    measures: of each contrastive minibatch, by task (`polyvit.objectives.MEASURES`). weights: of the losses, where
    they are learned.
    """

    losses: tuple[float, ...]
    grad_norm: float
    bad: tuple[int, ...]
    flag: float = 0.0
    examples: int = 0
    reduced_bytes: int = 0
    measures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class StepNumbers:
    """A step that was launched: its numbers where they are computed.

    values: float32 [2 m + tables + 3 + weights]: losses, bad examples, tables [m, 2, M] where a minibatch is
    contrastive, examples, flag, the gradient's norm, weights of losses. tasks: of the minibatches. weights: how
    many of these there are: m, or none.
    """

    values: Tensor
    tasks: tuple[str, ...]
    reduced_bytes: int = 0
    weights: int = 0

    def result(self, values: Sequence[float]) -> StepResult:
        """The numbers, once they are on the host."""
        count, end = len(self.tasks), len(values) - self.weights
        *tables, examples, flag, norm = values[2 * count : end]
        measures = {}
        if tables:
            each = zip(self.tasks, torch.tensor(tables).view(count, 2, -1), strict=True)
            measures = {task: measured(table) for task, table in each if table.any()}
        return StepResult(
            losses=tuple(values[:count]), grad_norm=norm, bad=tuple(int(n) for n in values[count : 2 * count]),
            flag=flag, examples=int(examples), reduced_bytes=self.reduced_bytes, measures=measures,
            weights=tuple(values[end:]),
        )  # fmt: skip


class Readback(Protocol):
    """Copies of a step's numbers to the host, read `lag` steps after they were begun."""

    lag: int

    def start(self, values: Tensor) -> Any:
        """Begin a copy; does not wait."""

    def read(self, copy: Any) -> list[float]:
        """The numbers; waits until they are there."""


class HostReadback:
    """On a CPU a step has its numbers when it returns."""

    lag = 0

    def start(self, values: Tensor) -> Tensor:
        """Nothing to copy: a step's vector is its own."""
        return values

    def read(self, copy: Tensor) -> list[float]:
        """At once."""
        return copy.tolist()


class CudaReadback:
    """Into pinned memory, with an event behind the copy."""

    lag = LAG

    def start(self, values: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """As `Readback.start`."""
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        return host, torch.cuda.current_stream(values.device).record_event()

    def read(self, copy: tuple[Tensor, torch.cuda.Event]) -> list[float]:
        """As `Readback.read`: waits for this copy's event alone, not for what was launched since."""
        host, event = copy
        event.synchronize()
        return host.tolist()


def readback_for(device: torch.device) -> Readback:
    """The copies of a device."""
    return CudaReadback() if device.type == "cuda" else HostReadback()
