"""A running average of the parameters (`optim.ema_decay`): average = decay * average + (1 - decay) * parameters.

It starts as the parameters, is updated after every step, and takes their place during an evaluation. Where the
parameters are divided among ranks (`polyvit.distributed.fsdp`) so is the average. Batch norm's running averages
are averages already: those of the model are used with either, and stored with both.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from polyvit.distributed import buffers_of, kept_whole, local, part
from polyvit.errors import UserError


class Ema:
    """The average of one model's parameters. Build it after `distributed.shard`, if that is used."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.average: dict[str, Tensor] = {name: local(p).clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """After a step. Parameters that the step left alone are drawn closer too."""
        torch._foreach_lerp_(list(self.average.values()), self._parameters(), 1.0 - self.decay)

    def state(self, keeps: bool = True) -> dict[str, Tensor]:
        """The average by parameter name, whole; all ranks together where it is divided (see `kept_whole`)."""
        average = {name: kept_whole(self.average[name], p, keeps) for name, p in self.model.named_parameters()}
        return average | buffers_of(self.model)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave. Raises UserError where the names or shapes differ."""
        parameters = dict(self.model.named_parameters())
        state = {name: tensor for name, tensor in state.items() if name not in buffers_of(self.model)}
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if shapes != {name: tuple(p.shape) for name, p in parameters.items()}:
            raise UserError(
                "the checkpoint's average of the parameters does not fit the model of this config; resume with "
                "the config that it was trained with, or set optim.ema_decay=null"
            )
        for name, tensor in state.items():
            self.average[name].copy_(local(part(tensor, parameters[name])))

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model holds the average, and the parameters wait here; not to be updated meanwhile."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _parameters(self) -> list[Tensor]:
        return [local(p) for p in self.model.parameters()]

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self._parameters(), self.average.values(), strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)
