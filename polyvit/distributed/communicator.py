"""The ranks that train together: sums over them, and values gathered from them.

In: tensors and small values of this rank. Out: sums and lists over all ranks. Every rank makes the same calls in
the same order.
"""

from typing import Protocol

import torch.distributed as dist
from torch import Tensor


class Pending(Protocol):
    """A sum that is under way."""

    def wait(self) -> object:
        """Until it has arrived (on a GPU: until the stream may use it)."""


class Done:
    """A sum that has arrived."""

    def wait(self) -> None:
        """At once."""


class Communicator(Protocol):
    """The ranks that train together. Every rank makes the same calls in the same order."""

    rank: int
    size: int

    def sum_(self, flat: Tensor) -> None:
        """Sum a flat tensor over ranks, in place."""

    def sum_async(self, flat: Tensor) -> Pending:
        """Begin to sum a flat tensor over ranks, in place."""

    def gather(self, value: object) -> list:
        """The value of every rank, in rank order, on every rank."""

    def broadcast_(self, flat: Tensor) -> None:
        """Rank 0's numbers on every rank, in place."""


class SingleProcess:
    """One rank alone."""

    rank, size = 0, 1

    def sum_(self, flat: Tensor) -> None:
        """Nothing to add."""

    def sum_async(self, flat: Tensor) -> Pending:
        """Nothing to add."""
        return Done()

    def gather(self, value: object) -> list:
        """The one value."""
        return [value]

    def broadcast_(self, flat: Tensor) -> None:
        """They are there."""


class ProcessGroupCommunicator:
    """The ranks of torch.distributed's default process group; one rank where there is none."""

    def __init__(self) -> None:
        there = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if there else (0, 1)

    def sum_(self, flat: Tensor) -> None:
        """All-reduce, in place."""
        if self.size > 1:
            dist.all_reduce(flat)

    def sum_async(self, flat: Tensor) -> Pending:
        """All-reduce, in place, under way."""
        if self.size == 1:
            return Done()
        handle = dist.all_reduce(flat, async_op=True)
        return Done() if handle is None else handle

    def gather(self, value: object) -> list:
        """Pickled, so for small values."""
        if self.size == 1:
            return [value]
        values: list[object] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast_(self, flat: Tensor) -> None:
        """From rank 0, in place."""
        if self.size > 1:
            dist.broadcast(flat, 0)
