"""Pre-norm transformer blocks with stochastic depth.

Legend: B batch, N tokens (with the class token), D width, H heads, C width of one head, M mlp_dim.
Source of the form: facts from the official release (pre-norm, biases everywhere, no dropout).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvit.config import ModelConfig


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
