"""AVBert's transformers: post-norm layers, one stack for each role or one for all, and each role's embeddings.

In: sequences [B, N, D] of one role (visual, audio, multimodal). Out: [B, N, D].
Legend: B batch, N tokens, D width, H heads, C width of one head, O rank, P rows of the position table.
Source: official code (BERT and ALBERT layers): post-norm, exact GELU, layer norm eps 1e-12.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from polyvit.config import AVBertConfig
from polyvit.model.sharing import FactorLinear, PrivateFactor, layer_homes, rotations

MASKED = -10000.0
"""Added to the scores of masked tokens; source: the official code."""
MAPS = ("query", "key", "value", "out", "ffn1", "ffn2")
_LOW = (1 << 34) - 1, (1 << 37) - 1, (1 << 33) - 1
_MIX = 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)


def mixed(x: Tensor) -> Tensor:
    """int64 -> int64 that look independent, whatever their pattern: splitmix64's finaliser (Steele, 2014)."""
    x = (x ^ (x >> 30 & _LOW[0])) * _MIX[0]
    x = (x ^ (x >> 27 & _LOW[1])) * _MIX[1]
    return x ^ (x >> 31 & _LOW[2])


def dropout(x: Tensor, seeds_B: Tensor | None, place: int, rate: float) -> Tensor:
    """Zero a share `rate` of [B, ...] and scale up the rest; what is zeroed follows from each example's seed.

    Not from a generator: an example drops the same numbers on any rank, in any microbatch, and when a block is run
    again for its gradient. `place` tells dropouts of one seed apart. No seeds: nothing is dropped.
    """
    if seeds_B is None or not rate:
        return x
    counter = torch.arange(x[0].numel(), device=x.device).view(x.shape[1:])
    start = mixed(seeds_B + place).view(-1, *(1 for _ in x.shape[1:]))
    drawn = mixed(start + counter) & 0xFFFFFF
    return x * ((drawn >= int(rate * (1 << 24))).to(x.dtype) / (1.0 - rate))


