"""Scores of classes, confusion and reliability: exact on examples that can be counted by hand."""

import numpy as np
import pytest
from small import ArrayFeed, fresh, small_config

from polyvit.config import RunConfig
from polyvit.evaluation.detail import task_detail
from polyvit.evaluation.evaluator import merged, totals
from polyvit.evaluation.metrics import MetricState

NAMES = ["ant", "bee", "cat"]


def one_hot(*classes: int) -> np.ndarray:
    return np.eye(3, dtype=np.uint8)[list(classes)]


def config() -> RunConfig:
    return small_config()


def test_one_label_an_example() -> None:
    logits_BK = np.log(np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.55, 0.25, 0.2], [0.05, 0.9, 0.05]]))
    detail = task_detail("word", config().tasks["word"], NAMES, logits_BK, one_hot(0, 0, 1, 1))
    assert detail.confusion is not None
    assert detail.confusion.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    ant, bee, cat = detail.classes
    assert (ant.examples, ant.predicted, ant.precision, ant.recall) == (2, 2, 0.5, 0.5)
    assert bee.average_precision == pytest.approx((1 + 2 / 3) / 2)  # ranks 1 and 3 of 0.9, 0.6, 0.25, 0.1
    assert (cat.examples, cat.predicted) == (0, 0)
    assert (cat.precision, cat.recall, cat.average_precision) == (None, None, None)
    curve = detail.reliability
    assert curve.count.tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 1, 1]  # 0.55, 0.6, 0.8, 0.9
    assert curve.accuracy[[5, 6, 8, 9]].tolist() == [0, 0, 1, 1]
    assert curve.error == pytest.approx((0.55 + 0.6 + 0.2 + 0.1) / 4)


def test_several_labels_an_example() -> None:
    probabilities_BK = np.array([[0.9, 0.6, 0.2], [0.4, 0.7, 0.2]])
    logits_BK = np.log(probabilities_BK / (1 - probabilities_BK))
    labels_BK = np.array([[1, 0, 0], [1, 1, 0]])
    detail = task_detail("sound", config().tasks["sound"], NAMES, logits_BK, labels_BK)
    assert detail.confusion is None
    ant, bee, _ = detail.classes
    assert (ant.examples, ant.predicted, ant.precision, ant.recall) == (2, 1, 1.0, 0.5)
    assert (bee.examples, bee.predicted, bee.precision, bee.average_precision) == (1, 2, 0.5, 1.0)
    assert detail.reliability.count.sum() == 2  # the surest answer of each example: 0.9 and 0.7, both right
    assert detail.reliability.error == pytest.approx((0.1 + 0.3) / 2)


def test_calibration_of_many_classes_is_not_hidden_by_small_noes() -> None:
    """A hundred classes, one label each, a model that is sure of the wrong one: over all probabilities the error
    would be 0.02."""
    task, labels_BK = config().tasks["sound"], np.zeros((4, 100), bool)
    labels_BK[:, 0] = True
    logits_BK = np.full((4, 100), -9.0)
    logits_BK[:, 1] = 3.0
    detail = task_detail("sound", task, [str(k) for k in range(100)], logits_BK, labels_BK)
    assert detail.reliability.error == pytest.approx(1 / (1 + np.exp(-3.0)))


def test_infinitely_sure_answers_are_no_overflow() -> None:
    logits_BK = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    for task in ("word", "sound"):
        detail = task_detail(task, config().tasks[task], NAMES, logits_BK, one_hot(0, 1))
        assert np.isfinite(detail.reliability.error)
        assert detail.classes[0].recall == 1.0


def test_the_worst_are_the_same_in_any_order() -> None:
    logits_BK = np.log(np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.55, 0.25, 0.2], [0.05, 0.9, 0.05]] * 4))
    losses_B, keys = np.array([1.0, 2.0, np.nan, 2.0] * 4), [f"{i:02}" for i in range(16)]
    labels_BK = one_hot(*[0, 0, 1, 1] * 4)
    kept = []
    for order in (np.arange(16), np.random.default_rng(0).permutation(16)):
        shuffled = [keys[i] for i in order]
        task = config().tasks["word"]
        detail = task_detail("word", task, NAMES, logits_BK[order], labels_BK[order], shuffled, losses_B[order])
        kept.append([each.document() for each in detail.worst])
    assert kept[0] == kept[1]
    wanted = ["02", "06", "10", "14", "01", "03", "05", "07", "09", "11", "13", "15"]
    assert [each["key"] for each in kept[0]] == wanted
    first, fifth = kept[0][0], kept[0][4]
    assert (first["loss"], first["true"], first["predicted"]) == (None, ["bee"], ["ant"])
    assert (fifth["loss"], fifth["true"], fifth["predicted"]) == (2.0, ["ant"], ["bee"])


@pytest.mark.usefixtures("one_thread")
def test_kept_scores_change_no_result_and_are_merged_over_shares() -> None:
    small = config()
    model, _, _ = fresh(small)
    minibatches = list(ArrayFeed(small).evaluation())
    plain, _ = merged(small, [totals(model, minibatches, small)])
    shares = [totals(model, minibatches[rank::2], small, keep_scores=True) for rank in range(2)]
    kept, _ = merged(small, shares)
    assert {n: r.keys() for n, r in kept.items()} == {n: r.keys() for n, r in plain.items()}
    state = shares[0][0]["clip"]
    assert isinstance(state, MetricState)
    detail = task_detail(
        "clip", small.tasks["clip"], list("abcd"), np.concatenate(state.scores), np.concatenate(state.labels)
    )
    assert detail.confusion is not None
    assert detail.confusion.sum() == plain["clip"]["examples"]
    assert detail.confusion.trace() / detail.confusion.sum() == pytest.approx(plain["clip"]["top1"])
