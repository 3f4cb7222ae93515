"""How a transformer shares its weights: over its layers, and over the roles (or modalities) that use it.

In: tokens [..., N] of one role. Out: [..., M], by a factor that all roles share and one that is the role's own.
Legend: N numbers in, M numbers out, O rank, L layers.
Source: Lee et al., ICLR 2021, arXiv 2012.04124; the form is that of the official code, sangho-vision/avbert @
01c12b7, where "Sigma" is a rotation and the projection keeps the direction of its input alone.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Orthogonal = Literal["expm", "cayley"]
Layers = int | Literal["none", "all"]
EPS = 1e-12
"""Smallest length that the projection divides by; source: the official code."""
THETA, MOST_SQUARINGS = 3.925724783138660, 6
"""Largest 1-norm that the exponential takes without squaring, and how often it halves at most: norms up to 251."""


def layer_homes(depth: int, layers: Layers) -> list[int]:
    """Which distinct layer each of `depth` layers is: none -> 0, 1, 2, ...; all -> 0, 0, ...; n -> n in a row."""
    in_a_row = {"none": 1, "all": depth}.get(layers, layers) if isinstance(layers, str) else layers
    return [i // int(in_a_row) for i in range(depth)]


def orthogonal_matrix(skew: Tensor, how: Orthogonal) -> Tensor:
    """R [..., O, O] from stored [..., O, O], of which the strict upper triangle T alone is read.

    K = T - T^T; expm: R = exp(K); cayley: R = (I + K)^-1 (I - K). In float32 whatever autocast says: an
    exponential of bfloat16 products is not orthogonal.
    """
    # torch.nn.utils.parametrizations.orthogonal is the same map of -T^T (expm) or 2 T^T (cayley); a test holds
    # ours to it in float64. In float32 its exponential is off by up to 5e-5, a hundred times the official one's
    # rounding, and it is evaluated anew at every access, of which a pass through shared layers has 108.
    with nullcontext() if skew.is_meta else torch.autocast(skew.device.type, enabled=False):
        upper = skew.triu(1)
        k = upper - upper.mT
        if how == "expm":
            return torch.matrix_exp(k) if k.dtype == torch.float64 else exponential(k)
        identity = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
        return torch.linalg.solve_ex(identity + k, identity - k)[0]


def exponential(k: Tensor) -> Tensor:
    """exp of [..., O, O] to float32's rounding, in one go for all matrices and without waiting for the device.

    Pade approximant of degree 7 at k / 2^s, squared s times; s of each matrix is worked out on the device, at most
    MOST_SQUARINGS. Source: Higham, SIAM J. Matrix Anal. 26 (2005), table 2.3, THETA for single precision.
    """
    norm = k.detach().abs().sum(-2).amax(-1)
    squarings = (norm / THETA).log2().ceil().clamp(0, MOST_SQUARINGS)[..., None, None]
    k = k * torch.exp2(-squarings)
    identity = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    k2 = k @ k
    k4 = k2 @ k2
    k6 = k4 @ k2
    odd = k @ (k6 + 1512 * k4 + 277200 * k2 + 8648640 * identity)
    even = 56 * k6 + 25200 * k4 + 1995840 * k2 + 17297280 * identity
    result = torch.linalg.solve_ex(even - odd, even + odd)[0]
    for i in range(MOST_SQUARINGS):
        result = torch.where(i < squarings, result @ result, result)
    return result


def factors(weight_MN: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """U [M, O], V [O, N] of the best map of a rank to a full one, and what is lost: |W - U V| / |W|, Frobenius.

    The largest singular values (in float64), their roots on either side, so that both factors learn at one pace.
    Rows and columns beyond the number of singular values are zero.
    """
    u, s, vh = torch.linalg.svd(weight_MN.double(), full_matrices=False)
    kept = min(rank, len(s))
    root = s[:kept].sqrt()
    left = s.new_zeros(weight_MN.shape[0], rank)
    left[:, :kept] = u[:, :kept] * root
    right = s.new_zeros(rank, weight_MN.shape[1])
    right[:kept] = root[:, None] * vh[:kept]
    error = float(s[kept:].norm() / s.norm()) if len(s) > kept else 0.0
    return left.float(), right.float(), error


class PrivateFactor(nn.Module):
    """What one role has of a factorised map: `weight` [O, N] and a rotation, stored as `skew` [O, O]."""

    skew: nn.Parameter

    def __init__(self, in_features: int, rank: int, rotates: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rank, in_features))
        if rotates:
            self.skew = nn.Parameter(torch.empty(rank, rank))


class LowRankLinear(nn.Module):
    """y = U V_role x + b: `weight` U [M, O] and `bias` b [M] shared by the roles, V [O, N] each role's own."""

    rotates = False

    def __init__(self, in_features: int, out_features: int, rank: int, roles: Sequence[str]) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.weight = nn.Parameter(torch.empty(out_features, rank))
        self.bias = nn.Parameter(torch.empty(out_features))
        self.private = nn.ModuleDict({role: PrivateFactor(in_features, rank, self.rotates) for role in roles})

    def own(self, role: str) -> PrivateFactor:
        """A role's own factor."""
        return self.private[role]  # type: ignore[return-value]

    def forward(self, x: Tensor, role: str) -> Tensor:
        """[..., N] -> [..., M]."""
        return F.linear(F.linear(x, self.own(role).weight), self.weight, self.bias)

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Normal factors whose product has the variance of xavier, 2 / (N + M); no bias."""
        n, m = self.in_features, self.out_features
        self.weight.normal_(0.0, math.sqrt(2 * n / ((n + m) * self.rank)), generator=generator)
        self.bias.zero_()
        for factor in map(self.own, self.private):
            factor.weight.normal_(0.0, math.sqrt(1 / n), generator=generator)

    @torch.no_grad()
    def factorise(self, weight_MN: Tensor, bias_M: Tensor) -> float:
        """Become the best map of this rank to a full one, the same for every role; returns the relative error.

        See `factors`.
        """
        left_MO, right_ON, error = factors(weight_MN, self.rank)
        self.weight.copy_(left_MO)
        self.bias.copy_(bias_M)
        for factor in map(self.own, self.private):
            factor.weight.copy_(right_ON)
        return error

    @torch.no_grad()
    def plain(self, role: str) -> nn.Linear:
        """One role's map, multiplied out."""
        layer = nn.Linear(self.in_features, self.out_features, device=self.weight.device)
        right = self.own(role).weight
        layer.weight.copy_((self.weight.double() @ right.double()).float())
        layer.bias.copy_(self.bias)
        return layer


