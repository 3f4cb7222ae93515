"""One optimiser step: minibatches of one task (or of all, accumulating) -> gradients -> one update.

Every rank holds a part of the global batch. The local loss is the sum over local examples divided by the global
batch, so the sum over ranks is the gradient of the global mean for any number of workers and any split.
A step launches work and reads nothing back: its numbers stay on the device (see `readback.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from polyvit.checkpoint import LearnedWeights, TaskDrift
from polyvit.config import AudiovisualTask, RunConfig
from polyvit.data.loading import Minibatch, blank_arrays, part_of, tensors
from polyvit.distributed import (
    Buckets,
    Communicator,
    Reducer,
    SingleProcess,
    average_buffers,
    buffers_of,
    is_sharded,
    is_split,
    local,
    reduce_at_once,
    summed,
    units_with,
)
from polyvit.model import MultiTaskModel, autocast, device_of, full_precision, normalise, upload
from polyvit.model.avbert import synced
from polyvit.objectives import MEASURES, pretrain, task_losses
from polyvit.schedule import mixes, rank_slice
from polyvit.training.balancing import balance_of
from polyvit.training.mixing import mixed, mixup_weight, seed_of
from polyvit.training.optim import clip_, global_norm, scale_to_
from polyvit.training.readback import StepNumbers, StepResult

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

__all__ = ["Communicator", "SingleProcess", "StepResult", "TrainStep", "local_loss", "mixup_weight", "train_step"]


@dataclass(frozen=True)
class Reached:
    """What the tasks of a step reach, worked out once: their parameters, and how gradients travel.

    units: modules that ranks hold parts of. split: whether any of the parameters is divided so.
    """

    parameters: list[nn.Parameter]
    buckets: Buckets
    units: "list[FSDPModule]"
    split: bool

    def gradients(self) -> list[Tensor]:
        """This rank's part of each gradient that there is."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        return [local(g) for g in gradients] if self.split else gradients


class Updates(Protocol):
    """What a step needs of an optimiser."""

    def step(self, lr: float) -> None:
        """One update of the parameters from their gradients."""


Passes = Sequence[tuple[int, Minibatch]]
"""The passes of a step: which minibatch, and the part of it."""


