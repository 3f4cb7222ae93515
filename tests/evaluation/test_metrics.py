"""Metrics against scikit-learn; merging ranks equals one pass; what does not count."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, top_k_accuracy_score
from small import small_config

from polyvit.errors import UserError
from polyvit.evaluation.device_totals import DeviceTotals
from polyvit.evaluation.metrics import MetricState, average_precision, chance_level, mean_average_precision
from polyvit.objectives import example_losses


@pytest.fixture
def single_label() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """logits [60, 9], one-hot labels, losses."""
    rng = np.random.default_rng(0)
    targets = np.arange(60) % 9
    logits = rng.normal(size=(60, 9)).astype(np.float32)
    logits[np.arange(60), targets] += 1.0
    return logits, np.eye(9, dtype=np.uint8)[targets], rng.random(60).astype(np.float32)


@pytest.fixture
def multi_label() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """logits [50, 6], multi-hot labels with a class that never occurs and rows with no label, losses."""
    rng = np.random.default_rng(1)
    labels = (rng.random((50, 6)) < 0.3).astype(np.uint8)
    labels[:, 4] = 0
    labels[::10] = 0
    return rng.normal(size=(50, 6)).astype(np.float32), labels, np.ones(50, dtype=np.float32)


def test_top1_and_top5_are_scikit_learns(single_label: tuple[np.ndarray, ...]) -> None:
    logits, labels, losses = single_label
    state = MetricState(keep_scores=False)
    state.update(logits, labels, losses)
    targets = labels.argmax(axis=1)
    results = state.results()
    assert results["top1"] == pytest.approx(top_k_accuracy_score(targets, logits, k=1))
    assert results["top5"] == pytest.approx(top_k_accuracy_score(targets, logits, k=5))
    assert results["top1"] < results["top5"] < 1
    assert results["loss"] == pytest.approx(losses.mean())
    assert "map" not in results
    assert state.scores == []


def test_top1_of_several_labels_is_a_hit_on_any() -> None:
    state = MetricState(keep_scores=False)
    logits = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]], dtype=np.float32)
    state.update(logits, np.array([[1, 1, 0], [1, 1, 0]], dtype=np.uint8), np.zeros(2, dtype=np.float32))
    assert state.top1 == 1
    assert state.top5 == 2


def test_map_is_scikit_learns_over_occurring_classes(multi_label: tuple[np.ndarray, ...]) -> None:
    logits, labels, losses = multi_label
    state = MetricState(keep_scores=True)
    state.update(logits, labels, losses)
    counted = labels.any(axis=1)
    expected = np.mean([average_precision_score(labels[counted, k], logits[counted, k]) for k in (0, 1, 2, 3, 5)])
    assert state.results()["map"] == pytest.approx(expected)
    assert 0.2 < expected < 0.9


@pytest.mark.parametrize("levels", [1, 2, 5, 10_000])
def test_average_precision_with_equal_scores_is_scikit_learns(levels: int) -> None:
    rng = np.random.default_rng(levels)
    for size in (1, 2, 7, 300):
        scores = rng.integers(0, levels, size).astype(np.float32) - levels / 2
        labels = rng.random(size) < 0.3
        labels[rng.integers(size)] = True
        assert average_precision(scores, labels) == pytest.approx(
            average_precision_score(labels, scores), abs=1e-12
        )


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_an_error(score: float) -> None:
    with pytest.raises(UserError, match="diverged"):
        mean_average_precision(np.array([[1.0], [score]]), np.array([[True], [True]]))


def test_map_by_hand() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    labels = np.array([[1, 0], [0, 0], [1, 1]], dtype=bool)
    # class 0: precision 1/1 at rank 1 and 2/3 at rank 3; class 1: 1.
    assert mean_average_precision(scores, labels) == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)


def test_examples_without_a_label_do_not_count(multi_label: tuple[np.ndarray, ...]) -> None:
    logits, labels, losses = multi_label
    state = MetricState(keep_scores=True)
    losses[::10] = 1e6
    state.update(logits, labels, losses)
    counted = labels.any(axis=1)
    assert state.examples == counted.sum() < 50
    assert state.results()["loss"] == pytest.approx(1.0)
    assert sum(map(len, state.scores)) == counted.sum()


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_merging_parts_equals_one_pass(multi_label: tuple[np.ndarray, ...], parts: int) -> None:
    logits, labels, losses = multi_label
    losses = np.linspace(0, 1, 50, dtype=np.float32)
    whole = MetricState(keep_scores=True)
    whole.update(logits, labels, losses)
    states = [MetricState(keep_scores=True) for _ in range(parts)]
    for i, state in enumerate(states):
        state.update(logits[i::parts], labels[i::parts], losses[i::parts])
    for state in states[1:]:
        states[0].merge(state)
    assert (states[0].examples, states[0].top1, states[0].top5) == (whole.examples, whole.top1, whole.top5)
    assert states[0].results() == pytest.approx(whole.results())


@pytest.mark.parametrize("keep", [False, True])
def test_what_a_device_measures_is_what_the_host_measures(
    multi_label: tuple[np.ndarray, ...], keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal scores rank by class, examples without a label do not count, NaN is last; read after two of them."""
    monkeypatch.setattr("polyvit.evaluation.device_totals.READ_EVERY", 2)
    logits, labels, _ = multi_label
    logits = np.round(logits)
    logits[3, 2] = np.nan
    task = small_config().tasks["sound"]
    there, here = MetricState(keep_scores=keep), MetricState(keep_scores=keep)
    totals, read = DeviceTotals(task, there), []
    for start in range(0, 50, 10):
        part, marks = torch.from_numpy(logits[start : start + 10]), labels[start : start + 10]
        totals.add(part, marks, torch.from_numpy(marks))
        read.append(there.examples)
        losses = example_losses(part, torch.from_numpy(marks), task.loss, margin=task.margin)
        here.update(part.numpy(), marks, losses.numpy())
    totals.read()
    assert read == [labels[:seen].any(axis=1).sum() for seen in (0, 20, 20, 40, 40)]
    assert (there.examples, there.top1, there.top5) == (here.examples, here.top1, here.top5)
    assert 0 < there.top1 < there.top5
    assert there.loss == pytest.approx(here.loss, rel=1e-12, nan_ok=True)
    for ours, theirs in zip(there.scores, here.scores, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_nothing_evaluated_gives_no_figures() -> None:
    """A value of 0.0 would read as a measurement."""
    for keep in (False, True):
        state = MetricState(keep_scores=keep)
        state.update(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.uint8), np.zeros(2, np.float32))
        assert state.examples == 0
        assert state.results() == {}


def test_chance_level() -> None:
    shares = np.array([0.5, 0.25, 0.0, 0.25])
    assert chance_level("top1", shares, 4) == 0.25
    assert chance_level("map", shares, 4) == pytest.approx(1 / 3)
    assert chance_level("map", np.zeros(3), 0) == 0.0
