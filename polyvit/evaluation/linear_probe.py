"""Linear probe: features of a frozen encoder -> a new linear head, and what that head scores.

In: `Features` of a task's train and evaluation split. Out: a `ProbeResult`. Plain PyTorch, deterministic from the
seed. Legend: B examples, D width, K classes, L learning rates.

The protocol. The encoder is frozen; a feature is the class token after the final norm, of evaluation views (a mean
over them where the task has several: for a linear head that is the mean of the logits). The head is linear, starts
at zero, and is trained by the task's own loss with SGD, momentum 0.9, a cosine to 0 and no weight decay. The
learning rate is the one that scores best, by the task's own metric, on a carve-out of the train split; then the
head is fitted again on the whole train split. The evaluation split is scored once, by that head.

The paper does not give its probe settings and neither does the release: momentum and cosine follow its
co-training, every other number here is ours.

Features are standardised: each dimension minus its mean over the fitted examples, over its deviation. Encoders
differ by orders of magnitude in how their dimensions vary, and without it one grid of learning rates could not
serve all of them. The head stays linear in the features (MAE's probe does the same by a batch norm without affine
parameters), and is returned for the features as they are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyvit.config import TaskConfig
from polyvit.data.index import key_fraction
from polyvit.errors import UserError
from polyvit.evaluation.features import Features
from polyvit.evaluation.metrics import MetricState, chance_level
from polyvit.objectives import example_losses

LRS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Learning rates tried (ours). On standardised features of width 1024 the lowest is stable whatever they are."""
EPOCHS = 100
"""Passes over the train split, ours."""
_SCORED_AT_ONCE = 4096
_CONSTANT = 1e-5
"""Dimensions that vary less than this over the train split are left out: dividing by it amplifies noise."""


@dataclass(frozen=True)
class ProbeSettings:
    """How heads are fitted. All numbers but the momentum are ours."""

    lrs: tuple[float, ...] = LRS
    epochs: int = EPOCHS
    batch: int = 128
    momentum: float = 0.9
    held_out: float = 0.2
    """Share of the train split on which the learning rate is chosen."""
    seed: int = 42


@dataclass(frozen=True)
class Heads:
    """Linear heads side by side: logits = features @ weight + bias. weight [L, D, K], bias [L, 1, K]."""

    weight: Tensor
    bias: Tensor

    def logits(self, features_BD: Tensor) -> Tensor:
        """features [B, D] float32 -> logits [L, B, K]."""
        return features_BD @ self.weight + self.bias


@dataclass(frozen=True)
class ProbeResult:
    """One task's probe. `scores`: of the task's metric and `loss`, `top1`, `top5`, on the evaluation split.

    tried: {lr: metric on the carve-out, None where the loss was not finite}; empty for a grid of one.
    """

    metric: str
    value: float | None
    lr: float
    chance: float
    train_examples: int
    eval_examples: int
    scores: dict[str, float]
    tried: dict[float, float | None]
    head: Heads


def probe(
    task: TaskConfig, train: Features, held: Features, settings: ProbeSettings, device: str = "cpu"
) -> ProbeResult:
    """Fit a head on `train` and score it on `held`.

    task: its loss and metric. train, held: features of the train and of the evaluation split. settings: how heads
    are fitted. device: where. Raises UserError where no head can be fitted or chosen.
    """
    labelled = np.flatnonzero(train.labels.any(axis=1))  # as in metrics, no label is not an answer
    train = train.rows(labelled)
    if len(train) < 2:
        raise UserError(f"a probe needs at least 2 labelled train examples, this split has {len(train)}")
    lr, tried = choose_lr(task, train, settings, device)
    head = fit_heads(task, train, [lr], settings, device)
    (scores,), counted = _scores(task, head, held, device)
    shares = held.labels[held.labels.any(axis=1)].mean(axis=0) if counted else np.zeros(task.num_classes)
    present = int(train.labels.any(axis=0).sum())
    return ProbeResult(
        metric=task.metric,
        value=scores.get(task.metric),
        lr=lr,
        chance=chance_level(task.metric, shares, present),
        train_examples=len(train),
        eval_examples=counted,
        scores=scores,
        tried=tried,
        head=head,
    )


def choose_lr(
    task: TaskConfig, train: Features, settings: ProbeSettings, device: str = "cpu"
) -> tuple[float, dict[float, float | None]]:
    """The best learning rate on a carve-out of `train`, and the metric of each. Ties: the lower loss, then rate.

    Raises UserError where none gives a finite loss.
    """
    lrs = sorted(set(settings.lrs))
    if len(lrs) == 1:
        return lrs[0], {}
    fitted, held = carve_out(train.keys, settings.held_out)
    heads = fit_heads(task, train.rows(fitted), lrs, settings, device)
    results, _ = _scores(task, heads, train.rows(held), device)
    tried = {lr: scores.get(task.metric) for lr, scores in zip(lrs, results, strict=True)}
    ranked = [
        (scores[task.metric], -scores["loss"], -lr) for lr, scores in zip(lrs, results, strict=True) if scores
    ]
    if not ranked:
        raise UserError(
            f"no learning rate of {', '.join(f'{lr:g}' for lr in lrs)} gives a finite loss; try lower ones"
        )
    return -max(ranked)[2], tried


