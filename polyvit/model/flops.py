"""Arithmetic of one example: floating-point operations of forward and training, 2 a multiply-add."""

from functools import cache

import torch

from polyvit.config import AVBertConfig, Modality, ModelConfig
from polyvit.model.avbert import AVBert

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


def forward_flops(config: ModelConfig | AVBertConfig, modality: Modality, num_classes: int = 0) -> float:
    """One example's forward pass: embedding, every layer's projections, MLP and attention, head.

    A layer of N tokens and width D: 8 N D^2 (q, k, v, out) + 4 N D M (MLP) + 4 N^2 D (attention scores and
    their weighted sum). Norms, biases and GELU are left out (below 1 %).
    """
    if isinstance(config, AVBertConfig):
        return avbert_flops(config) + 4 * config.width * num_classes
    patches = config.num_tokens(modality)
    tokens, width, wide = patches + 1, config.width, config.mlp_dim
    attention = 4 * tokens**2 * width
    layer = 8 * tokens * width**2 + 4 * tokens * width * wide + attention
    shared = layer
    if config.sharing.modalities == "low_rank":
        # A map of N to M numbers is two, N to O to M: 4 of D to D, and two of the MLP.
        shared = 2 * tokens * config.sharing.rank * (8 * width + 2 * (width + wide)) + attention
    embedding = 2 * patches * config.input(modality).patch_dim * width
    blocks = config.l_adapt * layer + (config.depth - config.l_adapt) * shared
    return blocks + embedding + 2 * width * num_classes


def avbert_flops(config: AVBertConfig) -> float:
    """One sequence's forward pass through CNNs and transformers: what torch's counter finds, unrun."""
    return _avbert_flops(config.model_dump_json())


@cache
def _avbert_flops(document: str) -> float:
    from torch.utils.flop_counter import FlopCounterMode  # a tenth of a second, for this model alone

    config = AVBertConfig.model_validate_json(document)
    with torch.device("meta"):
        model = AVBert(config, {}).eval()
        inputs = {name: torch.empty(1, *spec.shape) for name, spec in config.audiovisual.arrays.items()}
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model.forward_features(inputs, "audiovisual")
    return float(counted.get_total_flops())


def training_flops(config: ModelConfig | AVBertConfig, modality: Modality, num_classes: int = 0) -> float:
    """Forward and backward: three times the forward, less the embedding's gradient towards its input."""
    if isinstance(config, AVBertConfig):
        return 3 * forward_flops(config, modality, num_classes)  # the stems' gradients towards pixels: below 3 %
    embedding = 2 * config.num_tokens(modality) * config.input(modality).patch_dim * config.width
    return 3 * forward_flops(config, modality, num_classes) - embedding
