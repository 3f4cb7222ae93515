"""Per-example losses and mixup. Legend: B batch, K classes, N tokens, P patch_dim.

Labels are always [B, K]: one-hot, multi-hot, or mixed. Source: official release (facts.md, section 3).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvit.config import Loss, TaskConfig


def task_losses(logits: Tensor, labels_BK: Tensor, task: TaskConfig) -> Tensor:
    """Loss of each example, [B] float32, of a task's answers: [B, K], or A kinds of answer for each clip,
    [B, A, S, K]: the sum over kinds of the mean over clips, every clip with its example's label."""
    rest = task.loss, task.label_smoothing, task.margin
    if logits.ndim == 2:
        return example_losses(logits, labels_BK, *rest)
    answers = math.prod(logits.shape[1:-1])
    losses = example_losses(logits.flatten(0, -2), labels_BK.repeat_interleave(answers, 0), *rest)
    return losses.view(logits.shape[:-1]).mean(-1).sum(-1)


def one_answer(logits: Tensor, loss: Loss) -> Tensor:
    """A task's answers, [B, K] or [B, A, S, K], to one for each example, [B, K]: the logits of the mean
    probability over kinds of answer and clips, as AVBert's release sums softmax outputs."""
    if logits.ndim == 2:
        return logits
    return mean_probability(logits.flatten(1, -2), loss)


def mean_probability(logits_BVK: Tensor, loss: Loss) -> Tensor:
    """[B, V, K] -> [B, K], the logits of the mean probability over V (sigmoid, or softmax for other losses); taken
    in logarithms, where nothing saturates."""
    if loss != "sigmoid":
        return torch.logsumexp(F.log_softmax(logits_BVK, dim=-1), dim=1) - math.log(logits_BVK.shape[1])
    # log p - log (1 - p); log V stands in both.
    return torch.logsumexp(F.logsigmoid(logits_BVK), dim=1) - torch.logsumexp(F.logsigmoid(-logits_BVK), dim=1)


def example_losses(
    logits_BK: Tensor, labels_BK: Tensor, kind: Loss, smoothing: float = 0.0, margin: float = 0.1
) -> Tensor:
    """Loss of each example, [B] float32.

    softmax: cross-entropy with soft targets. sigmoid: binary cross-entropy summed over classes. Both smooth
    labels as y * (1 - s) + s / K, the reference's form. multi_margin: sum over the other classes of
    max(0, margin - right + other), divided by K; of several labels the mean.
    """
    logits_BK, labels_BK = logits_BK.float(), labels_BK.float()
    if kind == "multi_margin":
        right_BK1, other_B1K = logits_BK[:, :, None], logits_BK[:, None]
        hinge = (margin - right_BK1 + other_B1K).clamp(min=0.0).sum(-1) - margin
        return (hinge * labels_BK).sum(-1) / labels_BK.sum(-1).clamp(min=1.0) / logits_BK.shape[-1]
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


def neighbours(batch: int, device: torch.device | None = None) -> Tensor:
    """[batch] partner of each slot: 0 with 1, 2 with 3 ...; the last of an odd batch mixes with itself.

    The official code pairs slot i with B - 1 - i of one device's batch. Batches are in random order, so either
    is a random pairing; neighbours stay on one rank for any number of workers.
    """
    slots = torch.arange(batch, device=device)
    return torch.where(slots + 1 - 2 * (slots % 2) < batch, slots + 1 - 2 * (slots % 2), slots)
