"""What each task's loss weighs in a step of all tasks (`schedule.kind=accumulating`, `schedule.loss_weights`).

`dwa`: dynamic weight average (Liu et al. 2019, arXiv:1803.10704), worked out at evaluations.
`uncertainty`: one learned number a task, s_j = log sigma_j^2 (Kendall et al. 2018, arXiv:1705.07115). A step's
loss is the sum over tasks of exp(-s_j) L_j + s_j / 2, their form for classification, so the gradient of a task's
loss is scaled by exp(-s_j), and that of s_j is 1/2 - exp(-s_j) L_j: at rest a task weighs 1 / (2 L_j).
Legend: T tasks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyvit.config import OptimConfig, RunConfig
from polyvit.training.optim import AdamW

DWA_TEMPERATURE = 2.0
"""Of the softmax over ratios of losses. Source: Liu et al. 2019 (arXiv:1803.10704), section 3.2."""


def dwa_weights(config: RunConfig, evaluations: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of each task, sum T: the softmax of r_j / 2, where r_j is the task's loss at the last evaluation by that at
    the one before. {}, which is 1 for each, where `dwa` is not asked for and before there are two evaluations.

    Ours looks at evaluations, where the paper looks at training losses of epochs: they are in the checkpoint, so a
    run that goes on weighs alike. Losses are rounded to four digits, as an adaptive schedule's.
    """
    if config.schedule.loss_weights != "dwa" or len(evaluations) < 2:
        return {}
    before, now = (evaluation["tasks"] for evaluation in evaluations[-2:])
    ratios = []
    for task in config.tasks:
        old, new = (float(f"{each.get(task, {}).get('loss') or float('nan'):.4g}") for each in (before, now))
        ratios.append(new / old if old > 0 and new == new else 1.0)
    weights = len(ratios) * torch.softmax(torch.tensor(ratios, dtype=torch.float64) / DWA_TEMPERATURE, 0)
    return dict(zip(config.tasks, weights.tolist(), strict=True))


class UncertaintyWeights:
    """The learned s of each task, from 0, where every task weighs 1; on the device of the model.

    AdamW without weight decay trains them, at `schedule.uncertainty_lr` at every step: the run's warmup, decay and
    clipping do not touch them. Every rank sees the same summed losses, and so holds the same s.
    """

    def __init__(self, tasks: Sequence[str], lr: float, device: torch.device) -> None:
        self.tasks, self.lr = tuple(tasks), lr
        self.log_variance_T = nn.Parameter(torch.zeros(len(self.tasks), device=device))
        settings = OptimConfig(kind="adamw", weight_decay=0.0)
        self.optimiser = AdamW({"log_variance": self.log_variance_T}, settings)

    def weights(self) -> dict[str, Tensor]:
        """exp(-s) of each task, numbers on the device."""
        return dict(zip(self.tasks, torch.exp(-self.log_variance_T.detach()), strict=True))

    @torch.no_grad()
    def update(self, losses_T: Tensor) -> None:
        """One step of s. losses_T: each task's mean over the global batch, not weighted, on the device."""
        self.log_variance_T.grad = 0.5 - torch.exp(-self.log_variance_T) * losses_T
        self.optimiser.step(self.lr)

    def state(self) -> dict[str, Tensor]:
        """Named tensors for a checkpoint: `log_variance` [T], and what AdamW keeps of it."""
        return {"log_variance": self.log_variance_T.detach(), **self.optimiser.state()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        rest = dict(state)
        with torch.no_grad():
            self.log_variance_T.copy_(rest.pop("log_variance"))
        self.optimiser.load_state(rest)


def learned_weights(config: RunConfig, device: torch.device) -> UncertaintyWeights | None:
    """Of a new run; None where `schedule.loss_weights` asks for others."""
    if config.schedule.loss_weights != "uncertainty":
        return None
    return UncertaintyWeights(list(config.tasks), config.schedule.uncertainty_lr, device)