class TrainStep:
    """The optimiser step of a run.

    Build it when model and optimiser are on the device, divided and frozen as the run has them: what a task
    reaches is worked out at its first step and kept. microbatches: most examples of one pass, by task (see
    `microbatch.py`); else `train.microbatch`; else the whole part of the rank. learned: weights of losses that are
    learned with the model (`schedule.loss_weights=uncertainty`). drift: accounts of how far tasks move weights.
    """

    def __init__(
        self, model: MultiTaskModel, optimiser: Updates, config: RunConfig, world: Communicator,
        microbatches: Mapping[str, int] | None = None, learned: LearnedWeights | None = None,
        drift: TaskDrift | None = None,
    ) -> None:  # fmt: skip
        self.model, self.optimiser, self.config, self.world = model, optimiser, config, world
        self.microbatches, self.device = microbatches, device_of(model)
        self._parameters, self._buffers = list(model.parameters()), list(buffers_of(model).values())
        self._reached: dict[tuple[str, ...], Reached] = {}
        self.learned, self.drift = learned, drift
        self.loss_weights: Mapping[str, float | Tensor] = {}  # of tasks that do not weigh 1

    def start(self, minibatches: Sequence[Minibatch], lr: float, flag: float = 0.0) -> StepNumbers:
        """Forward and backward of each minibatch in its microbatches, one reduction, clip, one update.

        Gradients of parameters that no minibatch's task reaches stay None: they are neither reduced nor (unless
        `optim.inactive_params` says so) updated. `flag` is summed over ranks with the gradients: so a rank tells
        the others something at no cost. On a GPU this returns while the device works.
        """
        tasks = tuple(minibatch.task for minibatch in minibatches)
        config, reached = self.config, self.reached(tasks)
        if self.learned:
            self.loss_weights = self.learned.weights()
        extra = _counts(minibatches, flag, config, self.device)
        for parameter in self._parameters:
            parameter.grad = None
        passes = [
            (i, part)
            for i, minibatch in enumerate(minibatches)
            for part in parts(
                minibatch, most_examples(minibatch.task, config, self.microbatches), config, self.world.size
            )
        ]
        with autocast(self.device, config.train.precision):  # around all passes: parameters are cast once
            run = self._divided if is_sharded(self.model) else self._whole
            moved = run(passes, minibatches, reached, extra)
        norm = _clip(reached, config, self.world)
        if self.drift:
            self.drift.before()
        self.optimiser.step(lr)
        if self.drift:
            self.drift.after(tasks[0])
        average_buffers(self._buffers, self.world)
        weights = [w.reshape(1) for w in self.learned.weights().values()] if self.learned else []
        values = torch.cat([extra, norm.reshape(1), *weights])
        if self.learned:
            self.learned.update(extra[: len(tasks)])
        return StepNumbers(values, tasks, moved, len(weights))

    def reached(self, tasks: tuple[str, ...]) -> Reached:
        """What these tasks reach together, in the model's order for each; the last one's backward pass is last."""
        if tasks not in self._reached:
            named: dict[str, nn.Parameter] = {}
            for task in tasks:
                named |= self.model.touched(task)
            parameters = list(named.values())
            buckets = Buckets(parameters, self.model.touched(tasks[-1]).values())
            units = units_with(self.model, parameters) if is_sharded(self.model) else []
            self._reached[tasks] = Reached(parameters, buckets, units, any(is_split(p) for p in parameters))
        return self._reached[tasks]

    def _divided(self, passes: Passes, minibatches: Sequence[Minibatch], reached: Reached, extra: Tensor) -> int:
        """Passes of a model that is divided among ranks; it sums gradients itself, at a minibatch's last pass."""
        for n, (i, part) in enumerate(passes):
            units = self.reached((part.task,)).units
            reduce_at_once(units, n == len(passes) - 1 or passes[n + 1][0] != i)
            weight = self.loss_weights.get(part.task)
            outcome = run_pass(self.model, part, self.config, self.device, self.world, weight)
            _count_pass(extra, i, len(minibatches), *outcome)
        self.world.sum_(extra)
        return extra.numel() * extra.element_size()

    def _whole(self, passes: Passes, minibatches: Sequence[Minibatch], reached: Reached, extra: Tensor) -> int:
        """Passes of a model that every rank has whole. Returns the bytes that this rank gave to be summed."""
        config, reducer = self.config, Reducer(reached.buckets, extra, self.world)
        clip_first = config.optim.clip_order == "reference" and config.optim.clip_norm is not None
        tasks = tuple(minibatch.task for minibatch in minibatches)
        balance = balance_of(self.model, tasks, config, seed_of(config.seed, minibatches[0].step, "", "balance"))
        for n, (i, part) in enumerate(passes):
            overlap = n == len(passes) - 1 and not clip_first and not balance
            weight = self.loss_weights.get(part.task)
            with reducer.overlapping() if overlap else nullcontext():
                if is_contrastive(config, part.task):  # ranks exchange embeddings: each must take part
                    outcome = run_pass(self.model, part, config, self.device, self.world, weight)
                    _count_pass(extra, i, len(minibatches), *outcome)
                elif part.rows:
                    loss = local_loss(self.model, part, config, self.device)
                    _backward(loss if weight is None else loss * weight, config, self.device)
                    extra[i] += loss.detach()
            if balance and (n == len(passes) - 1 or passes[n + 1][0] != i):
                balance.take()
        if clip_first:
            _clip_before_reduction(reached.gradients(), minibatches, config)
        reducer.finish()
        return reducer.bytes + (balance.combine(self.world) if balance else 0)


