"""Evaluation metrics, gathered example by example and merged exactly over ranks.

Legend: B batch, K classes. Examples whose label vector is all zero do not count (official release).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from polyvit.errors import UserError

TOP_K = 5


@dataclass
class MetricState:
    """Running totals of one task on one rank; `merge` adds another rank's.

    Scores and labels are kept only where mean average precision, or a report, needs them all.
    map: whether `results` has the mean average precision of kept scores. keys, losses: of each kept example, where
    `add` is given keys.
    """

    keep_scores: bool
    map: bool = True
    examples: int = 0
    loss: float = 0.0
    top1: int = 0
    top5: int = 0
    scores: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    losses: list[np.ndarray] = field(default_factory=list)

    def update(self, logits_BK: np.ndarray, labels_BK: np.ndarray, losses_B: np.ndarray) -> None:
        """Add a minibatch: float logits, 0/1 labels, per-example losses."""
        best = np.argsort(-logits_BK, axis=1, kind="stable")[:, :TOP_K]
        hits = np.take_along_axis(labels_BK, best, axis=1) > 0
        self.add(labels_BK, np.stack([losses_B, hits[:, 0], hits.any(axis=1)], axis=1), logits_BK)

    def add(
        self, labels_BK: np.ndarray, measured_B3: np.ndarray, logits_BK: np.ndarray | None,
        keys: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Add a minibatch that was measured elsewhere (see `DeviceTotals`).

        measured_B3: each example's loss, and 1 where the best class is right, and where one of the best TOP_K is.
        logits_BK: float, wanted where scores are kept. keys: the examples', to keep them and their losses too.
        """
        counted = labels_BK.any(axis=1)
        if not counted.any():
            return
        loss, top1, top5 = measured_B3[counted].sum(axis=0, dtype=np.float64)
        self.examples += int(counted.sum())
        self.loss += float(loss)
        self.top1 += int(top1)
        self.top5 += int(top5)
        if self.keep_scores:
            assert logits_BK is not None
            self.scores.append(logits_BK[counted].astype(np.float32))
            self.labels.append(labels_BK[counted].astype(bool))
        if keys:
            self.keys += [keys[i] for i in np.flatnonzero(counted).tolist()]
            self.losses.append(measured_B3[counted, 0])

    def merge(self, other: "MetricState") -> None:
        """Add the totals of another rank."""
        self.examples += other.examples
        self.loss += other.loss
        self.top1 += other.top1
        self.top5 += other.top5
        self.scores += other.scores
        self.labels += other.labels
        self.keys += other.keys
        self.losses += other.losses

    def results(self) -> dict[str, float]:
        """`loss`, and as fractions `top1`, `top5` and, of kept scores, `map`; nothing where no example counted."""
        if not self.examples:
            return {}
        n = self.examples
        results = {"loss": self.loss / n, "top1": self.top1 / n, "top5": self.top5 / n}
        if self.keep_scores and self.map:
            results["map"] = mean_average_precision(np.concatenate(self.scores), np.concatenate(self.labels))
        return results


def mean_average_precision(scores_BK: np.ndarray, labels_BK: np.ndarray) -> float:
    """scores [B, K] float, labels [B, K] 0/1 -> the mean `average_precision` of the classes that occur."""
    occurring = np.flatnonzero(labels_BK.any(axis=0))
    return float(np.mean([average_precision(scores_BK[:, k], labels_BK[:, k]) for k in occurring]))


def average_precision(scores_B: np.ndarray, labels_B: np.ndarray) -> float:
    """scores [B] float, labels [B] 0/1 -> sum over thresholds of (recall - recall before) * precision.

    Equal scores are one threshold.
    As scikit-learn's `average_precision_score`, whose import alone takes seconds. Needs one positive label. Raises
    UserError for scores that are not finite.
    """
    if not np.isfinite(scores_B).all():
        raise UserError(
            "mean average precision: the model's scores of some evaluation examples are not finite, so it has "
            "diverged; take an earlier checkpoint, or train again with a lower optim.lr"
        )
    order = np.argsort(-scores_B, kind="stable")
    scores_B, hits_B = scores_B[order], np.cumsum(labels_B[order] > 0)
    last_B = np.append(np.flatnonzero(np.diff(scores_B)), len(scores_B) - 1)
    hits_T = hits_B[last_B]
    return float(np.sum(np.diff(hits_T, prepend=0) * hits_T / (last_B + 1)) / hits_T[-1])


def chance_level(metric: str, shares_K: np.ndarray, classes_present: int) -> float:
    """The score of a guess: 1 / classes present for top1, the mean share of the occurring labels for map.

    shares_K: float, the share of evaluation examples that carry each label.
    """
    if metric == "top1":
        return 1.0 / max(1, classes_present)
    return float(shares_K[shares_K > 0].mean()) if (shares_K > 0).any() else 0.0
