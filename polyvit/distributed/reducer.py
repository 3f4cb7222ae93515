"""Gradients summed over the ranks that train together, while the backward pass goes on.

In: the parameters that a step's tasks reach, in the model's order, with `.grad` of this rank's part of the global
batch, and a few more numbers (`extra`). Out: both summed over ranks, in place. What no task of the step reaches is
not moved. Buckets of about BUCKET_BYTES leave as soon as they are full, in the same order on every rank.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from polyvit.distributed.communicator import Communicator, Pending

BUCKET_BYTES = 25 * 2**20
"""As DDP's default: large enough for the network's full rate, small enough to leave early."""


class Buckets:
    """Which parameters travel together, in the order in which they leave: worked out once for a step's tasks.

    parameters: what the tasks reach, in the model's order. late: those that the step's last backward pass reaches.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], late: Collection[nn.Parameter]) -> None:
        self.late = set(late)
        # Other tasks' gradients are complete before the last backward pass; its own come last layer first.
        early = [p for p in parameters if p not in self.late]
        self.parts = _buckets(early + [p for p in reversed(parameters) if p in self.late])
        self.awaited = [sum(p in self.late for p in bucket) for bucket in self.parts]
        self.home = {p: i for i, bucket in enumerate(self.parts) for p in bucket}


class Reducer:
    """The reduction of one step.

    bytes: what this rank has given to be summed so far. After `finish`, `.grad` of every parameter is a view into
    its bucket; a parameter that this rank's part did not reach counts as zeros.
    """

    def __init__(self, buckets: Buckets, extra: Tensor, world: Communicator) -> None:
        self.buckets, self.extra, self.world, self.bytes = buckets, extra, world, 0
        self._missing = list(buckets.awaited)
        self._pending: list[tuple[Pending, Tensor]] = []

    @contextmanager
    def overlapping(self) -> Iterator[None]:
        """Around the last backward pass: buckets leave as they fill up."""
        if self.world.size == 1:
            yield
            return
        self._launch_full()
        handles = [p.register_post_accumulate_grad_hook(self._arrived) for p in self.buckets.late]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def finish(self) -> None:
        """Send what has not left yet, the last bucket with `extra`; wait for all."""
        if self.world.size == 1:
            return
        while len(self._pending) < len(self.buckets.parts):
            self._launch()
        for pending, _ in self._pending:
            pending.wait()
        last = self._pending[-1][1]
        self.extra.copy_(last[len(last) - len(self.extra) :])

    def _arrived(self, parameter: Tensor) -> None:
        self._missing[self.buckets.home[parameter]] -= 1  # type: ignore[index]
        self._launch_full()

    def _launch_full(self) -> None:
        """Every bucket whose turn it is and that is full; the last one waits for `finish` and its numbers."""
        while len(self._pending) < len(self.buckets.parts) - 1 and self._missing[len(self._pending)] == 0:
            self._launch()

    @torch.no_grad()
    def _launch(self) -> None:
        bucket = self.buckets.parts[len(self._pending)]
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        last = len(self._pending) == len(self.buckets.parts) - 1
        flat = torch.cat([piece.reshape(-1) for piece in pieces] + ([self.extra] if last else []))
        offset = 0
        for parameter in bucket:
            parameter.grad = flat[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
        self.bytes += flat.numel() * flat.element_size()
        self._pending.append((self.world.sum_async(flat), flat))


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """In order, each closed once it holds BUCKET_BYTES; at least one, which may be empty."""
    buckets: list[list[nn.Parameter]] = [[]]
    held = 0
    for parameter in parameters:
        if held >= BUCKET_BYTES:
            buckets.append([])
            held = 0
        buckets[-1].append(parameter)
        held += parameter.numel() * parameter.element_size()
    return buckets
