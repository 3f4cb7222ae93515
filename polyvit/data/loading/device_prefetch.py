"""Minibatches to the device: on a GPU through pinned memory, on a stream of their own, a step ahead.

In: minibatches as the feed brings them, named arrays and labels in host memory (often views of Ray's object store,
read-only). Out: the same with their copies on the device. A thread pins and starts the copies of the next
step while this one computes; normalisation is on the device (`model.tokenizer.normalise`), so a quarter of the
bytes travel. On a CPU nothing is copied. Legend: B examples, N tokens, P patch_dim, K classes.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from polyvit.data.loading.minibatch import Minibatch
from polyvit.data.loading.prefetch import PrefetchIterator
from polyvit.model import upload


@dataclass(frozen=True)
class DeviceMinibatch(Minibatch):
    """A minibatch whose arrays and labels are on the device too."""

    device_inputs: dict[str, Tensor] = field(kw_only=True)
    device_labels: Tensor = field(kw_only=True)


class Copies(Protocol):
    """Copies to a device that run beside its computation."""

    def start(self, array: np.ndarray) -> Tensor:
        """Begin a copy; the tensor may be used after `wait`."""

    def mark(self) -> Any:
        """A point in time: all copies begun so far are done."""

    def wait(self, mark: Any, tensors: Sequence[Tensor]) -> None:
        """What is computed from here on finds `tensors` complete. Does not block the host."""


class CudaCopies:
    """Pinned memory, and a stream beside the one that computes.

    Pinned memory comes from torch's own cache, which gives a block out again only when the copy from it is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def start(self, array: np.ndarray) -> Tensor:
        """As `Copies.start`; pinning copies in host memory, without the interpreter's lock."""
        with torch.cuda.stream(self.stream):
            return as_tensor(array).pin_memory().to(self.device, non_blocking=True)

    def mark(self) -> Any:
        """An event behind the copies."""
        return self.stream.record_event()

    def wait(self, mark: Any, tensors: Sequence[Tensor]) -> None:
        """The computing stream waits; the tensors' memory is its own until it has used them."""
        computing = torch.cuda.current_stream(self.device)
        computing.wait_event(mark)
        for tensor in tensors:
            tensor.record_stream(computing)


def on_device(steps: Iterator[list[Minibatch]], device: torch.device) -> Iterator[list[Minibatch]]:
    """The steps, with copies on a GPU begun one or two steps ahead; on any other device as they are."""
    return staged(steps, CudaCopies(device)) if device.type == "cuda" else steps


def staged(steps: Iterator[list[Minibatch]], copies: Copies) -> Iterator[list[Minibatch]]:
    """The steps with their copies, which another thread begins as soon as the feed brings a step."""

    def begun() -> Iterator[tuple[list[DeviceMinibatch], Any]]:
        for step in steps:
            yield [_begun(minibatch, copies) for minibatch in step], copies.mark()

    with closing(PrefetchIterator(begun(), 1, name="polyvit-upload")) as ahead:
        for minibatches, mark in ahead:
            copies.wait(mark, [t for m in minibatches for t in (*m.device_inputs.values(), m.device_labels)])
            yield list(minibatches)


def _begun(minibatch: Minibatch, copies: Copies) -> DeviceMinibatch:
    known = {name: getattr(minibatch, name) for name in Minibatch.__dataclass_fields__}
    return DeviceMinibatch(
        **known,
        device_inputs={name: copies.start(array) for name, array in minibatch.inputs.items()},
        device_labels=copies.start(minibatch.labels),
    )


def as_tensor(array: np.ndarray) -> Tensor:
    """The array's own memory as a CPU tensor, to be read only; `torch.from_numpy` warns of read-only arrays."""
    return torch.from_dlpack(array)


def tensors(minibatch: Minibatch, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """`inputs[name]`, [B, ...], and labels [B, K] on `device`, as the feed brought them; not to be written to."""
    if isinstance(minibatch, DeviceMinibatch):
        return minibatch.device_inputs, minibatch.device_labels
    inputs = {name: upload(as_tensor(array), device) for name, array in minibatch.inputs.items()}
    return inputs, upload(as_tensor(minibatch.labels), device)


def on_host(minibatch: Minibatch) -> Minibatch:
    """The minibatch without its copies on the device, whose memory is then free for others."""
    if not isinstance(minibatch, DeviceMinibatch):
        return minibatch
    return Minibatch(**{name: getattr(minibatch, name) for name in Minibatch.__dataclass_fields__})


def part_of(minibatch: Minibatch, start: int, stop: int) -> Minibatch:
    """Examples [start, stop) of a minibatch of one view each; views of the same memory."""
    changed: dict[str, Any] = {
        "inputs": {name: array[start:stop] for name, array in minibatch.inputs.items()},
        "labels": minibatch.labels[start:stop],
        "first_slot": minibatch.first_slot + start,
    }
    if isinstance(minibatch, DeviceMinibatch):
        changed["device_inputs"] = {name: t[start:stop] for name, t in minibatch.device_inputs.items()}
        changed["device_labels"] = minibatch.device_labels[start:stop]
    return replace(minibatch, **changed)
