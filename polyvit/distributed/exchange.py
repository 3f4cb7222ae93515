"""Rows of all ranks on every rank, and sums over ranks, with gradients back to the rank that made them.

In: this rank's rows of a global batch [B, ...]. Out: all rows [G, ...]. Both ways are one all-reduce of G rows.
Every rank makes the same calls in the same order, forward and backward.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from polyvit.distributed.communicator import Communicator


def all_rows(rows_B: Tensor, first: int, total: int, world: Communicator) -> Tensor:
    """[G, ...]: the rows of every rank at their slots; called by all ranks together, forward and backward.

    first: slot of this rank's first row. total: G. A rank's loss may depend on all rows: gradients are summed over
    ranks, so the sum of the ranks' losses is what is differentiated. What no rank gives is 0.
    """
    return rows_B if world.size == 1 and len(rows_B) == total else _AllRows.apply(rows_B, first, total, world)


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, first: int, total: int, world: Communicator) -> Tensor:
        ctx.rows, ctx.first, ctx.world = len(rows), first, world
        everything = rows.new_zeros(total, *rows.shape[1:])
        everything[first : first + len(rows)] = rows
        world.sum_(everything)
        return everything

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = gradients[0].contiguous().clone()
        ctx.world.sum_(gradient)
        return gradient[ctx.first : ctx.first + ctx.rows], None, None, None


def from_rank_0(tensors: Mapping[str, Tensor], world: Communicator, device: torch.device) -> dict[str, Tensor]:
    """Tensors by name that rank 0 has, on every rank, in host memory; what others give is not looked at.

    They travel one by one through `device`, a GPU's where the ranks talk by NCCL. Called by all ranks together.
    """
    if world.size == 1:
        return dict(tensors)
    forms = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} if world.rank == 0 else {}
    received = {}
    for name, (shape, dtype) in world.gather(forms)[0].items():
        tensor = tensors[name].to(device) if world.rank == 0 else torch.empty(shape, dtype=dtype, device=device)
        if tensor.numel():
            world.broadcast_(tensor.contiguous().reshape(-1).view(torch.uint8))  # any type of number, to the bit
        received[name] = tensors[name] if world.rank == 0 else tensor.cpu()
    return received


def summed(x: Tensor, world: Communicator) -> Tensor:
    """The sum of a tensor over ranks; gradients of all ranks' losses are summed too."""
    return _Summed.apply(x, world)


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, world: Communicator) -> Tensor:
        ctx.world = world
        total = x.clone()
        world.sum_(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous().clone()
        ctx.world.sum_(gradient)
        return gradient, None
