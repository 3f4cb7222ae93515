"""How many examples one forward and backward pass can hold: counted without running it, from memory that is free.

A task's pass is run on fake tensors, which have shapes and no content: every operation's storage is counted while
it lives, so the peak is exact for the operations of the CPU and takes little time and no memory. What comes out is
the same on every rank; a run keeps it in its checkpoints: resumed, it sums its gradients in the same order.
"""

import logging
import math
import socket
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from polyvit.config import AudiovisualTask, ModelConfig, RunConfig, TaskConfig
from polyvit.data.loading import EVAL_BATCH, Minibatch, as_tensor, blank_arrays, eval_rows
from polyvit.distributed import Communicator
from polyvit.model import (
    MultiTaskModel,
    autocast,
    build_model,
    normalise,
    parameters_of,
    training_flops,
    uses_bfloat16,
)
from polyvit.schedule import mixes, rank_slice
from polyvit.training.balancing import balancing_bytes
from polyvit.training.step import is_contrastive, local_loss

logger = logging.getLogger(__name__)
MOST_VIEWS = 512
"""Of an evaluation minibatch: a larger one is no faster on any device that we know of."""
SHARE = {"cuda": 0.85, "cpu": 0.5}
"""Of the free memory that passes may fill. On a CPU the feed and Ray's object store live in the same memory."""
_CGROUP = Path("/sys/fs/cgroup")


