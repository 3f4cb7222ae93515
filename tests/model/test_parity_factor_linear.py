"""Parity of the factorised map with the official FactorLinear: every file of the kit, both precisions."""

import av_kit as kit
import pytest
import torch

from polyvit.model.sharing import FactorLinear, Orthogonal, orthogonal_matrix

CASES = kit.files("factor_linear")
FLOAT32, FLOAT64 = 5e-6, 1e-8
"""float32: the exponential's rounding (facts, trap 12) and sums of a few dozen products. float64: the official
exponential's order is chosen for single precision, and is itself some 1e-10 off."""


def how(case: str) -> Orthogonal:
    return "cayley" if case.endswith("cayley") else "expm"


def built(case: str, dtype: torch.dtype) -> tuple[FactorLinear, list[str]]:
    """The kit's map, and its groups' names, "0", "1", ..."""
    weights = kit.under(case, "param/")
    groups = [str(g) for g in range(sum(name.endswith("_linear.A") for name in weights))]
    shared = weights["s_linear.weight"]
    rank, inputs = weights["ms0_linear.weight"].shape
    layer = FactorLinear(inputs, shared.shape[0], rank, groups, how(case))
    state = {"weight": shared, "bias": weights["s_linear.bias"]}
    for g in groups:
        state[f"private.{g}.weight"] = weights[f"ms{g}_linear.weight"]
        state[f"private.{g}.skew"] = weights[f"orthogonal_ms{g}_linear.A"]
    layer.load_state_dict(state)
    return layer.to(dtype), groups


@pytest.mark.parametrize("case", CASES)
def test_parity_factor_linear(case: str) -> None:
    """Outputs, the rotation, gradients of the input and of every parameter, of each group."""
    data = kit.under(case, "")
    layer, groups = built(case, torch.float32)
    for g in groups:
        layer.zero_grad()
        x = data["in/x"].clone().requires_grad_()
        y = layer(x, g)
        (y * data["cot/y"]).sum().backward()
        kit.close(y, data[f"out/group{g}/y"], FLOAT32, "y")
        kit.close(x.grad, data[f"gin/group{g}/x"], FLOAT32, "dx")
        matrix = orthogonal_matrix(layer.private[g].skew, how(case))
        kit.close(matrix, data[f"orth/group{g}"], FLOAT32, "R")
        ours = {
            f"ms{g}_linear.weight": layer.private[g].weight.grad,
            f"orthogonal_ms{g}_linear.A": layer.private[g].skew.grad,
            "s_linear.weight": layer.weight.grad,
            "s_linear.bias": layer.bias.grad,
        }
        expected = kit.under(case, f"grad/group{g}/")
        for name, gradient in ours.items():
            kit.close(gradient, expected[name], FLOAT32, name)
        assert all(layer.private[other].weight.grad is None for other in groups if other != g)


@pytest.mark.parametrize("case", CASES)
def test_parity_factor_linear_in_float64(case: str) -> None:
    data = kit.under(case, "")
    layer, groups = built(case, torch.float64)
    for g in groups:
        layer.zero_grad()
        x = data["in/x"].double().requires_grad_()
        y = layer(x, g)
        (y * data["cot/y"]).sum().backward()
        kit.close(y, data[f"out64/group{g}/y"], FLOAT64, "y")
        kit.close(x.grad, data[f"gin64/group{g}/x"], FLOAT64, "dx")
        kit.close(orthogonal_matrix(layer.private[g].skew, how(case)), data[f"orth64/group{g}"], FLOAT64, "R")
        if f"grad64/group{g}/A" in data:
            kit.close(layer.private[g].skew.grad, data[f"grad64/group{g}/A"], FLOAT64, "dA")


def test_parity_initial_rotation() -> None:
    """The matrix that the official initialiser writes, through our exponential."""
    data = kit.under("orthogonal_init_example", "")
    stored = next(v for name, v in data.items() if "A_after" in name)
    matrix = next(v for name, v in data.items() if name.split("/")[-1] == "B")
    kit.close(orthogonal_matrix(stored, "expm"), matrix, FLOAT32, "R")
    even = torch.arange(0, len(stored) - 1, 2)
    assert torch.equal(stored[even, even + 1], -stored[even + 1, even])
    assert (torch.count_nonzero(stored), stored.abs().max() < 1) == (2 * len(even), True)
