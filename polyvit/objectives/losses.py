"""Per-example losses and mixup. Legend: B batch, K classes, N tokens, P patch_dim.

Labels are always [B, K]: one-hot, multi-hot, or mixed. Source: official release (facts.md, section 3).
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def example_losses(
    logits_BK: Tensor, labels_BK: Tensor, kind: Literal["softmax", "sigmoid"], smoothing: float = 0.0
) -> Tensor:
    """Loss of each example, [B] float32.

    softmax: cross-entropy with soft targets. sigmoid: binary cross-entropy summed over classes. Both smooth
    labels as y * (1 - s) + s / K, the reference's form.
    """
    logits_BK, labels_BK = logits_BK.float(), labels_BK.float()
    if smoothing:
        labels_BK = labels_BK * (1.0 - smoothing) + smoothing / labels_BK.shape[-1]
    if kind == "softmax":
        return -(labels_BK * F.log_softmax(logits_BK, dim=-1)).sum(dim=-1)
    return F.binary_cross_entropy_with_logits(logits_BK, labels_BK, reduction="none").sum(dim=-1)


def mixup(x: Tensor, partner: Tensor, weight: float) -> Tensor:
    """weight * x + (1 - weight) * x[partner], along the first axis.

    Patchify is a rearrangement, so mixing tokens equals mixing spectrograms.
    """
    return weight * x + (1.0 - weight) * x[partner]


def neighbours(batch: int) -> Tensor:
    """[batch] partner of each slot: 0 with 1, 2 with 3 ...; the last of an odd batch mixes with itself.

    The official code pairs slot i with B - 1 - i of one device's batch. Batches are in random order, so either
    is a random pairing; neighbours stay on one rank for any number of workers.
    """
    slots = torch.arange(batch)
    return torch.where(slots + 1 - 2 * (slots % 2) < batch, slots + 1 - 2 * (slots % 2), slots)
