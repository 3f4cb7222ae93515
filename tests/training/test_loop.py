"""The loop: what it asks for, reports, stops at; the timer's arithmetic."""

import gc
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from small import ArrayFeed, Heard, fresh, small_config, small_plan

from polyvit.checkpoint.state import TrainState, TrainUnit
from polyvit.config import RunConfig
from polyvit.data.loading.minibatch import Minibatch, Quarantined
from polyvit.errors import UserError
from polyvit.schedule.plan import SPARES, PlannedBatch
from polyvit.training.checks import JUDGED_FROM
from polyvit.training.loop import learning_rate, train
from polyvit.training.optim import lr_factor
from polyvit.training.step import SingleProcess

pytestmark = pytest.mark.usefixtures("one_thread")


def trained(config: RunConfig, feed: ArrayFeed | None = None) -> tuple[TrainState, Heard]:
    model, optimiser, schedule = fresh(config)
    events = Heard()
    learner, feed = TrainUnit(model, optimiser), feed or ArrayFeed(config)
    state = train(learner, schedule, feed, config, SingleProcess(), TrainState(), events)
    return state, events


def test_what_the_loop_reports() -> None:
    config = small_config("train.log_every=4", "train.checkpoint_every=8", "train.eval_every=6")
    state, events = trained(config)
    schedule = small_plan(config).schedule
    assert len(schedule) == state.global_step == 18
    assert [s["step"] for s in events.snapshots] == list(range(1, 19))
    assert [s["task"] for s in events.snapshots] == [schedule.tasks_at(n)[0][0] for n in range(1, 19)]
    assert {s["total"] for s in events.snapshots} == {18}
    assert all({"loss", "examples_per_s", "data_wait", "eta_s"} <= s.keys() for s in events.snapshots)
    assert events.snapshots[-1]["eta_s"] == 0
    assert events.checkpoints == [8, 16, 18]
    curves = [step for step, values in events.points if "train/grad_norm" in values]
    evaluations = [step for step, values in events.points if any(key.startswith("eval/") for key in values)]
    assert curves == [4, 8, 12, 16, 18]
    assert evaluations == [6, 12, 18]
    assert [e["step"] for e in state.evaluations] == [6, 12, 18]
    assert state.read == {"picture": 35, "clip": 16, "sound": 54, "word": 9}
    assert state.bad == dict.fromkeys(state.read, 0)


def test_curves_are_means_since_the_last_point() -> None:
    _, events = trained(small_config("train.log_every=6"))
    for point, (step, values) in enumerate(v for v in events.points if "train/grad_norm" in v[1]):
        here = events.snapshots[6 * point : step]
        for task in {snapshot["task"] for snapshot in here}:
            losses = [snapshot["loss"] for snapshot in here if snapshot["task"] == task]
            assert values[f"train/{task}/loss"] == pytest.approx(sum(losses) / len(losses))
    assert not any("train/clip/loss" in v and "clip" not in {s["task"] for s in events.snapshots[n - 6 : n]}
                   for n, v in events.points)  # fmt: skip


def test_an_evaluation_result() -> None:
    state, events = trained(small_config())
    (evaluation,) = state.evaluations
    assert list(evaluation["tasks"]) == ["picture", "clip", "sound", "word"]
    for task, result in evaluation["tasks"].items():
        metric = "map" if task == "sound" else "top1"
        assert result["metric"] == metric
        assert result["value"] == result[metric]
        assert (result["examples"], result["skipped"]) == (10, 0)
    (values,) = [values for _, values in events.points if "eval/sound/map" in values]
    assert values["eval/sound/map"] == evaluation["tasks"]["sound"]["value"]
    assert "eval/sound/metric" not in values
    results = [result["value"] for result in evaluation["tasks"].values()]
    assert values["eval/mean"] == pytest.approx(sum(results) / len(results))


def test_learning_rate_is_the_tasks() -> None:
    config = small_config("optim.lr=2")
    assert learning_rate(config, 4, 18, "sound") == pytest.approx(2 * 0.25 * lr_factor(4, 18, 3))
    assert learning_rate(config, 1, 18, "clip") == pytest.approx(2 / 3)
    accumulating = small_config("optim.lr=2", "schedule.kind=accumulating", "schedule.accumulating_lr_coef=0.3")
    assert learning_rate(accumulating, 3, 18, "sound") == pytest.approx(0.6)


def test_warmup_is_the_sum_of_the_tasks_unless_given() -> None:
    some = ("tasks.clip.warmup_steps=5", "tasks.word.warmup_steps=2")
    assert small_config(*some, "optim.warmup_steps=null").warmup_steps == 7
    assert small_config(*some).warmup_steps == 3
    assert small_config(*some, "optim.warmup_steps=0").warmup_steps == 0


