"""What a GPU gets, held by fakes: pinned copies, precision, kernels' order, the allocator's setting."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyvit.model import devices
from polyvit.model.devices import autocast, fast_kernels, full_precision, grow_segments, upload, uses_bfloat16

CPU, CUDA, META = (torch.device(name) for name in ("cpu", "cuda", "meta"))


def test_what_goes_to_a_gpu_is_pinned_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    def pin(tensor: Tensor) -> Tensor:
        calls.append(("pinned", tensor.tolist()))
        return tensor

    def to(tensor: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
        calls.append((device.type, non_blocking))
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", to)
    upload(torch.tensor([1.0, 2.0]), CUDA)
    upload(torch.tensor([3.0]), CPU)
    assert calls == [("pinned", [1.0, 2.0]), ("cuda", True), ("cpu", True)]


@pytest.mark.parametrize("supported", [True, False])
def test_auto_is_bfloat16_where_a_gpu_has_it(monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert uses_bfloat16(CUDA, "auto") is supported
    assert not uses_bfloat16(CPU, "auto")
    assert not uses_bfloat16(CUDA, "float32")
    assert uses_bfloat16(CPU, "bfloat16")


def test_autocast_is_for_forward_passes() -> None:
    x = torch.ones(2, 2)
    with autocast(CPU, "bfloat16"):
        assert (x @ x).dtype == torch.bfloat16
        with full_precision(CPU, "bfloat16"):
            assert (x @ x).dtype == torch.float32
    with autocast(CPU, "auto"), autocast(META, "auto"):
        assert (x @ x).dtype == torch.float32


def test_a_parameter_is_cast_once_for_all_passes_of_a_step() -> None:
    """Two passes with backward in between: one cast of the weight, and the gradients of both."""
    layer, x = nn.Linear(4, 4, bias=False), torch.ones(2, 4)
    casts = 0

    class Casts(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal casts
            casts += "_to_copy" in str(func) and args[0].shape == (4, 4) and args[0].dtype == torch.float32
            return func(*args, **(kwargs or {}))

    def passes(times: int) -> None:
        layer.weight.grad = None
        with autocast(CPU, "bfloat16"):
            for _ in range(times):
                with autocast(CPU, "bfloat16"):
                    loss = layer(x).float().sum()
                with full_precision(CPU, "bfloat16"):
                    loss.backward()

    passes(1)
    assert layer.weight.grad is not None
    once = layer.weight.grad.clone()
    with Casts():
        passes(3)
    assert casts == 1
    torch.testing.assert_close(layer.weight.grad, 3 * once)


@pytest.mark.parametrize(("capability", "first"), [(9, "CUDNN_ATTENTION"), (8, None)])
@pytest.mark.parametrize(("precision", "products"), [("auto", "high"), ("float32", "highest")])
def test_kernels_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: int, first: str | None, precision: Any, products: str
) -> None:
    from torch.nn.attention import SDPBackend

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    before = torch.get_float32_matmul_precision(), torch._C._get_sdp_priority_order()
    with fast_kernels(CUDA, precision):
        assert torch.get_float32_matmul_precision() == products
        order = torch._C._get_sdp_priority_order()
        if first:
            assert order[0] == int(getattr(SDPBackend, first).value)
        else:
            assert order == before[1]
    assert before == (torch.get_float32_matmul_precision(), torch._C._get_sdp_priority_order())
    with fast_kernels(CPU, precision):
        assert torch.get_float32_matmul_precision() == before[0]


def test_the_allocator_grows_its_segments_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in devices.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(devices.os, "environ", environ := {})
    grow_segments()
    assert environ == {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    environ.clear()
    environ["PYTORCH_ALLOC_CONF"] = "max_split_size_mb:64"
    grow_segments()
    assert list(environ) == ["PYTORCH_ALLOC_CONF"]