def train_step(
    model: MultiTaskModel,
    optimiser: Updates,
    minibatches: Sequence[Minibatch],
    lr: float,
    config: RunConfig,
    world: Communicator,
    flag: float = 0.0,
    microbatches: Mapping[str, int] | None = None,
) -> StepResult:
    """One `TrainStep`, and its numbers at once: waits for the device."""
    numbers = TrainStep(model, optimiser, config, world, microbatches).start(minibatches, lr, flag)
    return numbers.result(numbers.values.tolist())


def is_contrastive(config: RunConfig, task: str) -> bool:
    """Whether a task's loss compares examples of the whole global batch, which is then never cut."""
    return config.tasks[task].loss == "contrastive"


def _counts(minibatches: Sequence[Minibatch], flag: float, config: RunConfig, device: torch.device) -> Tensor:
    """What is summed over ranks besides gradients: losses (zeros yet), bad examples, measures where a minibatch is
    contrastive (zeros yet), examples, the flag."""
    bad = [float(minibatch.undecodable) for minibatch in minibatches]
    examples = float(sum(minibatch.rows for minibatch in minibatches))
    any_contrastive = any(is_contrastive(config, minibatch.task) for minibatch in minibatches)
    tables = [0.0] * (2 * len(MEASURES) * len(minibatches) if any_contrastive else 0)
    return upload(torch.tensor([*(0.0 for _ in bad), *bad, *tables, examples, flag]), device)


def _count_pass(extra: Tensor, i: int, count: int, loss: Tensor, table: Tensor | None) -> None:
    """Add one pass of minibatch i of `count` to what is summed over ranks."""
    extra[i] += loss
    if table is not None:
        extra[2 * count : -2].view(count, 2, -1)[i] += table


def _backward(loss: Tensor, config: RunConfig, device: torch.device) -> None:
    with full_precision(device, config.train.precision):
        loss.backward()


def _clip(reached: Reached, config: RunConfig, world: Communicator) -> Tensor:
    """Scale the reduced gradients to `optim.clip_norm`; returns their norm before."""
    gradients = reached.gradients()
    norm = global_norm(gradients)
    if reached.split:
        square = norm.square()
        world.sum_(square)
        norm = square.sqrt()
    if config.optim.clip_norm is not None:
        scale_to_(gradients, norm, config.optim.clip_norm)
    return norm


