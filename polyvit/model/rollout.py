"""Attention rollout: which patches the class token looked at, through all layers.

In: tokens of examples of one modality. Out: a weight for each patch. Source: Abnar & Zuidema 2020,
arXiv:2005.00928, section 3: attention averaged over heads, half of it and half of the residual, multiplied from
the first layer to the last.
Legend: B batch, N patches, P patch_dim, D width, H heads, C width of a head, S = 1 + N with the class token.
"""

import torch
from torch import Tensor

from polyvit.model.encoder import Block
from polyvit.model.polyvit import PolyViT


@torch.no_grad()
def attention_rollout(model: PolyViT, tokens_BNP: Tensor, modality: str) -> Tensor:
    """Weights [B, N] of the patches for the class token, each example's of sum 1.

    tokens_BNP: normalised floats. The layers are those that the modality runs: its adaptors, then shared blocks,
    as often as each runs.
    """
    x_BSD = model.tokenizers[modality](tokens_BNP)
    rollout_BSS = torch.eye(x_BSD.shape[1], device=x_BSD.device).expand(len(x_BSD), -1, -1)
    for block in model.plain_blocks(modality):
        weights_BSS = attention_weights(block, x_BSD)
        rollout_BSS = (weights_BSS @ rollout_BSS + rollout_BSS) / 2
        x_BSD = block(x_BSD)
    patches_BN = rollout_BSS[:, 0, 1:]
    return patches_BN / patches_BN.sum(dim=1, keepdim=True)


def attention_weights(block: Block, x_BSD: Tensor) -> Tensor:
    """Softmax of queries and keys, mean over heads, [B, S, S]: rows sum to 1."""
    batch, tokens, width = x_BSD.shape
    heads = block.attn.num_heads
    qkv = block.attn.qkv(block.norm1(x_BSD)).view(batch, tokens, 3, heads, width // heads)
    q_BHSC, k_BHSC, _ = (part.transpose(1, 2) for part in qkv.unbind(2))
    scores_BHSS = q_BHSC @ k_BHSC.transpose(-1, -2) / (width // heads) ** 0.5
    return scores_BHSS.softmax(dim=-1).mean(dim=1)
