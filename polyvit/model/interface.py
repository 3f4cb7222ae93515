"""What training, checkpoints and evaluation know of a model: this class and nothing more.

A model trains several tasks. It says which parameters a task reaches, and turns the named arrays of a minibatch of
one task into logits. Legend: B batch, K classes, D width.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from polyvit.config import Modality


class MultiTaskModel(nn.Module):
    """A model of several tasks. Subclasses fill in every method.

    modality: of each task. heads: from features to logits, by task.
    activation_checkpointing: keep only the input of each block in training, and run it again in the backward pass.
    compiled: whether `compile_blocks` was called.
    """

    modality: dict[str, Modality]
    heads: nn.ModuleDict
    activation_checkpointing = False
    compiled = False

    def forward(self, inputs: Mapping[str, Tensor], task: str, keep: Tensor | None = None) -> Tensor:
        """Logits [B, K] of `task`.

        inputs: normalised named arrays [B, ...]. keep: this rank's part of what `draw_keep` gives.
        """
        raise NotImplementedError

    def forward_features(
        self, inputs: Mapping[str, Tensor], modality: Modality, keep: Tensor | None = None
    ) -> Tensor:
        """Features [B, D] that heads and probes read; inputs and keep as `forward`."""
        raise NotImplementedError

    def answers(self, inputs: Mapping[str, Tensor], modality: Modality, tasks: Sequence[str]) -> dict[str, Tensor]:
        """What `forward` gives for several tasks of one modality, by task; they share the features."""
        features = self.forward_features(inputs, modality)
        return {name: self.heads[name](features) for name in tasks}

    def touched(self, task: str) -> dict[str, nn.Parameter]:
        """The parameters that a step of `task` reaches and trains, by name."""
        raise NotImplementedError

    def draw_keep(self, drop_path: float, global_batch: int, generator: torch.Generator) -> Tensor | None:
        """Stochastic depth of a global batch, [..., B] on the CPU; None where nothing is dropped."""
        raise NotImplementedError

    def sharding_units(self) -> list[nn.Module]:
        """Modules that are gathered one by one when parameters are divided among ranks; the model itself last."""
        raise NotImplementedError

    def parameter_table(self) -> dict[str, int]:
        """Number of parameters by role, in order."""
        raise NotImplementedError

    def compile_blocks(self, backend: str = "inductor") -> None:
        """torch.compile what is run most."""
        raise NotImplementedError


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters lie."""
    return next(model.parameters()).device
