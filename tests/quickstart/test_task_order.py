"""`polyvit.task_schedule`: what a schedule does, without a config."""

from collections import Counter

import pytest

import polyvit
from polyvit.errors import UserError
from polyvit.quickstart.task_order import task_schedule

UPDATES = {"pets": 30, "kinetics400": 60, "audioset": 10}


def test_the_sequence_and_the_shares() -> None:
    order = polyvit.task_schedule("weighted", UPDATES, seed=3)
    assert len(order) == 100
    assert Counter(order) == UPDATES == order.counts
    assert order.shares == {"pets": 0.3, "kinetics400": 0.6, "audioset": 0.1}
    assert list(order) == list(task_schedule("weighted", UPDATES, seed=3))
    assert list(order) != list(task_schedule("weighted", UPDATES, seed=4))
    assert order[0] == order[:1][0]
    assert order[-1] == list(order)[-1]
    assert repr(order) == "TaskOrder(weighted, 100 steps: pets 30.0%, kinetics400 60.0%, audioset 10.0%)"
    with pytest.raises(IndexError):
        order[100]


def test_other_kinds_lengths_and_options() -> None:
    assert task_schedule("alternating", UPDATES, 5)[:] == [
        "pets", "kinetics400", "audioset", "pets", "kinetics400",
    ]  # fmt: skip
    together = task_schedule("accumulating", UPDATES)
    assert (len(together), together[0]) == (33, "pets + kinetics400 + audioset")
    assert together.shares["audioset"] == pytest.approx(1 / 3)
    drawn = task_schedule("weighted", UPDATES, 1000, replacement=True)
    assert drawn.shares["pets"] == pytest.approx(0.3, abs=0.05)
    assert drawn.counts != task_schedule("weighted", UPDATES, 1000).counts


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"kind: .*'weighted', 'uniform'"):
        task_schedule("even", UPDATES)
    with pytest.raises(UserError, match="colour: "):
        task_schedule("uniform", UPDATES, colour=1)
    with pytest.raises(UserError, match=r"updates\['pets'\] is 0; give steps of each task, 1 or more"):
        task_schedule("uniform", {"pets": 0})
    with pytest.raises(UserError, match="updates is empty"):
        task_schedule("uniform", {})


def test_adaptive_is_not_known_before_a_run() -> None:
    with pytest.raises(UserError, match="decided at the evaluations of a run"):
        task_schedule("adaptive", {"a": 3, "b": 5})
