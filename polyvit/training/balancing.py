"""How the gradients of several tasks become one update, for `schedule.kind=accumulating`.

In: the gradient of each task of a step on the weights that all of them reach. Out: one gradient, by an aggregator
of torchjd (Jacobian descent, Quinton and Rey 2024, arXiv:2406.16232): `schedule.balancing`. Weights that only some
tasks reach sum their gradients as ever. What each loss weighs before: `loss_weights.py`.
Legend: T tasks, P shared parameters, flat.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyvit.config import RunConfig
from polyvit.distributed import Communicator
from polyvit.model import MultiTaskModel

CAGRAD_C = 0.5
"""How far the update may leave the mean gradient, relative to its norm; 0.5 is of the authors' released runs on
NYUv2 (arXiv:2110.14048 tunes it in 0.1 to 0.9)."""


class Balance:
    """The balancing of one step.

    shared: parameters that all tasks of the step reach. `take` is called behind each task's last backward pass on
    this rank, `combine` when gradients of other parameters are summed; then the shared ones have the update's.
    """

    def __init__(self, name: str, shared: Sequence[nn.Parameter], seed: int) -> None:
        self.name, self.shared, self.seed = name, list(shared), seed
        self.rows: list[Tensor] = []

    @torch.no_grad()
    def take(self) -> None:
        """Keep the gradients that lie at the shared parameters as one task's, and clear them."""
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.shared]
        self.rows.append(torch.cat([piece.reshape(-1) for piece in pieces]))
        for parameter in self.shared:
            parameter.grad = None

    @torch.no_grad()
    def combine(self, world: Communicator) -> int:
        """Sum gradients over ranks, aggregate, put the update at the parameters, the same on every rank.

        Returns the bytes that this rank gave to be summed.
        """
        jacobian_TP = torch.stack(self.rows)
        self.rows = []
        world.sum_(jacobian_TP.view(-1))
        update_P = aggregate(self.name, jacobian_TP, self.seed)
        offset = 0
        for parameter in self.shared:
            parameter.grad = update_P[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
        return jacobian_TP.numel() * jacobian_TP.element_size() if world.size > 1 else 0


def aggregate(name: str, jacobian_TP: Tensor, seed: int) -> Tensor:
    """[P] of gradients [T, P] by torchjd's aggregator; draws (PCGrad's order) follow from `seed` alone."""
    from torchjd import aggregation  # the extra `balancing`

    make: dict[str, Any] = {
        "pcgrad": aggregation.PCGrad,
        "cagrad": lambda: aggregation.CAGrad(c=CAGRAD_C),
        "mgda": aggregation.MGDA,
        "nash_mtl": lambda: aggregation.NashMTL(n_tasks=len(jacobian_TP)),  # anew: it remembers earlier steps
        "upgrad": aggregation.UPGrad,
        "imtl_g": aggregation.IMTLG,
        "aligned_mtl": aggregation.AlignedMTL,
    }
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are solving a parameterized problem", UserWarning)  # Nash-MTL's
        torch.manual_seed(seed)
        return make[name]()(jacobian_TP)


def shared_by_all(model: MultiTaskModel, tasks: Sequence[str]) -> dict[str, nn.Parameter]:
    """Parameters that each of these tasks reaches, by name."""
    reached = [model.touched(task) for task in tasks]
    return {name: p for name, p in reached[0].items() if all(name in other for other in reached[1:])}


def balance_of(model: MultiTaskModel, tasks: Sequence[str], config: RunConfig, seed: int) -> Balance | None:
    """Of a step of these tasks; None where gradients are simply summed."""
    if config.schedule.balancing == "sum" or len(tasks) < 2:
        return None
    return Balance(config.schedule.balancing, list(shared_by_all(model, tasks).values()), seed)


def balancing_bytes(model: MultiTaskModel, config: RunConfig) -> int:
    """Memory that balancing takes on each worker: a gradient of the shared weights for each task, the matrix of
    them that is summed, and the update."""
    if config.schedule.balancing == "sum" or len(config.tasks) < 2:
        return 0
    shared = sum(p.numel() for p in shared_by_all(model, list(config.tasks)).values())
    return 4 * shared * (2 * len(config.tasks) + 1)