def carve_out(keys: Sequence[str], share: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions to fit on and positions held out: the `share` of the lowest key hashes, at least one of each.

    Salted, so that it is independent of the carve-outs that layouts make of the same keys.
    """
    ranked = np.array(sorted(range(len(keys)), key=lambda i: key_fraction(f"probe\x00{keys[i]}")))
    count = min(len(keys) - 1, max(1, round(share * len(keys))))
    return np.sort(ranked[count:]), np.sort(ranked[:count])


def fit_heads(
    task: TaskConfig, train: Features, lrs: Sequence[float], settings: ProbeSettings, device: str = "cpu"
) -> Heads:
    """One head for each learning rate, trained side by side on the same minibatches.

    task: its loss. train: features to fit on. lrs: L learning rates. settings: epochs, batch, momentum, seed.
    device: where.
    """
    features_BD = torch.from_numpy(train.features).to(device)
    labels_BK = torch.from_numpy(train.labels).to(device)
    mean_D, scale_D = _standardisation(features_BD)
    features_BD = (features_BD - mean_D) * scale_D
    count, (width, classes) = len(lrs), (features_BD.shape[1], labels_BK.shape[1])
    parameters = [
        torch.zeros(count, width, classes, device=device, requires_grad=True),
        torch.zeros(count, 1, classes, device=device, requires_grad=True),
    ]
    momenta = [torch.zeros_like(p) for p in parameters]
    rates_L11 = torch.tensor(lrs, dtype=torch.float32, device=device).view(-1, 1, 1)
    generator = torch.Generator().manual_seed(settings.seed)
    steps = settings.epochs * math.ceil(len(train) / settings.batch)
    step = 0
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(train), generator=generator).to(device).split(settings.batch):
            logits_LBK = Heads(*parameters).logits(features_BD[rows])
            labels_LBK = labels_BK[rows].expand(count, -1, -1)
            losses = example_losses(logits_LBK.flatten(0, 1), labels_LBK.flatten(0, 1), task.loss)
            gradients = torch.autograd.grad(losses.sum() / len(rows), parameters)
            decay = 0.5 * (1.0 + math.cos(math.pi * step / steps))
            _update(parameters, momenta, gradients, rates_L11 * decay, settings.momentum)
            step += 1
    weight_LDK, bias_L1K = (p.detach() for p in parameters)
    weight_LDK = weight_LDK * scale_D[:, None]
    return Heads(weight_LDK, bias_L1K - mean_D[None] @ weight_LDK)


@torch.no_grad()
def _update(
    parameters: list[Tensor], momenta: list[Tensor], gradients: Sequence[Tensor], rates: Tensor, momentum: float
) -> None:
    for parameter, average, gradient in zip(parameters, momenta, gradients, strict=True):
        average.mul_(momentum).add_(gradient)
        parameter.sub_(rates * average)


def _standardisation(features_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and 1 / deviation of each dimension; 0 for one that is constant."""
    deviation_D, mean_D = torch.std_mean(features_BD.double(), dim=0, correction=0)
    scale_D = torch.where(deviation_D > _CONSTANT, 1.0 / deviation_D.clamp_min(_CONSTANT), 0.0)
    return mean_D.float(), scale_D.float()


@torch.no_grad()
def _scores(task: TaskConfig, heads: Heads, held: Features, device: str) -> tuple[list[dict[str, Any]], int]:
    """Of each head the results on `held`, none where its loss is not finite; and how many examples counted."""
    results = []
    for weight_DK, bias_1K in zip(heads.weight, heads.bias, strict=True):
        state = MetricState(task.metric == "map")
        for start in range(0, len(held), _SCORED_AT_ONCE):
            features_BD = torch.from_numpy(held.features[start : start + _SCORED_AT_ONCE]).to(device)
            labels_BK = held.labels[start : start + _SCORED_AT_ONCE]
            logits_BK = (features_BD @ weight_DK + bias_1K).cpu()
            losses_B = example_losses(logits_BK, torch.from_numpy(labels_BK), task.loss)
            state.update(logits_BK.numpy(), labels_BK, losses_B.numpy())
        results.append(state.results() if math.isfinite(state.loss) else {})
    return results, int(held.labels.any(axis=1).sum())
