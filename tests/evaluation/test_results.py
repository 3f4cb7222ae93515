"""The result rows, exactly."""

import pytest
from small import small_config, small_plan

from polyvit.data.index.io import Example, Scan
from polyvit.evaluation.results import label_shares, result_rows


def examples(labels: list[tuple[int, ...]], split: str) -> list[Example]:
    return [Example(f"{split}{i}", "p", row, split) for i, row in enumerate(labels)]  # type: ignore[arg-type]


def scan_of(train: list[tuple[int, ...]], held: list[tuple[int, ...]]) -> Scan:
    return Scan([*examples(train, "train"), *examples(held, "validation")], ["a", "b", "c"])


def test_rows_by_hand() -> None:
    config = small_config()
    single = scan_of([(0,), (1,), (1,), (2,)], [(1,), (1,), (0,), (3,), (1,)])
    multi = scan_of([(0, 1), (2,)], [(0,), (0, 2), (2,), (1,)])
    scans = {"picture": single, "clip": single, "sound": multi, "word": single}
    evaluation = {
        "picture": {"metric": "top1", "value": 0.4, "examples": 5, "loss": 1.5, "top5": 0.9},
        "sound": {"metric": "map", "value": 0.6, "examples": 4, "loss": 0.5, "top5": 1.0},
    }
    rows = result_rows(config, small_plan(config).schedule, scans, evaluation, until=18)
    assert list(rows) == ["picture", "clip", "sound", "word"]
    assert rows["picture"] == {
        "modality": "image", "steps": 5, "examples_seen": 35, "train_examples": 4, "epochs": 35 / 4,
        "eval_split": "validation", "eval_examples": 5, "metric": "top1", "value": 0.4,
        "chance": pytest.approx(1 / 3),  # three classes have training examples
        "majority": 0.6,  # class 1 leads in training; three of five held-out examples are of it
        "loss": 1.5, "top5": 0.9,
    }  # fmt: skip
    # labels of the four held-out examples: 0 twice, 1 once, 2 twice
    assert rows["sound"]["chance"] == pytest.approx((2 / 4 + 1 / 4 + 2 / 4) / 3)
    assert rows["sound"]["majority"] is None
    assert (rows["clip"]["value"], rows["clip"]["eval_examples"]) == (None, 0)


def test_rows_of_a_part_of_the_run() -> None:
    config = small_config()
    schedule = small_plan(config).schedule
    scans = dict.fromkeys(config.tasks, scan_of([(0,)], [(0,)]))
    rows = result_rows(config, schedule, scans, {}, until=7)
    assert {name: row["steps"] for name, row in rows.items()} == schedule.counts(until=7)
    assert sum(row["steps"] for row in rows.values()) == 7


def test_label_shares() -> None:
    shares = label_shares(examples([(0, 2), (2,), (), (1, 2)], "train"), 4)
    assert shares.tolist() == [0.25, 0.25, 0.75, 0.0]
    assert label_shares([], 3).tolist() == [0.0, 0.0, 0.0]
