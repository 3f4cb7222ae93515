"""Arithmetic of one example: floating-point operations of forward and training, 2 a multiply-add."""

from polyvit.config import Modality, ModelConfig


def forward_flops(config: ModelConfig, modality: Modality, num_classes: int = 0) -> float:
    """One example's forward pass: embedding, every layer's projections, MLP and attention, head.

    A layer of N tokens and width D: 8 N D^2 (q, k, v, out) + 4 N D M (MLP) + 4 N^2 D (attention scores and
    their weighted sum). Norms, biases and GELU are left out (below 1 %).
    """
    patches = config.num_tokens(modality)
    tokens, width = patches + 1, config.width
    layer = 8 * tokens * width**2 + 4 * tokens * width * config.mlp_dim + 4 * tokens**2 * width
    embedding = 2 * patches * config.input(modality).patch_dim * width
    return config.depth * layer + embedding + 2 * width * num_classes


def training_flops(config: ModelConfig, modality: Modality, num_classes: int = 0) -> float:
    """Forward and backward: three times the forward, less the embedding's gradient towards its input."""
    embedding = 2 * config.num_tokens(modality) * config.input(modality).patch_dim * config.width
    return 3 * forward_flops(config, modality, num_classes) - embedding