def test_the_reported_lr_is_the_one_used() -> None:
    config = small_config("train.log_every=1")
    _, events = trained(config)
    rates = {step: value for step, values in events.points for key, value in values.items() if key.endswith("/lr")}
    schedule = small_plan(config).schedule
    expected = {n: learning_rate(config, n, 18, schedule.tasks_at(n)[0][0]) for n in range(1, 19)}
    assert rates == pytest.approx(expected)
    assert rates[18] == 0.0


@pytest.mark.parametrize("others", [False, True])
def test_collections_run_between_steps_and_see_what_steps_left(
    others: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there before is set aside, and back after; what another has set aside stays so."""
    seen: list[tuple[bool, bool]] = []
    monkeypatch.setattr(Heard, "progress", lambda *_: seen.append((gc.isenabled(), gc.get_freeze_count() > 1000)))
    if others:
        gc.freeze()
    try:
        before = gc.get_freeze_count()
        trained(small_config("train.eval_every=6"))
        assert gc.isenabled()
        assert (gc.get_freeze_count() > 0) is others
        assert gc.get_freeze_count() <= before
    finally:
        gc.unfreeze()
    assert seen == [(False, True)] * 18


class Poisoned(ArrayFeed):
    """Labels of one task become NaN-makers: the loss is not finite."""

    def minibatch(self, batch) -> Minibatch:  # type: ignore[no-untyped-def]
        made = super().minibatch(batch)
        if made.task == "sound":
            made.inputs["tokens"][:] = float("nan")
        return made


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    config = small_config("train.checkpoint_every=1")
    feed = Poisoned(config)
    first = int(feed.plan.schedule.steps_of("sound")[0])
    model, optimiser, schedule = fresh(config)
    events = Heard()
    with pytest.raises(UserError, match=f"loss of task sound is nan at step {first}") as caught:
        train(TrainUnit(model, optimiser), schedule, feed, config, SingleProcess(), TrainState(), events)
    assert "tasks.sound.lr_coef=0.25" in str(caught.value)
    keys = feed.minibatch(feed.plan.at(first)[0]).keys
    assert caught.value.problems == (
        f"examples: {', '.join(keys[:8])} and 1 more", f"minibatch saved: somewhere/{first}",
    )  # fmt: skip
    assert events.checkpoints == list(range(1, first))  # none with a broken model


def test_too_many_bad_examples_end_the_run_once_enough_were_read() -> None:
    config = small_config("tasks.sound.steps=30", "data.max_bad_fraction=0.2")
    feed = ArrayFeed(config, bad=frozenset(("sound", i) for i in range(15)))
    at = int(feed.plan.schedule.steps_of("sound")[math.ceil(JUDGED_FROM / 9) - 1])
    model, optimiser, schedule = fresh(config)
    events, state = Heard(), TrainState()
    with pytest.raises(UserError, match=r"task sound: .* of the 108 examples read so far") as caught:
        train(TrainUnit(model, optimiser), schedule, feed, config, SingleProcess(), state, events)
    assert state.global_step == at
    assert f"{state.bad['sound']} of the 108" in str(caught.value)
    assert "data.max_bad_fraction=0.2" in str(caught.value)
    assert 0.4 * 108 < state.bad["sound"] < 0.6 * 108


def test_a_short_run_is_judged_at_its_end() -> None:
    config = small_config("data.max_bad_fraction=0.1")
    with pytest.raises(UserError, match=r"task word: .* of the 9 examples"):
        trained(config, ArrayFeed(config, bad=frozenset(("word", i) for i in range(4))))


def test_a_borne_share_of_bad_examples_is_listed_and_counted() -> None:
    config = small_config("data.max_bad_fraction=0.5")
    state, _ = trained(config, ArrayFeed(config, bad=frozenset({("sound", 3), ("picture", 0)})))
    assert [(q.task, q.key) for q in state.quarantine] == [("picture", "0"), ("sound", "3")]
    plan, met = small_plan(config), {"picture": 0, "clip": 0, "sound": 0, "word": 0}
    for step in range(1, 19):
        for batch in plan.at(step):
            met[batch.task] += (batch.positions.tolist()).count({"sound": 3, "picture": 0}.get(batch.task, -1))
    assert state.bad == met
    assert 1 <= met["picture"] <= 2  # 35 examples of 20


class Lacking(ArrayFeed):
    """A feed whose every spare of one step was broken too."""

    lacks = 3

    def minibatch(self, batch: PlannedBatch) -> Minibatch:
        made = super().minibatch(batch)
        if batch.step != self.lacks:
            return made
        bad = tuple(Quarantined(made.task, f"k{i}", f"{i:02d}.bin", "torn") for i in range(10))
        return replace(
            made,
            inputs={"tokens": made.inputs["tokens"][:-2]},
            labels=made.labels[:-2],
            keys=made.keys[:-2],
            bad=bad,
            undecodable=2,
        )


def test_a_step_that_lacks_an_example_ends_the_run() -> None:
    """Without it later examples would move up: other pairs, other draws than the plan's."""
    config = small_config("data.max_bad_fraction=1", "train.checkpoint_every=1")
    feed = Lacking(config)
    (batch,) = feed.plan.at(3)
    model, optimiser, schedule = fresh(config)
    events, state = Heard(), TrainState()
    with pytest.raises(UserError, match=f"task {batch.task}: 2 examples of step 3 cannot be decoded") as caught:
        train(TrainUnit(model, optimiser), schedule, feed, config, SingleProcess(), state, events)
    assert f"{SPARES} substitutes" in str(caught.value)
    assert caught.value.problems == (*(f"{batch.task}: {i:02d}.bin: torn" for i in range(8)), "and 2 more")
    assert events.checkpoints == [1, 2]


def test_spares_that_were_tried_are_listed_and_not_counted() -> None:
    class Tried(ArrayFeed):
        def minibatch(self, batch: PlannedBatch) -> Minibatch:
            made = super().minibatch(batch)
            spares = tuple(Quarantined(made.task, f"spare{i}", "p", "torn") for i in range(3))
            return replace(made, bad=(*made.bad, *spares), undecodable=1)

    config = small_config("data.max_bad_fraction=0.4")  # of a batch of 3 one is a third; four would be too many
    state, _ = trained(config, Tried(config))
    assert state.bad == {"picture": 5, "clip": 4, "sound": 6, "word": 3}
    assert state.read == {"picture": 35, "clip": 16, "sound": 54, "word": 9}
    assert len(state.quarantine) == 12


class Late(ArrayFeed):
    """A feed one step ahead of itself."""

    def train(self, start_step: int) -> Iterator[list[Minibatch]]:
        return super().train(start_step + 1)


def test_a_feed_that_lost_its_step_is_noticed() -> None:
    config = small_config()
    with pytest.raises(RuntimeError, match="the feed brought step 2 at step 1"):
        trained(config, Late(config))


def test_a_resumed_loop_asks_the_feed_for_the_next_step_only() -> None:
    config = small_config()
    model, optimiser, schedule = fresh(config)
    feed, events = ArrayFeed(config), Heard()
    train(TrainUnit(model, optimiser), schedule, feed, config, SingleProcess(), TrainState(global_step=15), events)
    assert feed.started_at == [16]
    assert [s["step"] for s in events.snapshots] == [16, 17, 18]


def test_evaluation_changes_nothing() -> None:
    finals = []
    for every in ("null", "3"):
        config = small_config(f"train.eval_every={every}")
        model, optimiser, schedule = fresh(config)
        train(
            TrainUnit(model, optimiser),
            schedule,
            ArrayFeed(config),
            config,
            SingleProcess(),
            TrainState(),
            Heard(),
        )
        finals.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*finals)


