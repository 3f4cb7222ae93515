"""Early stopping: when it acts, that a killed run takes the same decision, and what a result says."""

import json
from pathlib import Path
from typing import Any

import pytest
from pipelines_kit import pair_document
from small import ArrayFeed, Heard, fresh, small_config

from polyvit import train
from polyvit.checkpoint import TrainState, TrainUnit
from polyvit.config import RunConfig
from polyvit.distributed import SingleProcess
from polyvit.errors import UserError
from polyvit.training import train as train_loop
from polyvit.training.early_stopping import early_end

pytestmark = pytest.mark.usefixtures("one_thread")
STOPS = ("train.early_stopping.patience=2", "train.eval_every=3")


def evaluations(*values: float | None) -> list[dict[str, Any]]:
    return [{"step": 10 * n, "tasks": {"picture": {"value": v}}} for n, v in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("values", "overrides", "best_step"),
    [
        ((0.5, 0.6), (), None),
        ((0.6, 0.5), (), None),
        ((0.6, 0.5, 0.6), (), 10),  # as good is no better
        ((0.6, 0.5, 0.61), (), None),
        ((0.6, 0.5, 0.61), ("train.early_stopping.min_delta=0.05",), 10),
        ((0.6, 0.5, 0.6000001), (), 10),  # below the digits that count
        ((0.5, 0.6, None, 0.5), (), 20),
        ((None, None), (), 0),
        ((0.6, float("nan"), float("nan")), (), 10),
    ],
)
def test_the_rule(values: tuple[float, ...], overrides: tuple[str, ...], best_step: int | None) -> None:
    config = small_config(*STOPS, "train.early_stopping.metric=picture", *overrides)
    step = 10 * len(values)
    ended = early_end(config, evaluations(*values), step)
    assert (ended is None) is (best_step is None)
    if ended:
        assert (ended["reason"], ended["step"], ended["best_step"] or 0) == ("early_stopping", step, best_step)
    assert early_end(config, evaluations(*values), step + 1) is None  # not where nothing was evaluated


def test_the_mean_is_over_tasks_that_have_a_value() -> None:
    config = small_config(*STOPS)
    rows = [{"a": 0.2, "b": 0.6}, {"a": 0.3, "b": 0.4}, {"a": None, "b": 0.41}]
    seen = [
        {"step": n, "tasks": {task: {"value": value} for task, value in row.items()}}
        for n, row in enumerate(rows, start=1)
    ]
    assert early_end(config, seen, 3) is None  # 0.41 alone is above 0.4
    assert early_end(config, [*seen[:2], seen[1] | {"step": 3}], 3)


def run(
    config: RunConfig, feed: ArrayFeed, state: TrainState | None = None
) -> tuple[TrainState, Heard, TrainUnit]:
    model, optimiser, schedule = fresh(config)
    events, learner = Heard(), TrainUnit(model, optimiser)
    state = train_loop(learner, schedule, feed, config, SingleProcess(), state or TrainState(), events)
    return state, events, learner


def test_a_run_ends_early_once_and_for_all() -> None:
    config = small_config(*STOPS, "train.log_every=4", "train.early_stopping.min_delta=1")
    state, events, _ = run(config, ArrayFeed(config))
    assert state.global_step == 9
    assert not state.stopped
    assert state.ended is not None
    assert (state.ended["step"], state.ended["best_step"], state.ended["metric"]) == (9, 3, "mean")
    assert events.checkpoints[-1] == 9
    points = [step for step, values in events.points if "train/grad_norm" in values]
    assert points == [4, 8, 9]  # what the last steps gave is not lost
    # A process that goes on from that checkpoint takes no step and says again how it ended.
    again, heard, _ = run(config, ArrayFeed(config), TrainState(9, evaluations=state.evaluations))
    assert (again.global_step, again.ended) == (9, state.ended)
    assert (heard.snapshots, [step for step, _ in heard.scores]) == ([], [9])
    # One that goes on with more patience does.
    more = small_config("train.early_stopping.patience=20", "train.eval_every=3")
    further, heard, _ = run(more, ArrayFeed(more), TrainState(9, evaluations=list(state.evaluations)))
    assert (further.global_step, further.ended, heard.snapshots[0]["step"]) == (18, None, 10)


def test_contradictions_are_refused() -> None:
    with pytest.raises(UserError) as refused:
        small_config("train.early_stopping.patience=2", "train.eval_every=null",
                     "train.early_stopping.metric=nothing")  # fmt: skip
    text = "\n".join(refused.value.problems)
    assert "train.early_stopping acts at evaluations: set train.eval_every" in text
    assert "train.early_stopping.metric=nothing must be mean or a task: picture, clip" in text


def test_a_result_says_how_the_run_ended(pair_root: Path, tmp_path: Path) -> None:
    section = {"eval_every": 7, "early_stopping": {"patience": 1, "min_delta": 1.0}}
    document = {
        **pair_document(pair_root),
        "storage": str(tmp_path),
        "train": section,
        "schedule": {"kind": "adaptive"},
    }
    early = train(document, device="cpu", progress=False)
    result = json.loads((early.folder / "result.json").read_text())
    assert result["ended"] == early.ended
    assert (early.ended["reason"], early.ended["step"], result["steps"]) == ("early_stopping", 14, 14)
    assert sum(row["steps"] for row in early.results.values()) == 14
    state = json.loads((early.folder / "step_00000014" / "state.json").read_text())
    assert state["ended"] == early.ended
    assert [decision["step"] for decision in state["decisions"]] == [7]  # nothing is decided at the end