class PostNormLayer(nn.Module):
    """x1 = LN(x + attention(x)); y = LN(x1 + MLP(x1)). `roles`: who shares its factorised maps; none: plain."""

    def __init__(self, config: AVBertConfig, roles: Sequence[str]) -> None:
        super().__init__()
        width, wide, sharing = config.width, config.mlp_dim, config.sharing
        self.num_heads, self.rate = config.num_heads, config.dropout
        self.drops_mlp = sharing.layers == "none"  # BERT's layer; ALBERT's, which shares layers, does not
        self.factorised = bool(roles)
        shapes = [(width, width)] * 4 + [(width, wide), (wide, width)]
        for name, (n, m) in zip(MAPS, shapes, strict=True):
            layer = FactorLinear(n, m, sharing.rank, roles, sharing.orthogonal) if roles else nn.Linear(n, m)
            self.add_module(name, layer)
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)

    @property
    def maps(self) -> list[FactorLinear]:
        """The six maps, in the order of MAPS."""
        return [getattr(self, name) for name in MAPS]

    def forward(
        self,
        x_BND: Tensor,
        role: str,
        rotations_6OO: Tensor | None = None,
        mask_B11N: Tensor | None = None,
        seeds_B: Tensor | None = None,
    ) -> Tensor:
        """rotations_6OO: of the role's maps, where they are factorised. mask: added to the scores."""

        def mapped(name: str, x: Tensor) -> Tensor:
            layer = getattr(self, name)
            if rotations_6OO is None:
                return layer(x, role) if self.factorised else layer(x)
            return layer(x, role, rotations_6OO[MAPS.index(name)])

        q_BHNC, k_BHNC, v_BHNC = (self._heads(mapped(name, x_BND)) for name in MAPS[:3])
        if seeds_B is None or not self.rate:
            context = F.scaled_dot_product_attention(q_BHNC, k_BHNC, v_BHNC, mask_B11N)
        else:
            scores = q_BHNC @ k_BHNC.mT / math.sqrt(q_BHNC.shape[-1])
            weights = torch.softmax(scores if mask_B11N is None else scores + mask_B11N, dim=-1)
            context = dropout(weights, seeds_B, 0, self.rate).to(v_BHNC.dtype) @ v_BHNC
        attended = dropout(mapped("out", context.transpose(1, 2).flatten(2)), seeds_B, 1, self.rate)
        x1_BND = self.norm1(x_BND + attended)
        expanded = mapped("ffn2", F.gelu(mapped("ffn1", x1_BND)))
        if self.drops_mlp:
            expanded = dropout(expanded, seeds_B, 2, self.rate)
        return self.norm2(x1_BND + expanded)

    def _heads(self, x_BND: Tensor) -> Tensor:
        return x_BND.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Transformers(nn.Module):
    """The stacks of all roles. `stacks.<role>`, or `stacks.shared` for all roles: the distinct layers."""

    def __init__(self, config: AVBertConfig) -> None:
        super().__init__()
        sharing, self.roles = config.sharing, config.roles
        self.homes = layer_homes(config.depth, sharing.layers)
        distinct = 1 + max(self.homes)
        factorised = sharing.roles.startswith("low_rank")
        if sharing.roles in ("full", "low_rank"):
            stacks = {"shared": self.roles if factorised else ()}
        else:
            stacks = {role: (role,) if factorised else () for role in self.roles}
        self.stacks = nn.ModuleDict(
            {
                name: nn.ModuleList(PostNormLayer(config, roles) for _ in range(distinct))
                for name, roles in stacks.items()
            }
        )

    def layers(self, role: str) -> list[PostNormLayer]:
        """The distinct layers that a role runs."""
        return list(self.stacks["shared" if "shared" in self.stacks else role])  # type: ignore[call-overload]

    def run_once(self) -> list[PostNormLayer]:
        """Layers that no pass runs twice and that are called whole: those may be gathered one by one."""
        shared = "shared" in self.stacks and len(self.roles) > 1
        if shared or len(set(self.homes)) < len(self.homes):
            return []
        return [layer for role in self.roles for layer in self.layers(role) if not layer.factorised]

    def _rotations(self, role: str) -> Tensor:
        return rotations([m for layer in self.layers(role) for m in layer.maps], role)

    @torch.no_grad()
    def fix_rotations(self) -> None:
        """Work out every rotation for good and drop what it comes from: for a copy to export."""
        if not self.layers(self.roles[0])[0].factorised:
            return
        for role in self.roles:
            self.register_buffer(f"rotations_{role}", self._rotations(role))
        for module in self.modules():
            if isinstance(module, PrivateFactor):
                del module.skew

    def forward(
        self,
        x_BND: Tensor,
        role: str,
        mask_BN: Tensor | None = None,
        seeds_B: Tensor | None = None,
        checkpointed: bool = False,
    ) -> Tensor:
        """A role's sequences through its layers. mask: 1 for tokens that count; none: all do."""
        layers = self.layers(role)
        turns: list[Tensor | None] = [None] * len(layers)
        if layers[0].factorised:
            # Once a pass, not once a layer run: shared layers are run many times over.
            fixed = getattr(self, f"rotations_{role}", None)
            turns = list((self._rotations(role) if fixed is None else fixed).split(len(MAPS)))
        added = None if mask_BN is None else ((1.0 - mask_BN) * MASKED)[:, None, None, :].to(x_BND.dtype)
        for i, home in enumerate(self.homes):
            seeds = None if seeds_B is None else mixed(seeds_B + (i + 1) * 16 + self.roles.index(role) * 4096)
            arguments = (x_BND, role, turns[home], added, seeds)
            if checkpointed and torch.is_grad_enabled():
                # Dropout follows from the seeds, so there is no generator's state to put back.
                x_BND = checkpoint(layers[home], *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BND = layers[home](*arguments)
        return x_BND


class Embeddings(nn.Module):
    """Positions (and, of joined sequences, types: 0 visual, 1 audio) added, then layer norm: [B, N, D] -> same."""

    def __init__(self, config: AVBertConfig, types: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(config.positions, config.width))
        self.types = nn.Parameter(torch.empty(types, config.width)) if types else None
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.rate = config.dropout

    def forward(self, x_BND: Tensor, lengths: Sequence[int], seeds_B: Tensor | None = None) -> Tensor:
        """lengths: of the sequences that are joined in x; positions start again at each.

        Raises ValueError where one is longer than the table.
        """
        if max(lengths) > len(self.positions):
            raise ValueError(
                f"sequences of {max(lengths)} tokens need as many model.positions, not {len(self.positions)}"
            )
        added = torch.cat([self.positions[:length] for length in lengths])
        if self.types is not None:
            kinds = [self.types[i].expand(length, -1) for i, length in enumerate(lengths)]
            added = added + torch.cat(kinds)
        return dropout(self.norm(x_BND + added), seeds_B, 0, self.rate)