def test_a_stop_is_a_checkpoint_at_that_step_and_the_rest_follows_on() -> None:
    config = small_config("train.checkpoint_every=8", "train.log_every=4")
    model, optimiser, schedule = fresh(config)
    first = Heard()
    first.stop_at = 6
    state = train(
        TrainUnit(model, optimiser), schedule, ArrayFeed(config), config, SingleProcess(), TrainState(), first
    )
    assert (state.global_step, state.stopped) == (6, True)
    assert first.checkpoints == [6]
    assert [step for step, _ in first.points] == [4, 6]
    assert state.evaluations == []
    then = Heard()
    state = train(TrainUnit(model, optimiser), schedule, ArrayFeed(config), config, SingleProcess(), state, then)
    assert (state.global_step, state.stopped) == (18, False)
    straight, optimiser, schedule = fresh(config)
    train(
        TrainUnit(straight, optimiser), schedule, ArrayFeed(config), config, SingleProcess(), TrainState(), Heard()
    )
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), straight.parameters(), strict=True))


def test_a_stop_at_the_last_step_is_the_end() -> None:
    config = small_config()
    model, optimiser, schedule = fresh(config)
    events = Heard()
    events.stop_at = 18
    state = train(
        TrainUnit(model, optimiser), schedule, ArrayFeed(config), config, SingleProcess(), TrainState(), events
    )
    assert not state.stopped
    assert len(state.evaluations) == 1


def test_scores_are_the_metrics_and_their_mean() -> None:
    state, events = trained(small_config("train.eval_every=6"))
    assert [step for step, _ in events.scores] == [6, 12, 18]
    for (_, scores), evaluation in zip(events.scores, state.evaluations, strict=True):
        metrics = {task: result["value"] for task, result in evaluation["tasks"].items()}
        assert scores == {**metrics, "mean": sum(metrics.values()) / 4}
    assert state.scores() == events.scores[-1][1]


def test_points_hold_timings_and_memory() -> None:
    _, events = trained(small_config("train.log_every=9"))
    for _, values in events.points:
        assert {"pace/data_s", "pace/step_s", "pace/examples_per_s", "pace/tflops", "pace/rss_gb"} <= values.keys()
        assert "pace/mfu" not in values  # a CPU's peak is not known
        assert values["pace/rss_gb"] > 0.05
    assert "pace/sound/ms_per_step" in events.points[0][1]