class PeakBytes(TorchDispatchMode):
    """Bytes of all storages that operations make while it is on: `now`, and `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run the operation and count the storages that it made."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._live:
            self._live[key] = storage.nbytes()
            self.now += self._live[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._live.pop(key)


class FakePass:
    """The forward and backward pass of one task under a config (precision, activation checkpointing), unrun."""

    def __init__(self, config: RunConfig, task: str) -> None:
        self.config, self.task, self.mode = config, task, FakeTensorMode(allow_non_fake_inputs=True)
        self.known: dict[int, int] = {}
        with self.mode:
            self.model = build_model(config, {task: config.tasks[task]})
        self.model.activation_checkpointing = config.train.activation_checkpointing

    def peak(self, examples: int) -> int:
        """Peak bytes of a pass over so many examples, gradients included, parameters not."""
        if examples not in self.known:
            with self.mode:
                self.known[examples] = pass_peak(self.model, self.config, self.task, examples)
        return self.known[examples]

    def evaluation_peak(self, views: int) -> int:
        """Peak bytes of a forward pass alone over so many views, its inputs included."""
        blank = blank_arrays(self.config.model.input(self.config.tasks[self.task].modality), views)
        device = torch.device("cpu")
        with self.mode, torch.no_grad(), autocast(device, self.config.train.precision), PeakBytes() as counted:
            self.model({name: normalise(as_tensor(array).clone()) for name, array in blank.items()}, self.task)
        return counted.peak


def pass_peak(model: MultiTaskModel, config: RunConfig, task: str, examples: int) -> int:
    """Peak bytes of a real pass over blank examples, on the CPU; of `FakePass` where the model is fake."""
    spec = config.model.input(config.tasks[task].modality)
    labels = np.zeros((examples, config.tasks[task].num_classes), np.uint8)
    blank = Minibatch(1, task, blank_arrays(spec, examples), labels, ("",) * examples, 0, examples)
    model.zero_grad(set_to_none=True)
    with PeakBytes() as counted:
        local_loss(model, blank, config, torch.device("cpu")).backward()
    model.zero_grad(set_to_none=True)
    return counted.peak


def derive_microbatches(
    model: MultiTaskModel, config: RunConfig, world: Communicator, device: torch.device
) -> dict[str, int]:
    """Most examples of one pass of each task, the same on every rank: `train.microbatch` if set, else what fits.

    At least one example, or one pair where examples are mixed in pairs (then always an even number); at most a
    rank's largest part. Called when model and optimiser are on the device, before the first step.
    """
    if config.train.microbatch is not None:
        return {name: _of_a_pass(config, name, config.train.microbatch, world.size) for name in config.tasks}
    budget = min(world.gather(_budget(model, config, world, device)))
    config = _as_on(device, config)
    counted = _counted(config, budget, world.size) if world.rank == 0 else {}  # once for a machine of many ranks
    return world.gather(counted)[0]


def derive_eval_batch(model: MultiTaskModel, config: RunConfig, world: Communicator, device: torch.device) -> int:
    """Most views of an evaluation minibatch, the same on every rank: `train.eval_batch` if set, 64 on a CPU.

    On GPUs the most of 64, 128, 256 and 512 with which every task's forward pass fits. Called as
    `derive_microbatches` is. Models without one pass an example (AVBert's pre-training) stay at 64.
    """
    if config.train.eval_batch is not None or device.type == "cpu":
        return config.train.known_eval_batch
    budget = min(world.gather(_budget(model, config, world, device)))
    counted = views_that_fit(_as_on(device, config), budget) if world.rank == 0 else 0
    return world.gather(counted)[0]


def views_that_fit(config: RunConfig, budget: int) -> int:
    """Most views, of 64 times a power of two, with which no task's evaluation needs more than `budget` bytes."""
    views = EVAL_BATCH
    passes = _passes(config, {n: t for n, t in config.tasks.items() if not is_contrastive(config, n)})
    while views < MOST_VIEWS:
        tried = config.with_train(eval_batch=2 * views)
        if any(each.evaluation_peak(eval_rows(tried, name)) > budget for name, each in passes.items()):
            break
        views *= 2
    return views


def _as_on(device: torch.device, config: RunConfig) -> RunConfig:
    """The config with the precision of the device: passes are counted as if on a CPU."""
    half = uses_bfloat16(device, config.train.precision)
    return config.with_train(precision="bfloat16" if half else "float32")


def _counted(config: RunConfig, budget: int, ranks: int) -> dict[str, int]:
    """Most examples of one pass of each task that `budget` bytes hold."""
    largest = {name: _largest_part(config, name, ranks) for name in config.tasks}
    most_examples = {name: most for name, most in largest.items() if sure_bytes(config, name, most) <= budget}
    tasks = {name: task for name, task in config.tasks.items() if name not in most_examples}
    passes = _passes(config, tasks)
    for name, task in tasks.items():
        pair, tried = 2 if mixes(task) else 1, passes[name]
        most = largest_fit(tried.peak, budget, largest[name])
        if is_contrastive(config, name) and most < largest[name]:
            logger.warning(
                "task %s: a contrastive minibatch is one pass, for its examples are compared; a worker's %d "
                "need %.2f GB and %.2f GB are free. Lower tasks.%s.batch, set "
                "train.activation_checkpointing=true, or train on more workers",
                name, largest[name], tried.peak(largest[name]) / 1e9, budget / 1e9, name,
            )  # fmt: skip
        elif most < pair:
            logger.warning(
                "task %s: one pass of %d example(s) needs %.2f GB and %.2f GB are free; it is tried all the "
                "same. Set train.activation_checkpointing=true, or train on more memory",
                name, pair, tried.peak(pair) / 1e9, budget / 1e9,
            )  # fmt: skip
        most_examples[name] = _of_a_pass(config, name, most, ranks)
    return most_examples


def sure_bytes(config: RunConfig, name: str, examples: int) -> float:
    """More than the peak bytes of a pass, without counting: a byte a FLOP, and the gradients.

    Counting loads torch's compiler, two seconds that a run of a tiny model would wait for. Measured: 0.01 bytes a
    FLOP at width 64, 0.5 at width 2. Infinite for models whose FLOPs are counted too.
    """
    if not isinstance(config.model, ModelConfig):
        return math.inf
    task, gradients = config.tasks[name], 4 * sum(parameters_of(config).values())
    return examples * training_flops(config.model, task.modality, task.num_classes) + gradients


def _largest_part(config: RunConfig, name: str, ranks: int) -> int:
    """Examples of the largest part that a rank has of a minibatch."""
    task = config.tasks[name]
    cuts = [rank_slice(task.batch, rank, ranks, mixes(task)) for rank in range(ranks)]
    return max(stop - start for start, stop in cuts)


def _of_a_pass(config: RunConfig, name: str, most: int, ranks: int) -> int:
    """Examples of one pass where `most` may be: a rank's whole part, else whole pairs where pairs are mixed."""
    largest, pair = _largest_part(config, name, ranks), 2 if mixes(config.tasks[name]) else 1
    if is_contrastive(config, name):
        return largest
    return largest if most >= largest else max(pair, most // pair * pair)


def _passes(config: RunConfig, tasks: Mapping[str, TaskConfig]) -> dict[str, FakePass]:
    """Of each task; tasks that differ by the number of classes only share the one with the most."""
    kinds: dict[tuple, list[str]] = {}
    for name, task in tasks.items():
        kind = task.modality, task.loss, task.drop_path > 0, mixes(task), _reads(task)
        kinds.setdefault(kind, []).append(name)
    passes: dict[str, FakePass] = {}
    for names in kinds.values():
        tried = FakePass(config, max(names, key=lambda name: config.tasks[name].num_classes))
        passes |= dict.fromkeys(names, tried)
    return passes


def _reads(task: TaskConfig) -> str:
    """What of an AVBert a task runs."""
    return task.reads if isinstance(task, AudiovisualTask) else ""


def largest_fit(need: Callable[[int], int], budget: int, most: int) -> int:
    """The largest n in 0..most with need(n) <= budget, for a `need` that rises with n, nearly on a line."""
    if need(most) <= budget:
        return most
    if need(1) > budget:
        return 0
    fits, too_many = 1, most
    while too_many - fits > 1:
        low, high = need(fits), need(too_many)
        guess = fits + int((budget - low) / (high - low) * (too_many - fits))
        guess = min(max(guess, fits + 1), too_many - 1)
        fits, too_many = (guess, too_many) if need(guess) <= budget else (fits, guess)
    return fits


def _budget(model: MultiTaskModel, config: RunConfig, world: Communicator, device: torch.device) -> int:
    """Bytes for one pass on this rank: its share of what is free, less what the optimiser will yet take."""
    here = (socket.gethostname(), str(device) if device.type == "cuda" else "cpu")
    sharers = world.gather(here).count(here)
    free = free_bytes(device)
    parameters = sum(p.numel() for p in model.parameters())
    divided = world.size if config.train.sharding == "full" else 1
    per_parameter = {
        "sgd": 4 if config.optim.momentum_dtype == "float32" else 2,
        "adamw": 12 if config.optim.amsgrad else 8,
    }[config.optim.kind]
    temporary = 4  # lists of updates, and the buckets that gradients travel in
    average = 4 if config.optim.ema_decay is not None else 0
    yet = parameters * (per_parameter + temporary + average) // divided
    return int(SHARE[device.type] * free / sharers) - yet - balancing_bytes(model, config)


def free_bytes(device: torch.device) -> int:
    """Free memory of the device that a pass runs on; of a container, what its limit leaves."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, int(limit) - used + int(stat.get("inactive_file", 0)))
