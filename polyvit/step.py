"""One optimiser step: minibatches of one task (or of all, accumulating) -> gradients -> one update.

Every rank holds a part of the global batch. The local loss is the sum over local examples divided by the global
batch, so the sum over ranks is the gradient of the global mean for any number of workers and any split.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from polyvit.config import RunConfig
from polyvit.data.minibatch import Minibatch
from polyvit.losses import example_losses, mixup, neighbours
from polyvit.model.encoder import draw_keep, drop_path_rates
from polyvit.model.polyvit import PolyViT
from polyvit.model.tokenizer import normalise
from polyvit.optim import Optimiser, clip_, global_norm


class World(Protocol):
    """The ranks that train together."""

    rank: int
    size: int

    def sum_(self, flat: Tensor) -> None:
        """Sum a flat tensor over ranks, in place."""

    def gather(self, value: object) -> list:
        """The value of every rank, in rank order, on every rank."""


class Alone:
    """A world of one."""

    rank, size = 0, 1

    def sum_(self, flat: Tensor) -> None:
        """Nothing to add."""

    def gather(self, value: object) -> list:
        """The one value."""
        return [value]


@dataclass(frozen=True)
class StepResult:
    """What a step did, over all ranks.

    losses: mean loss of each minibatch. grad_norm: of the reduced gradient, before it is clipped.
    bad: undecodable examples of each minibatch.
    """

    losses: tuple[float, ...]
    grad_norm: float
    bad: tuple[int, ...]


def train_step(
    model: PolyViT,
    optimiser: Optimiser,
    minibatches: Sequence[Minibatch],
    lr: float,
    config: RunConfig,
    world: World,
) -> StepResult:
    """Forward and backward of each minibatch, one reduction, clip, one update.

    Gradients of parameters that no minibatch's task reaches stay None: they are neither reduced nor (unless
    `optim.untouched` says so) updated.
    """
    device = model.shared.norm.weight.device
    touched: dict[str, torch.nn.Parameter] = {}
    losses = [torch.zeros((), device=device) for _ in minibatches]
    model.zero_grad(set_to_none=True)
    for i, minibatch in enumerate(minibatches):
        touched |= model.touched(minibatch.task)
        if len(minibatch.tokens):
            loss = local_loss(model, minibatch, config, device)
            loss.backward()
            losses[i] = loss.detach().float()
    parameters = list(touched.values())
    for parameter in parameters:
        if parameter.grad is None:  # this rank's part was empty
            parameter.grad = torch.zeros_like(parameter)
    if config.optim.clip_order == "reference" and config.optim.clip_norm is not None:
        _clip_before_reduction(parameters, minibatches, config)
    bad = torch.tensor([float(len(minibatch.bad)) for minibatch in minibatches], device=device)
    extra = torch.cat([torch.stack(losses), bad])
    reduce_gradients(parameters, extra, world)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    limit = config.optim.clip_norm
    norm = global_norm(gradients) if limit is None else clip_(gradients, limit)
    optimiser.step(lr)
    values = extra.tolist()
    count = len(minibatches)
    return StepResult(tuple(values[:count]), float(norm), tuple(int(n) for n in values[count:]))


def local_loss(model: PolyViT, minibatch: Minibatch, config: RunConfig, device: torch.device) -> Tensor:
    """This rank's share of the global mean loss, a scalar that can go backward."""
    task = config.tasks[minibatch.task]
    tokens = normalise(torch.from_numpy(minibatch.tokens).to(device, non_blocking=True))
    labels = torch.from_numpy(minibatch.labels).to(device, non_blocking=True).float()
    if task.modality == "audio" and task.mixup_alpha:
        weight = mixup_weight(task.mixup_alpha, config.seed, minibatch.step, minibatch.task)
        partner = neighbours(len(tokens)).to(device)
        tokens, labels = mixup(tokens, partner, weight), mixup(labels, partner, weight)
    keep = None
    if task.drop_path:
        rates = drop_path_rates(
            task.drop_path, config.model.depth, config.model.l_adapt, config.model.drop_path_ramp
        )
        generator = torch.Generator().manual_seed(_seed(config.seed, minibatch.step, minibatch.task, "drop"))
        whole = draw_keep(rates, minibatch.global_batch, generator)
        keep = whole[..., minibatch.first_slot : minibatch.first_slot + len(tokens)].to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bfloat16"):
        logits = model(tokens, minibatch.task, keep)
    losses = example_losses(logits, labels, task.loss, task.label_smoothing)
    return losses.sum() / minibatch.global_batch


def reduce_gradients(parameters: Sequence[torch.nn.Parameter], extra: Tensor, world: World) -> None:
    """Sum gradients and the few numbers of `extra` over ranks, in place and in one message."""
    if world.size == 1:
        return
    tensors = [p.grad for p in parameters if p.grad is not None] + [extra]
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    world.sum_(flat)
    pieces = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [p.view_as(t) for p, t in zip(pieces, tensors, strict=True)])


def _clip_before_reduction(
    parameters: Sequence[torch.nn.Parameter], minibatches: Sequence[Minibatch], config: RunConfig
) -> None:
    """The release clips video and audio gradients per device, before the mean over devices."""
    minibatch = minibatches[0]
    local = len(minibatch.tokens)
    if config.tasks[minibatch.task].modality == "image" or not local:
        return
    share = local / minibatch.global_batch
    gradients = [p.grad for p in parameters if p.grad is not None]
    assert config.optim.clip_norm is not None
    clip_(gradients, config.optim.clip_norm * share)  # the local gradient is already scaled by its share


def mixup_weight(alpha: float, seed: int, step: int, task: str) -> float:
    """The step's one mixup weight, from Beta(alpha, alpha); the same on every rank."""
    rng = np.random.Generator(np.random.Philox(_seed(seed, step, task, "mixup")))
    return float(rng.beta(alpha, alpha))


def _seed(seed: int, step: int, task: str, what: str) -> int:
    text = f"{seed}\x00{step}\x00{task}\x00{what}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little")
