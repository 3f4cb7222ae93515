"""Pre-norm transformer blocks with stochastic depth.

Legend: B batch, N tokens (with the class token), D width, H heads, C width of one head, M mlp_dim.
Source of the form: facts from the official release (pre-norm, biases everywhere, no dropout).
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvit.config import ModelConfig
from polyvit.model.sharing import LowRankLinear, factors, owner_of


class Attention(nn.Module):
    """Multi-head self-attention with one fused qkv projection: [B, N, D] -> [B, N, D]."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Scale is 1 / sqrt(D / H); no mask, no dropout."""
        batch, tokens, width = x_BND.shape
        qkv = self.qkv(x_BND).view(batch, tokens, 3, self.num_heads, width // self.num_heads)
        # Parted along the axis where the backward pass puts them together again: one copy, not two.
        q_BHNC, k_BHNC, v_BHNC = (part.transpose(1, 2) for part in qkv.unbind(2))
        out_BHNC = F.scaled_dot_product_attention(q_BHNC, k_BHNC, v_BHNC)
        return self.proj(out_BHNC.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Linear, GELU, Linear: [B, N, D] -> [B, N, D]."""

    def __init__(self, width: int, mlp_dim: int, gelu: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, width)
        self.approximate = "tanh" if gelu == "tanh" else "none"

    def forward(self, x_BND: Tensor) -> Tensor:
        """GELU in the tanh form (Flax, official) or exact (timm)."""
        return self.fc2(F.gelu(self.fc1(x_BND), approximate=self.approximate))


class Block(nn.Module):
    """LN -> attention -> + -> LN -> MLP -> +, each branch droppable per example."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = Attention(config.width, config.num_heads)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config.width, config.mlp_dim, config.gelu)

    def forward(self, x_BND: Tensor, keep_2B: Tensor | None = None) -> Tensor:
        """`keep_2B`: 1 keeps, 0 drops the attention (row 0) or MLP (row 1) branch of an example.

        A kept branch is not rescaled by 1 / (1 - p), as in the official release.
        """
        attended, keep_mlp = self.attn(self.norm1(x_BND)), None
        if keep_2B is not None:
            keep_attention, keep_mlp = keep_2B.to(x_BND.dtype)[:, :, None, None]
            attended = attended * keep_attention
        x_BND = x_BND + attended
        expanded = self.mlp(self.norm2(x_BND))
        return x_BND + (expanded if keep_mlp is None else expanded * keep_mlp)


class LowRankBlock(nn.Module):
    """A Block whose maps are U V: U, biases and norms shared by the modalities, V each modality's own."""

    def __init__(self, config: ModelConfig, modalities: Sequence[str]) -> None:
        super().__init__()
        width, rank = config.width, config.sharing.rank
        self.num_heads = config.num_heads
        self.approximate = "tanh" if config.gelu == "tanh" else "none"
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.query = LowRankLinear(width, width, rank, modalities)
        self.key = LowRankLinear(width, width, rank, modalities)
        self.value = LowRankLinear(width, width, rank, modalities)
        self.proj = LowRankLinear(width, width, rank, modalities)
        self.fc1 = LowRankLinear(width, config.mlp_dim, rank, modalities)
        self.fc2 = LowRankLinear(config.mlp_dim, width, rank, modalities)

    def forward(self, x_BND: Tensor, keep_2B: Tensor | None, modality: str) -> Tensor:
        """`keep_2B`: as in `Block`."""
        attended, keep_mlp = self._attend(self.norm1(x_BND), modality), None
        if keep_2B is not None:
            keep_attention, keep_mlp = keep_2B.to(x_BND.dtype)[:, :, None, None]
            attended = attended * keep_attention
        x_BND = x_BND + attended
        hidden = F.gelu(self.fc1(self.norm2(x_BND), modality), approximate=self.approximate)
        expanded = self.fc2(hidden, modality)
        return x_BND + (expanded if keep_mlp is None else expanded * keep_mlp)

    def _attend(self, x_BND: Tensor, modality: str) -> Tensor:
        maps = (self.query, self.key, self.value)
        q_BHNC, k_BHNC, v_BHNC = (
            each(x_BND, modality).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in maps
        )
        out_BHNC = F.scaled_dot_product_attention(q_BHNC, k_BHNC, v_BHNC)
        return self.proj(out_BHNC.transpose(1, 2).flatten(2), modality)

    def alone(self, config: ModelConfig, modality: str) -> "Block | LowRankBlock":
        """A copy that serves one modality: with its factors, or multiplied out where that has fewer numbers."""
        with torch.device("meta"):
            both = Block(config), LowRankBlock(config, [modality])
            full, low = (sum(p.numel() for p in block.parameters()) for block in both)
        if full <= low:
            return self.plain(config, modality)
        block = LowRankBlock(config, [modality]).to(self.norm1.weight.device)
        block.load_state_dict({n: t for n, t in self.state_dict().items() if owner_of(n) in (None, modality)})
        return block

    @torch.no_grad()
    def plain(self, config: ModelConfig, modality: str) -> Block:
        """One modality's block with its maps multiplied out, for what knows plain blocks only."""
        block = Block(config).to(self.norm1.weight.device)
        block.norm1.load_state_dict(self.norm1.state_dict())
        block.norm2.load_state_dict(self.norm2.state_dict())
        q, k, v, proj, fc1, fc2 = (
            each.plain(modality) for each in (self.query, self.key, self.value, self.proj, self.fc1, self.fc2)
        )
        block.attn.qkv.weight.copy_(torch.cat([q.weight, k.weight, v.weight]))
        block.attn.qkv.bias.copy_(torch.cat([q.bias, k.bias, v.bias]))
        for mine, theirs in ((block.attn.proj, proj), (block.mlp.fc1, fc1), (block.mlp.fc2, fc2)):
            mine.load_state_dict(theirs.state_dict())
        return block


LOW_RANK_MAPS = {"proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
"""Maps of a LowRankBlock -> those of a Block; query, key and value are the thirds of `attn.qkv`."""


def low_rank_values(
    block: Mapping[str, Tensor], rank: int, modalities: Sequence[str]
) -> Iterator[tuple[str, Tensor, str]]:
    """A Block's state -> (name, value, how) of a LowRankBlock's, each map at the best of the rank.

    how: the error of the map, at its shared factor; empty elsewhere. At rank D the block computes the same.
    """
    for norm in ("norm1", "norm2"):
        for leaf in ("weight", "bias"):
            yield f"{norm}.{leaf}", block[f"{norm}.{leaf}"], ""
    maps = {name: (block[f"{theirs}.weight"], block[f"{theirs}.bias"]) for name, theirs in LOW_RANK_MAPS.items()}
    thirds = zip(block["attn.qkv.weight"].chunk(3), block["attn.qkv.bias"].chunk(3), strict=True)
    maps |= dict(zip(("query", "key", "value"), thirds, strict=True))
    for name, (weight, bias) in maps.items():
        left, right, error = factors(weight, rank)
        yield f"{name}.weight", left, f"rank {rank} of {min(weight.shape)}: error {error:.2g} of the map"
        yield f"{name}.bias", bias, ""
        for modality in modalities:
            yield f"{name}.private.{modality}.weight", right, ""


def drop_path_rates(rate: float, depth: int, l_adapt: int, ramp: str) -> list[float]:
    """Drop probability of each of `depth` layers, rising linearly from 0 to `rate`.

    ramp `depth`: one ramp over all layers, wherever they live. ramp `reference`: the official release, where
    the adaptor layers ramp over `l_adapt` layers on their own and the shared ones go by their absolute index.
    """
    whole = [rate * i / max(depth - 1, 1) for i in range(depth)]
    if ramp == "depth":
        return whole
    return [rate * i / max(l_adapt - 1, 1) for i in range(l_adapt)] + whole[l_adapt:]


def draw_keep(rates: list[float], batch: int, generator: torch.Generator) -> Tensor:
    """Stochastic depth of one minibatch: [layers, 2, batch] of 0 and 1, on the CPU.

    Drawn for the GLOBAL batch, so that the same examples drop the same branches on any number of workers.
    """
    drawn = torch.rand(len(rates), 2, batch, generator=generator)
    return (drawn >= torch.tensor(rates)[:, None, None]).float()
