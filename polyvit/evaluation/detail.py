"""What lies behind a task's number: each class's scores, which classes are taken for which, how sure the model is.

In: logits and labels of every evaluation example, as `MetricState` keeps them. Out: arrays and rows.
Legend: B examples, K classes, R bins of confidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyvit.config import TaskConfig
from polyvit.evaluation.metrics import average_precision

BINS = 10
WORST = 12
"""Examples with the highest losses that are kept of each task."""
ANSWERS = 3
"""Most predicted classes that are named of one example with several labels, the surest first."""


@dataclass(frozen=True)
class ClassScore:
    """One class. precision, recall: None where nothing was predicted as it, or no example is of it.

    Of a task with several labels an example a class is predicted from probability 0.5 on, and `average_precision`
    is what the mean over classes is made of.
    """

    name: str
    examples: int
    predicted: int
    precision: float | None
    recall: float | None
    average_precision: float | None


@dataclass(frozen=True)
class Reliability:
    """confidence, accuracy: float64 [R], means of a bin, NaN in an empty one; count: int64 [R].

    error: the expected calibration error, 0 to 1 (Guo et al., 2017: the mean gap, weighted by count).
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray
    error: float


@dataclass(frozen=True)
class WorstExample:
    """One of the examples with the highest losses.

    true, predicted: names of classes; several in a task with several labels an example, where `predicted` has
    those of probability 0.5 or more, or none.

    path: of its file, relative to the task's data; "" until it is looked up. panel: what the model saw, uint8
    [H, W, 3] or a spectrogram, float [T, F]; None where it cannot be drawn.
    """

    key: str
    loss: float
    true: tuple[str, ...]
    predicted: tuple[str, ...]
    path: str = ""
    panel: np.ndarray | None = None

    def document(self) -> dict[str, Any]:
        """All but the panel, as JSON; a loss that is not finite is None."""
        loss = self.loss if np.isfinite(self.loss) else None
        names = {"true": list(self.true), "predicted": list(self.predicted)}
        return {"key": self.key, "path": self.path, "loss": loss, **names}


@dataclass(frozen=True)
class TaskDetail:
    """classes: a row each. confusion: int64 [K, K], true class by row, predicted by column; None where an example
    has several labels. reliability: of each example's surest answer, its highest probability; with several labels
    it is right where its class is one of them. (Over all classes nearly every answer is a small "no", and the
    error near 0 whatever the model.) worst: the WORST examples of the highest losses, the highest first.
    """

    task: str
    classes: tuple[ClassScore, ...]
    confusion: np.ndarray | None
    reliability: Reliability
    worst: tuple[WorstExample, ...] = ()


def task_detail(
    name: str, task: TaskConfig, names: Sequence[str], logits_BK: np.ndarray, labels_BK: np.ndarray,
    keys: Sequence[str] = (), losses_B: np.ndarray | None = None,
) -> TaskDetail:  # fmt: skip
    """The detail of one task. names: of its classes. logits_BK: float. labels_BK: 0/1, one or more in each row.

    keys, losses_B: of each example, for `worst`.
    """
    logits_BK, labels_BK = logits_BK.astype(np.float64), labels_BK.astype(bool)
    several = task.loss == "sigmoid"
    best_B = logits_BK.argmax(axis=1)
    if several:
        probabilities_BK = 0.5 * (1 + np.tanh(0.5 * logits_BK))  # the sigmoid, which does not overflow
        predicted_BK = probabilities_BK >= 0.5
    else:
        exponentials_BK = np.exp(logits_BK - logits_BK.max(axis=1, keepdims=True))
        probabilities_BK = exponentials_BK / exponentials_BK.sum(axis=1, keepdims=True)
        predicted_BK = np.zeros_like(labels_BK)
        predicted_BK[np.arange(len(best_B)), best_B] = True
    reliability = _reliability(probabilities_BK.max(axis=1), labels_BK[np.arange(len(best_B)), best_B])
    right_K = (predicted_BK & labels_BK).sum(axis=0)
    of_class_K, as_class_K = labels_BK.sum(axis=0), predicted_BK.sum(axis=0)
    classes = tuple(
        ClassScore(
            names[k], int(of_class_K[k]), int(as_class_K[k]),
            float(right_K[k] / as_class_K[k]) if as_class_K[k] else None,
            float(right_K[k] / of_class_K[k]) if of_class_K[k] else None,
            average_precision(logits_BK[:, k], labels_BK[:, k]) if of_class_K[k] else None,
        )
        for k in range(len(names))
    )  # fmt: skip
    confusion = None
    if not several:
        confusion = np.zeros((len(names), len(names)), np.int64)
        np.add.at(confusion, (labels_BK.argmax(axis=1), predicted_BK.argmax(axis=1)), 1)
    worst = () if losses_B is None else _worst(keys, losses_B, names, labels_BK, probabilities_BK, several)
    return TaskDetail(name, classes, confusion, reliability, worst)


def _worst(
    keys: Sequence[str], losses_B: np.ndarray, names: Sequence[str], labels_BK: np.ndarray,
    probabilities_BK: np.ndarray, several: bool,
) -> tuple[WorstExample, ...]:  # fmt: skip
    """Equal losses go by their keys: the choice is the same however the examples were shared out."""
    heights_B = np.nan_to_num(losses_B.astype(np.float64), nan=np.inf, posinf=np.inf)
    chosen = sorted(range(len(keys)), key=lambda i: (-heights_B[i], keys[i]))[:WORST]

    def predicted(i: int) -> tuple[str, ...]:
        surest = np.argsort(-probabilities_BK[i], kind="stable")[: ANSWERS if several else 1]
        return tuple(names[k] for k in surest if not several or probabilities_BK[i, k] >= 0.5)

    def true(i: int) -> tuple[str, ...]:
        return tuple(names[k] for k in np.flatnonzero(labels_BK[i]).tolist())

    return tuple(WorstExample(keys[i], float(losses_B[i]), true(i), predicted(i)) for i in chosen)


def _reliability(confidence: np.ndarray, right: np.ndarray) -> Reliability:
    """confidence: float [n], 0 to 1. right: bool [n]."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = np.bincount(bins, confidence, BINS) / count
        accuracy = np.bincount(bins, right.astype(float), BINS) / count
    gap = np.abs(np.nan_to_num(means - accuracy)) @ count / max(1, count.sum())
    return Reliability(means, accuracy, count, float(gap))
