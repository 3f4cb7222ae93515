"""What differs between devices: how numbers get there, the format of products, the order of kernels.

In: a device, `train.precision`. Out: copies that the host does not wait for, contexts for a pass. On a CPU nothing
is pinned and everything is float32 unless the config says otherwise.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["auto", "float32", "bfloat16"]
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Where torch reads how its allocator on a GPU is to work: new name, old name, which every version reads."""
HOPPER = 9
"""Compute capability on which cuDNN's attention is tried first: 12 to 21 % faster than flash attention there
(LeJEPA's public code, H200; no figure of ours yet)."""


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A small CPU tensor on `device`. On a GPU through pinned memory: from pageable memory the host would wait."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def uses_bfloat16(device: torch.device, precision: Precision) -> bool:
    """Whether passes are bfloat16: `auto` means on GPUs that multiply in it."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Around a forward pass, or several: maps take bfloat16 where `uses_bfloat16` says so.

    Around several passes each parameter is cast once; the outermost such context keeps the copies.
    """
    half = uses_bfloat16(device, precision)
    return torch.autocast(device.type, torch.bfloat16) if half else nullcontext()


def full_precision(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Around a backward pass within `autocast`, which is for forward passes alone."""
    half = uses_bfloat16(device, precision)
    return torch.autocast(device.type, enabled=False) if half else nullcontext()


def grow_segments() -> None:
    """Have CUDA's allocator grow its blocks, which tasks of different shapes would cut to pieces otherwise. To be
    called before the first tensor is on a GPU; what the user has set stays."""
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[-1]] = "expandable_segments:True"


@contextmanager
def fast_kernels(device: torch.device, precision: Precision) -> Iterator[None]:
    """Around a whole run or evaluation: TF32 products of what stays float32 unless `precision` is float32, and on
    Hopper cuDNN's attention first. Nothing changes on a CPU."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    try:
        with _attention_order(torch.cuda.get_device_capability(device)[0]):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _attention_order(capability: int) -> AbstractContextManager[object]:
    """The kernels of attention in the order in which they are tried."""
    from torch.nn.attention import SDPBackend, sdpa_kernel  # on GPUs only

    if capability < HOPPER:
        return nullcontext()
    order = [
        SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH,
    ]  # fmt: skip
    return sdpa_kernel(order, set_priority=True)
