"""Arithmetic of one example: floating-point operations of forward and training, 2 a multiply-add."""

from polyvit.config import Modality, ModelConfig

FORMULA = (
    "forward = depth * (8 N D^2 + 4 N D M + 4 N^2 D) + 2 P E D + 2 D K for N tokens, width D, MLP M, P patches of "
    "E numbers, K classes; training = 3 * forward - 2 P E D"
)
PEAK_BFLOAT16 = {
    "H200": 989e12, "H100": 989e12, "GH200": 989e12, "B200": 2250e12, "A100": 312e12, "A10G": 70e12, "A10": 125e12,
    "L40S": 362e12, "L4": 121e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip
"""Dense bfloat16 FLOP/s of the tensor cores, by a part of the GPU's name; from the makers' data sheets."""


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense FLOP/s of a device, as its maker says; None for a CPU, an unknown device, or another precision."""
    if precision != "bfloat16":
        return None
    return next((peak for part, peak in PEAK_BFLOAT16.items() if part in device_name), None)


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