def run_pass(
    model: MultiTaskModel, part: Minibatch, config: RunConfig, device: torch.device, world: Communicator,
    weight: float | Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """A pass, forward and backward, in which ranks wait for each other: FSDP gathers and sums on the way, and a
    contrastive task exchanges embeddings. A rank without examples goes along with a blank one of no weight."""
    blank = not part.rows
    if blank:
        inputs = blank_arrays(config.model.input(config.tasks[part.task].modality), 1)
        labels = np.zeros((1, *part.labels.shape[1:]), part.labels.dtype)
        part = Minibatch(part.step, part.task, inputs, labels, part.keys, part.first_slot, part.global_batch)
    total = _norms_total(config, part.task, world)
    if blank and total is None:
        model.eval()  # nothing blank gets into batch norm's running averages
    table = None
    with synced(model, total):
        if is_contrastive(config, part.task):
            loss, table = contrastive_pass(model, part, config, device, world)
        else:
            loss = local_loss(model, part, config, device)
        _backward(loss * (0.0 if blank else 1.0 if weight is None else weight), config, device)
    model.train()
    return loss.detach() * (0.0 if blank else 1.0), None if blank else table


def _norms_total(config: RunConfig, task: str, world: Communicator) -> Callable[[Tensor], Tensor] | None:
    """What sums batch norm's statistics over ranks in a task's pass; None where each rank has its own."""
    settings = config.tasks[task]
    sync = isinstance(settings, AudiovisualTask) and settings.contrastive.sync_batch_norm
    return partial(summed, world=world) if sync and is_contrastive(config, task) and world.size > 1 else None


def contrastive_pass(
    model: MultiTaskModel, minibatch: Minibatch, config: RunConfig, device: torch.device, world: Communicator
) -> tuple[Tensor, Tensor]:
    """This rank's share of a contrastive task's loss, and what is measured (see `polyvit.objectives.pretrain`)."""
    task = config.tasks[minibatch.task]
    assert isinstance(task, AudiovisualTask)  # the config says so
    inputs = {name: normalise(array) for name, array in tensors(minibatch, device)[0].items()}
    place = minibatch.first_slot, minibatch.global_batch
    return pretrain(
        model, inputs, task, minibatch.task, place, seed_of(config.seed, minibatch.step, minibatch.task, "pairs"),
        world, _dropout(model, minibatch, config, minibatch.rows, device), config.train.precision,
    )  # fmt: skip


def most_examples(task: str, config: RunConfig, microbatches: Mapping[str, int] | None) -> int | None:
    """Most examples of one pass; None: no limit. A contrastive minibatch is one pass: its clips are compared."""
    if is_contrastive(config, task):
        return None
    return microbatches[task] if microbatches and task in microbatches else config.train.microbatch


def parts(minibatch: Minibatch, most: int | None, config: RunConfig, world_size: int) -> list[Minibatch]:
    """A rank's part of a minibatch in as many microbatches as the largest part of any rank needs, even in size,
    and at least as many as `accumulate` says.

    Examples that are mixed in pairs stay together. Where this rank has fewer examples the last ones may be empty.
    """
    task = config.tasks[minibatch.task]
    pair = 2 if mixes(task) else 1
    largest = max(
        stop - start
        for start, stop in (rank_slice(task.batch, r, world_size, pair == 2) for r in range(world_size))
    )
    units = -(-largest // pair)
    number = 1 if most is None or most >= largest else -(-units // max(1, most // pair))
    if task.loss != "contrastive":
        number = max(number, min(units, task.accumulate or config.train.accumulate))
    own = -(-minibatch.rows // pair)
    cuts = [min(minibatch.rows, pair * (own * i // number)) for i in range(number)] + [minibatch.rows]
    if number == 1:
        return [minibatch]
    return [part_of(minibatch, a, b) for a, b in pairwise(cuts)]


def local_loss(model: MultiTaskModel, minibatch: Minibatch, config: RunConfig, device: torch.device) -> Tensor:
    """This rank's share of the global mean loss, a scalar that can go backward."""
    task = config.tasks[minibatch.task]
    if is_contrastive(config, minibatch.task):
        return contrastive_pass(model, minibatch, config, device, SingleProcess())[0]
    arrays, labels = tensors(minibatch, device)
    inputs, labels = {name: normalise(array) for name, array in arrays.items()}, labels.float()
    if mixes(task):
        inputs, labels = mixed(inputs, labels, config, minibatch.step, minibatch.task)
    keep = _dropout(model, minibatch, config, len(labels), device)
    with autocast(device, config.train.precision):
        logits = model(inputs, minibatch.task, keep)
    losses = task_losses(logits, labels, task)
    return losses.sum() / minibatch.global_batch


def _dropout(
    model: MultiTaskModel, minibatch: Minibatch, config: RunConfig, rows: int, device: torch.device
) -> Tensor | None:
    """This rank's part of what the step's task drops, drawn for the global batch."""
    generator = torch.Generator().manual_seed(seed_of(config.seed, minibatch.step, minibatch.task, "drop"))
    keep = model.draw_keep(config.tasks[minibatch.task].drop_path, minibatch.global_batch, generator)
    first = minibatch.first_slot
    return None if keep is None else upload(keep[..., first : first + rows], device)


def _clip_before_reduction(gradients: list[Tensor], minibatches: Sequence[Minibatch], config: RunConfig) -> None:
    """The release clips video and audio gradients per device, before the mean over devices."""
    minibatch = minibatches[0]
    rows = minibatch.rows
    if not config.tasks[minibatch.task].reference_clips_locally or not rows:
        return
    share = rows / minibatch.global_batch
    assert config.optim.clip_norm is not None
    clip_(gradients, config.optim.clip_norm * share)  # the local gradient is already scaled by its share
