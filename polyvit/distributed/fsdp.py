"""Parameters, gradients and optimiser state divided among the ranks (FSDP2), for `train.sharding: full`.

Every rank holds a part of each parameter along its first axis; a block's parameters are gathered just before it
runs and dropped after. Gradients are summed over ranks on the way, not averaged: the loss is divided by the global
batch already. Only what a step's task reaches is gathered and summed. Every function but `local`, `is_split` and
`is_sharded` is to be called by all ranks together.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from polyvit.distributed.communicator import Communicator

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


class OptimiserState(Protocol):
    """The state of an optimiser, by name: `<kind>.<parameter>`."""

    def state(self) -> dict[str, Tensor]:
        """Named tensors for a checkpoint."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""


def shard(units: Sequence[nn.Module], bfloat16: bool = False) -> None:
    """Divide a model that is whole and the same on every rank, in place; the optimiser is built after it.

    units: modules that are gathered one by one, inner ones first, the model last (see `sharding_units`),
    so that a step moves nothing of other tasks. bfloat16: parameters travel and are used in it, cast before they
    are gathered; gradients are summed in float32, and the parts that a rank holds stay float32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for unit in units:
        sharded = fully_shard(unit, mp_policy=half if bfloat16 else MixedPrecisionPolicy())
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo sums only


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was called."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(model, fsdp.FSDPModule)


def units_with(model: nn.Module, parameters: Sequence[nn.Parameter]) -> "list[FSDPModule]":
    """The modules that are gathered one by one (see `shard`) and hold some of these parameters of their own."""
    wanted, taken, units = set(parameters), set[nn.Parameter](), []
    for module in reversed(list(model.modules())):  # inner ones first
        if is_sharded(module):
            own = set(module.parameters()) - taken
            taken |= own
            if own & wanted:
                units.append(module)
    return units  # type: ignore[return-value]


def reduce_at_once(units: "Sequence[FSDPModule]", at_once: bool) -> None:
    """Whether these units' next backward pass sums gradients over ranks; else each rank adds up its own, whole,
    until one does. A unit that its pass does not reach must not be among them."""
    for unit in units:
        unit.set_requires_gradient_sync(at_once, recurse=False)


def is_split(tensor: Tensor) -> "TypeIs[DTensor]":
    """Whether this rank holds a part of it only.

    torch.distributed.tensor costs a second to import; as long as nobody has, no tensor is a part.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This rank's part (which may be empty), sharing memory; a whole tensor as it is, without its gradient."""
    return tensor.to_local() if is_split(tensor) else tensor.detach()


def whole(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that is divided as `like` is, or this rank's part of it, gathered."""
    if not is_split(like):
        return tensor.detach()
    from torch.distributed.tensor import DTensor

    divided = (
        tensor
        if is_split(tensor)
        else DTensor.from_local(
            tensor, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
    )
    return divided.full_tensor().detach()


def part(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on every rank, divided as `like` is; a copy on its device."""
    tensor = tensor.to(like.device)
    if not is_split(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def full_state(
    model: nn.Module, optimiser: OptimiserState, keeps: bool = True
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers by name and optimiser state by name, whole: what a checkpoint holds, sharded or not.

    Not copied where they are whole already; see `kept_whole` for `keeps` and for those that are divided.
    """
    parameters = dict(model.named_parameters())
    state = {}
    for key, value in optimiser.state().items():
        name = key.partition(".")[2]
        state[key] = value if value.ndim == 0 else kept_whole(value, parameters[name], keeps)
    return {name: kept_whole(p, p, keeps) for name, p in parameters.items()} | buffers_of(model), state


def kept_whole(tensor: Tensor, like: Tensor, keeps: bool) -> Tensor:
    """`whole`, moved to host memory at once where it had to be gathered, so that no device holds more than one.

    keeps: whether this rank has a use for it; one that has none takes part in the gathering and gets an empty one.
    """
    if not is_split(like):
        return tensor.detach()
    gathered = whole(tensor, like)
    return gathered.cpu() if keeps else gathered.new_empty(0)


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint keeps of a model besides its parameters, such as batch norm's running averages, by name.

    FSDP does not divide them: each rank has its own, whole (see `average_buffers`).
    """
    kept = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


@torch.no_grad()
def average_buffers(buffers: Iterable[Tensor], world: Communicator) -> None:
    """Replace every floating-point buffer by its mean over the ranks, on all of them; all ranks together.

    buffers: `buffers_of` a model; they change in place, so one list does for a whole run. Batch norm's statistics
    are those of each rank's own examples. With their mean every rank evaluates, saves and goes on from the same
    numbers.
    """
    buffers = [b for b in buffers if b.is_floating_point()]
    if world.size == 1 or not buffers:
        return
    flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
    world.sum_(flat)
    flat /= world.size
    for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


@torch.no_grad()
def load_parameters(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Whole parameters and buffers by name, the same on every rank, into a model that is divided or not."""
    for name, parameter in model.named_parameters():
        local(parameter).copy_(local(part(tensors[name], parameter)))
    for name, buffer in buffers_of(model).items():
        buffer.copy_(tensors[name])


def load_optimiser(model: nn.Module, optimiser: OptimiserState, state: Mapping[str, Tensor]) -> None:
    """Whole optimiser state by name, the same on every rank, for parameters that are divided or not."""
    parameters = dict(model.named_parameters())
    divided = {}
    for key, value in state.items():
        name = key.partition(".")[2]
        divided[key] = value if value.ndim == 0 or name not in parameters else part(value, parameters[name])
    optimiser.load_state(divided)


def reshard(model: nn.Module) -> None:
    """Drop what a pass without gradients has left gathered: it is not seen there when the parts change."""
    for module in model.modules():
        if is_sharded(module):
            module.reshard()  # type: ignore[operator]
