"""Copies to the device, with a stand-in for the device's stream; on a real GPU where there is one."""

import threading
import time
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from small import ArrayFeed, Heard, fresh, small_config
from torch import Tensor

from polyvit.checkpoint.state import TrainState, TrainUnit
from polyvit.data.loading.device_prefetch import (
    CudaCopies,
    DeviceMinibatch,
    as_tensor,
    on_device,
    part_of,
    staged,
    tensors,
)
from polyvit.data.loading.minibatch import Minibatch
from polyvit.distributed import SingleProcess
from polyvit.training.loop import train

CPU = torch.device("cpu")


def minibatch(step: int, size: int = 4) -> Minibatch:
    tokens = np.full((size, 3, 2), step, np.uint8)
    labels = np.eye(size, 5, dtype=np.uint8)
    for array in (tokens, labels):
        array.setflags(write=False)  # as the object store gives them
    return Minibatch(step, "task", {"tokens": tokens}, labels, tuple("abcd"[:size]), 8, 16)


class PlainCopies:
    """Copies to a device that is this CPU."""

    def start(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.copy())

    def mark(self) -> Any:
        return None

    def wait(self, mark: Any, tensors: Sequence[Tensor]) -> None:
        pass


class FakeCopies(PlainCopies):
    """Writes down what happens."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        self.marks = count(1)

    def start(self, array: np.ndarray) -> Tensor:
        self.log.append(("start", int(array.flat[0])))
        return super().start(array)

    def mark(self) -> Any:
        return next(self.marks)

    def wait(self, mark: Any, tensors: Sequence[Tensor]) -> None:
        self.log.append(("wait", mark))
        assert [len(tensor) for tensor in tensors] == [4, 4]


def test_copies_of_the_next_step_begin_while_this_one_computes() -> None:
    copies = FakeCopies()
    steps = staged(iter([[minibatch(step)] for step in range(1, 9)]), copies)
    (first,) = next(steps)
    assert isinstance(first, DeviceMinibatch)
    assert first.device_inputs["tokens"].eq(1).all()
    until = time.monotonic() + 20
    while ("start", 2) not in copies.log and time.monotonic() < until:  # nobody asked for step 2
        time.sleep(0.01)
    assert ("start", 2) in copies.log
    assert copies.log.index(("wait", 1)) > copies.log.index(("start", 1))
    time.sleep(0.3)
    assert ("start", 4) not in copies.log  # but not all of them: the device's memory is for computing
    assert [made.step for (made,) in steps] == list(range(2, 9))
    assert [mark for what, mark in copies.log if what == "wait"] == list(range(1, 9))


def test_an_error_of_the_feed_arrives_and_a_stream_that_is_left_ends() -> None:
    closed = threading.Event()

    def broken() -> Iterator[list[Minibatch]]:
        try:
            yield [minibatch(1)]
            raise KeyError("no such thing")
        finally:
            closed.set()

    steps = staged(broken(), FakeCopies())
    next(steps)
    with pytest.raises(KeyError, match="no such thing"):
        next(steps)
    closed.clear()
    left = staged(([minibatch(1)] for _ in iter(int, 1)), FakeCopies())
    next(left)
    left.close()  # type: ignore[attr-defined]
    until = time.monotonic() + 20
    while any(t.name == "polyvit-upload" for t in threading.enumerate()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(t.name == "polyvit-upload" for t in threading.enumerate())


def test_a_cpu_takes_the_arrays_as_they_are(recwarn: pytest.WarningsRecorder) -> None:
    made = minibatch(1)
    steps = iter([[made]])
    assert on_device(steps, CPU) is steps
    inputs, labels = tensors(made, CPU)
    assert inputs["tokens"].data_ptr() == made.inputs["tokens"].ctypes.data
    assert labels.data_ptr() == made.labels.ctypes.data
    assert as_tensor(np.zeros((0, 3), np.float16)).shape == (0, 3)
    assert not recwarn.list  # torch.from_numpy warns of arrays that are read-only


def test_a_part_of_a_minibatch_is_a_part_of_its_copies() -> None:
    made = minibatch(1)
    copied = DeviceMinibatch(
        **vars(made), device_inputs={"tokens": torch.arange(24).view(4, 3, 2)}, device_labels=torch.arange(4)
    )
    part = part_of(copied, 1, 3)
    assert part.first_slot == 9
    assert part.inputs["tokens"].shape == (2, 3, 2)
    inputs, labels = tensors(part, CPU)
    tokens = inputs["tokens"]
    assert tokens.flatten().tolist() == list(range(6, 18))
    assert labels.tolist() == [1, 2]
    assert tokens.data_ptr() == copied.device_inputs["tokens"][1:].data_ptr()
    plain = part_of(made, 1, 3)
    assert type(plain) is Minibatch
    assert plain.labels.tolist() == made.labels[1:3].tolist()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("microbatch", ["null", "2"])
def test_training_on_copies_ends_with_the_same_bits(monkeypatch: pytest.MonkeyPatch, microbatch: str) -> None:
    """Every modality, mixup, drop path, microbatches, an evaluation."""
    config = small_config("schedule.steps=8", f"train.microbatch={microbatch}")
    ends = []
    for copied in (False, True):
        model, optimiser, schedule = fresh(config)
        if copied:
            for where in ("polyvit.training.loop", "polyvit.evaluation.evaluator"):
                monkeypatch.setattr(f"{where}.on_device", lambda steps, device: staged(steps, PlainCopies()))
        state, heard = TrainState(), Heard()
        train(TrainUnit(model, optimiser), schedule, ArrayFeed(config), config, SingleProcess(), state, heard)
        assert state.global_step == len(schedule)
        ends.append((model.state_dict(), heard.scores))
    assert ends[0][1] == ends[1][1]
    assert all(torch.equal(tensor, ends[1][0][name]) for name, tensor in ends[0][0].items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_computes_on_what_the_feed_brought() -> None:
    device = torch.device("cuda", 0)
    made = [[minibatch(step)] for step in range(1, 50)]
    for (plain,), (copied,) in zip(made, staged(iter(made), CudaCopies(device)), strict=True):
        assert isinstance(copied, DeviceMinibatch)
        assert copied.device_inputs["tokens"].device == device
        assert torch.equal(copied.device_inputs["tokens"].cpu(), as_tensor(plain.inputs["tokens"]))
        assert torch.equal(copied.device_labels.cpu(), as_tensor(plain.labels))
