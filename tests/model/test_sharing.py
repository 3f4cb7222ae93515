"""Weight sharing: exact values of small maps, torch's own orthogonal matrix, truncation by singular values."""

import math

import pytest
import torch
from torch import nn

from polyvit.model.sharing import (
    FactorLinear,
    LowRankLinear,
    exponential,
    layer_homes,
    orthogonal_matrix,
    owner_of,
    reset_low_rank,
    rotations,
)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("none", [0, 1, 2, 3, 4]), ("all", [0] * 5), (2, [0, 0, 1, 1, 2]), (1, [0, 1, 2, 3, 4]), (9, [0] * 5)],
)
def test_layer_homes(layers: int | str, expected: list[int]) -> None:
    assert layer_homes(5, layers) == expected  # type: ignore[arg-type]


def test_rotation_of_a_plane() -> None:
    """exp of [[0, a], [-a, 0]] is a rotation by a; the Cayley transform one by -2 atan(a)."""
    angle = 0.3
    stored = torch.tensor([[5.0, angle], [7.0, -2.0]], dtype=torch.float64)
    c, s = math.cos(angle), math.sin(angle)
    torch.testing.assert_close(orthogonal_matrix(stored, "expm"), stored.new_tensor([[c, s], [-s, c]]))
    c, s = math.cos(2 * math.atan(angle)), math.sin(2 * math.atan(angle))
    torch.testing.assert_close(orthogonal_matrix(stored, "cayley"), stored.new_tensor([[c, -s], [s, c]]))


@pytest.mark.parametrize(("how", "name", "factor"), [("expm", "matrix_exp", -1.0), ("cayley", "cayley", 2.0)])
def test_torch_parametrization_gives_the_same_matrix(how: str, name: str, factor: float) -> None:
    """torch reads the lower triangle, and half of it for Cayley: -A^T and 2 A^T give the same matrices."""
    stored = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = nn.Linear(6, 6, bias=False, dtype=torch.float64)
    nn.utils.parametrizations.orthogonal(theirs, orthogonal_map=name, use_trivialization=False)
    with torch.no_grad():
        theirs.parametrizations.weight.original.copy_(factor * stored.mT)
    ours = orthogonal_matrix(stored, how)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs.weight.detach(), rtol=0, atol=1e-13)
    torch.testing.assert_close(ours @ ours.mT, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 3.0, 8.0, 40.0])
def test_exponential_to_float32_rounding(scale: float) -> None:
    """Against torch's in float64, from no squaring to six; each squaring doubles the rounding so far."""
    k = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0)) * scale / 8
    k = k - k.mT
    limit = 1e-6 * max(1.0, float(k.abs().sum(-1).max()))
    torch.testing.assert_close(exponential(k).double(), torch.matrix_exp(k.double()), rtol=0, atol=limit)


def test_factor_linear_by_hand() -> None:
    """V x = (3, 4) -> (.6, .8), a quarter turn -> (-.8, .6), U = diag(10, 100), b = (1, 2); scale is forgotten."""
    layer = FactorLinear(2, 2, 2, ("a", "b"))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[10.0, 0.0], [0.0, 100.0]]))
        layer.bias.copy_(torch.tensor([1.0, 2.0]))
        for role, sign in (("a", 1.0), ("b", -1.0)):
            layer.private[role].weight.copy_(sign * torch.eye(2))
            layer.private[role].skew.copy_(torch.tensor([[9.0, math.pi / 2], [9.0, 9.0]]))
    x = torch.tensor([[3.0, 4.0], [30.0, 40.0], [0.0, 0.0]])
    expected = torch.tensor([[-7.0, 62.0], [-7.0, 62.0], [1.0, 2.0]])
    torch.testing.assert_close(layer(x, "a"), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(layer(x, "b")[0], torch.tensor([9.0, -58.0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(layer(x, "a", rotations([layer], "a")[0]), layer(x, "a"))


def test_dead_half_of_the_stored_matrix_gets_no_gradient() -> None:
    layer = FactorLinear(4, 3, 4, ("a",))
    reset_low_rank(layer, torch.Generator().manual_seed(0), 0.5)
    layer(torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), "a").square().sum().backward()
    gradient = layer.private["a"].skew.grad
    assert torch.equal(gradient.tril(), torch.zeros(4, 4))
    assert (gradient.triu(1) != 0).sum() == 6


def test_initial_values_follow_the_seed() -> None:
    """The same seed, the same values; planes are turned by less than an eighth of a circle's tangent, 1."""
    layers = [FactorLinear(6, 5, 4, ("a",)) for _ in range(2)]
    for layer in layers:
        reset_low_rank(layer, torch.Generator().manual_seed(3), 0.02)
    assert all(torch.equal(x, y) for x, y in zip(*(m.parameters() for m in layers), strict=True))
    skew = layers[0].private["a"].skew
    assert (skew[0, 1], skew[2, 3]) == (-skew[1, 0], -skew[3, 2])
    assert torch.count_nonzero(skew) == 4
    assert skew.abs().max() < 1
    assert layers[0].weight.abs().max() <= 0.04


@pytest.mark.parametrize(("rank", "lost"), [(4, 0.0), (2, math.sqrt(2**2 + 1)), (1, math.sqrt(4**2 + 2**2 + 1))])
def test_factorise_keeps_the_largest_singular_values(rank: int, lost: float) -> None:
    """Singular values 8, 4, 2, 1: the error is the length of those that are cut off over the length of all."""
    values = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(6, 4, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))
    weight, bias = (left * values @ right).float(), torch.arange(6.0)
    layer = LowRankLinear(4, 6, rank, ("a", "b"))
    error = layer.factorise(weight, bias)
    assert error == pytest.approx(lost / float(values.norm()), abs=1e-6)
    for role in ("a", "b"):
        product = (layer.weight @ layer.private[role].weight).detach()
        assert float((product - weight).norm()) == pytest.approx(lost, abs=1e-5)
    x = torch.randn(3, 4, generator=generator)
    torch.testing.assert_close(layer(x, "b"), x @ (layer.weight @ layer.private["b"].weight).mT + bias)


def test_owner_of() -> None:
    assert owner_of("layers.0.query.private.audio.weight") == "audio"
    assert owner_of("layers.0.query.weight") is None