class FactorLinear(LowRankLinear):
    """y = U R_role (V_role x / |V_role x|) + b, as the official FactorLinear: the length of V x is lost."""

    rotates = True

    def __init__(
        self, in_features: int, out_features: int, rank: int, roles: Sequence[str], orthogonal: Orthogonal = "expm"
    ) -> None:
        super().__init__(in_features, out_features, rank, roles)
        self.orthogonal: Orthogonal = orthogonal

    def forward(self, x: Tensor, role: str, rotation_OO: Tensor | None = None) -> Tensor:
        """[..., N] -> [..., M]. `rotation_OO`: R_role, where the caller has computed it (see `rotations`)."""
        factor = self.own(role)
        if rotation_OO is None:
            rotation_OO = orthogonal_matrix(factor.skew, self.orthogonal)
        direction = F.normalize(F.linear(x, factor.weight), dim=-1, eps=EPS)
        # A row times R, and then times U^T.
        return F.linear(direction @ rotation_OO.to(direction.dtype), self.weight, self.bias)


def rotations(maps: Sequence[FactorLinear], role: str) -> Tensor:
    """R_role of several maps of one rank, [maps, O, O]: one exponential for all of them."""
    return orthogonal_matrix(torch.stack([m.own(role).skew for m in maps]), maps[0].orthogonal)


@torch.no_grad()
def reset_low_rank(layer: LowRankLinear, generator: torch.Generator, std: float) -> None:
    """Truncated normal factors, no bias, rotations in planes by tan(t / 2), t uniform in [0, pi / 2).

    The rotations are the official "cayley" initialiser: zeros but A[i, i+1] = -tan(t / 2) = -A[i+1, i] at even i.
    """
    nn.init.trunc_normal_(layer.weight, 0.0, std, -2 * std, 2 * std, generator=generator)
    layer.bias.zero_()
    for factor in map(layer.own, layer.private):
        nn.init.trunc_normal_(factor.weight, 0.0, std, -2 * std, 2 * std, generator=generator)
        if not layer.rotates:
            continue
        pairs = layer.rank // 2
        tangent = torch.tan(torch.rand(pairs, generator=generator) * (math.pi / 4)).to(factor.skew)
        even = torch.arange(pairs, device=factor.skew.device) * 2
        factor.skew.zero_()
        factor.skew[even, even + 1] = -tangent
        factor.skew[even + 1, even] = tangent


def owner_of(name: str) -> str | None:
    """The role that a parameter of a factorised map is private to, by its name; None: shared."""
    parts = name.split(".")
    return parts[parts.index("private") + 1] if "private" in parts else None
