"""A schedule that reacts: at each evaluation the tasks' shares of the next interval follow from what was measured.

In: evaluations so far, each task's held-out `loss`. Out: a decision, plain data that a checkpoint keeps:
{"step", "shares", "losses", "scores"}. A decision is a pure function of the evaluations and the decisions before
it, so a run that is killed takes it again. Every rule gives each task a score, the logarithm of a factor by which
its base share (U_j^(1/T)) is multiplied. Scores are first rounded to whole multiples of `SCORE_STEP`, so that
losses that differ in their last digits, as those of other numbers of workers do, nearly always decide the same.
Factors are clipped, and clipped shares sum to 1.

loss_ratio  r_j = L_j / L_j(first evaluation), the inverse training rate; factor (r_j / mean r)^exponent.
            Source: GradNorm (Chen et al. 2018, arXiv:1711.02257), section 3, where it weighs losses.
exp3        Exp3.S on each task's fall in loss a step, rescaled to [-1, 1] by the 20th and 80th percentile of all
            falls so far; factor exp(score). Source: Graves et al. 2017, arXiv:1704.03003, section 2.1 (Auer et al.
            2002). Theirs is a round for each step; ours is one for each interval, in which every task that has
            steps is played, so a task's reward is the mean of its importance-weighted rewards.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyvit.config import AdaptiveConfig

DIGITS = 4
"""Significant digits of losses and shares in a decision."""
SCORE_STEP = 0.1
"""Ours. Where two runs' scores differ by d, they are on two sides of a border with a chance of d / 0.1. Any rule
has borders: parameters of other numbers of workers differ in float sums, and losses with them."""

Decision = dict[str, Any]


@dataclass(frozen=True)
class Adaptive:
    """What an adaptive schedule follows. base: [T] shares before anything was measured, sum 1. total: steps.

    interval: steps between evaluations. seed: of the order inside an interval.
    """

    settings: AdaptiveConfig
    base: np.ndarray
    total: int
    interval: int
    seed: int

    def decide(
        self, tasks: Sequence[str], steps: Mapping[str, int], evaluations: Sequence[Mapping[str, Any]],
        decisions: Sequence[Decision],
    ) -> Decision:  # fmt: skip
        """The shares of the next interval.

        steps: of each task since the evaluation before the last. evaluations: all so far. decisions: those before.
        """
        losses = [_losses(evaluation, tasks) for evaluation in evaluations]
        if self.settings.rule == "loss_ratio":
            scores = _inverse_rates(losses, self.settings.exponent)
        else:
            before = decisions[-1]["scores"] if decisions else dict.fromkeys(tasks, 0.0)
            falls = [decision["falls"] for decision in decisions]
            scores, fall = _exp3(losses, np.array([before[task] for task in tasks]), steps, falls, self.settings)
        factors = np.exp(SCORE_STEP * np.round(scores / SCORE_STEP))
        shares = clipped_shares(self.base, factors, self.settings.min_factor, self.settings.max_factor)
        decision: Decision = {
            "step": evaluations[-1]["step"],
            "shares": {task: _rounded(share) for task, share in zip(tasks, shares, strict=True)},
            "losses": {task: None if math.isnan(x) else x for task, x in zip(tasks, losses[-1], strict=True)},
            "scores": {task: _rounded(score) for task, score in zip(tasks, scores, strict=True)},
        }
        return decision if self.settings.rule == "loss_ratio" else {**decision, "falls": fall}

    def order(self, first: int, owed: np.ndarray) -> np.ndarray:
        """[n] task indices of steps first .. first + n - 1, in random order. owed: [T] steps due, sum n."""
        counts = whole_counts(owed)
        rng = np.random.Generator(np.random.Philox([self.seed, first]))
        return rng.permutation(np.repeat(np.arange(len(counts)), counts))


def clipped_shares(base: np.ndarray, factors: np.ndarray, low: float, high: float) -> np.ndarray:
    """[T] base x factors, scaled to sum to 1 with each between low x base and high x base; low < 1 < high."""
    raw, least, most = base * factors, base * low, base * high
    small, large = -700.0, 700.0  # of the logarithm of the common scale
    for _ in range(100):
        middle = (small + large) / 2
        too_much = np.clip(raw * math.exp(middle), least, most).sum() > 1
        small, large = (small, middle) if too_much else (middle, large)
    return np.clip(raw * math.exp(small), least, most)


def whole_counts(owed: np.ndarray) -> np.ndarray:
    """[T] whole numbers, none negative, next to `owed` and of its sum: largest remainders first."""
    total = round(owed.sum())
    counts = np.floor(np.maximum(owed, 0)).astype(int)
    while counts.sum() != total:
        if counts.sum() < total:
            counts[np.argmax(owed - counts)] += 1
        else:
            counts[np.argmin(np.where(counts > 0, owed - counts, np.inf))] -= 1
    return counts


def _losses(evaluation: Mapping[str, Any], tasks: Sequence[str]) -> np.ndarray:
    """[T] rounded; NaN where a task has no finite loss."""
    values = [evaluation["tasks"].get(task, {}).get("loss") for task in tasks]
    return np.array([_rounded(x) if x is not None and math.isfinite(x) else math.nan for x in values])


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _inverse_rates(losses: Sequence[np.ndarray], exponent: float) -> np.ndarray:
    """[T] logarithms of factors; 0 where a rate is not known."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = losses[-1] / losses[0]
        usable = np.isfinite(rates) & (rates > 0)
        return (
            np.where(usable, exponent * np.log(rates / rates[usable].mean()), 0.0) if usable.any() else 0 * rates
        )


def _exp3(
    losses: Sequence[np.ndarray], before: np.ndarray, steps: Mapping[str, int],
    falls: Sequence[Sequence[float]], settings: AdaptiveConfig,
) -> tuple[np.ndarray, list[float]]:  # fmt: skip
    """[T] scores (log-weights of mean 0), and the falls that were new."""
    if len(losses) < 2:
        return before, []
    played = np.array(list(steps.values()))
    fall = (losses[-2] - losses[-1]) / np.maximum(1, played)
    seen = np.isfinite(fall) & (played > 0)
    new = [_rounded(x) for x in fall[seen]]
    history = np.array([x for each in [*falls, new] for x in each])
    low, high = np.quantile(history, [0.2, 0.8]) if len(history) else (0.0, 0.0)
    spread = high - low
    reward = np.where(seen, np.clip(2 * (fall - low) / spread - 1, -1, 1), 0.0) if spread > 0 else 0.0
    weights = np.exp(before + settings.learning_rate * reward)
    count, forgotten = len(before), 1 / (len(losses) - 1)  # alpha_t = 1 / t
    if count > 1 and len(losses) > 2:
        weights = (1 - forgotten) * weights + forgotten * (weights.sum() - weights) / (count - 1)
    scores = np.log(weights)
    return scores - scores.mean(), new
