"""Temperature, and schedules that react: shares by hand, clipping, carried remainders, replay of decisions."""

from typing import Any

import numpy as np
import pytest

from polyvit.config import ScheduleConfig, VideoTask
from polyvit.errors import UserError
from polyvit.schedule.adaptive import clipped_shares, whole_counts
from polyvit.schedule.schedule import Schedule, build_schedule, tempered_counts

STEPS = {"a": 60, "b": 30, "c": 10}


def built(steps: dict[str, int] | None = None, interval: int = 20, seed: int = 0, **keys: Any) -> Schedule:
    tasks = {
        name: VideoTask(layout="csv", num_classes=2, steps=n, batch=1) for name, n in (steps or STEPS).items()
    }
    config = ScheduleConfig.model_validate({"kind": "adaptive", **keys})
    return build_schedule(config, tasks, seed, interval)


def evaluation(step: int, **losses: float | None) -> dict[str, Any]:
    return {"step": step, "tasks": {task: {"loss": loss} for task, loss in losses.items()}}


def run(schedule: Schedule, evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The decisions of a run in which these are measured."""
    decisions: list[dict[str, Any]] = []
    for n in range(1, len(evaluations) + 1):
        decisions.append(schedule.decide(evaluations[:n], decisions))
        schedule.follow(decisions)
    return decisions


def test_temperature_by_hand() -> None:
    counts = np.array([900, 100])
    assert tempered_counts(counts, 1).tolist() == [900, 100]
    assert tempered_counts(counts, 2).tolist() == [750, 250]  # roots 30 and 10
    assert tempered_counts(counts, 1e9).tolist() == [500, 500]
    assert tempered_counts(counts, 0.5).tolist() == [988, 12]  # 81 to 1
    assert tempered_counts(np.array([1, 1]), 3).tolist() == [1, 1]


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0, 7.0])
def test_a_temperature_keeps_the_sum_and_leaves_every_task_a_step(temperature: float) -> None:
    rng = np.random.Generator(np.random.Philox(1))
    for _ in range(50):
        counts = rng.integers(1, 10_000, size=9)
        tempered = tempered_counts(counts, temperature)
        assert tempered.sum() == counts.sum()
        assert tempered.min() >= 1


def test_weighted_takes_the_tempered_counts() -> None:
    assert built({"a": 900, "b": 100}, kind="weighted", temperature=2).counts() == {"a": 750, "b": 250}
    drawn = built({"a": 90_000, "b": 10_000}, kind="weighted", temperature=2, replacement=True).counts()
    assert abs(drawn["b"] - 25_000) < 5 * np.sqrt(25_000 * 0.75)  # 5 sigma


def test_whole_counts_are_the_nearest() -> None:
    assert whole_counts(np.array([1.5, 2.25, 0.25])).tolist() == [2, 2, 0]
    assert whole_counts(np.array([-0.5, 2.6, 0.9])).tolist() == [0, 2, 1]
    assert whole_counts(np.array([-2.0, 3.0, 3.0])).tolist() in ([0, 2, 2], [0, 1, 3], [0, 3, 1])


def test_clipped_shares_by_hand() -> None:
    base = np.array([0.6, 0.3, 0.1])
    np.testing.assert_allclose(clipped_shares(base, np.ones(3), 0.5, 2.0), base)
    np.testing.assert_allclose(clipped_shares(base, np.array([1.0, 1.0, 1e9]), 0.5, 2.0)[2], 0.2)
    for factors in ([1e9, 1, 1], [0, 1, 1], [1e-300, 1e300, 1]):
        shares = clipped_shares(base, np.array(factors), 0.25, 4.0)
        assert shares.sum() == pytest.approx(1)
        assert (shares >= 0.25 * base - 1e-12).all()
        assert (shares <= 4 * base + 1e-12).all()


def test_before_any_measurement_it_is_weighted() -> None:
    schedule = built()
    assert (len(schedule), schedule.known) == (100, 20)
    assert schedule.counts(20) == {"a": 12, "b": 6, "c": 2}
    assert schedule.counts() == STEPS  # if shares stay
    assert schedule.counts(50) == {"a": 30, "b": 15, "c": 5}
    with pytest.raises(IndexError, match="step 21 is decided at the evaluation of step 20"):
        schedule.tasks_at(21)


def test_loss_ratio_by_hand() -> None:
    schedule = built()
    first, second = run(schedule, [evaluation(20, a=2.0, b=1.0, c=4.0), evaluation(40, a=1.0, b=1.0, c=4.0)])
    assert first["shares"] == pytest.approx({"a": 0.6, "b": 0.3, "c": 0.1})  # no rate is known yet
    # Rates 0.5, 1, 1: scores log 0.6, log 1.2, log 1.2, to tenths; 0.6 e^-0.5, 0.3 e^0.2, 0.1 e^0.2 of their sum.
    assert second["scores"] == pytest.approx({"a": -0.5108, "b": 0.1823, "c": 0.1823}, abs=1e-4)
    assert second["shares"] == pytest.approx({"a": 0.4269, "b": 0.4298, "c": 0.1433}, abs=1e-4)
    assert schedule.known == 60
    assert sum(schedule.counts(60).values()) == 60


@pytest.mark.parametrize("rule", ["loss_ratio", "exp3"])
def test_losses_that_differ_a_little_decide_the_same(rule: str) -> None:
    """As those of other numbers of workers do: in the fourth digit, which is kept and changes no step."""
    rng = np.random.Generator(np.random.Philox(5))
    measured = [evaluation(20 * n, **dict(zip("abc", rng.uniform(0.5, 3, 3), strict=True))) for n in range(1, 5)]
    noisy = [
        evaluation(e["step"], **{t: r["loss"] * (1 + 2e-4 * rng.normal()) for t, r in e["tasks"].items()})
        for e in measured
    ]
    one, other = built(adaptive={"rule": rule}), built(adaptive={"rule": rule})
    decisions, others = run(one, measured), run(other, noisy)
    assert [d["losses"] for d in decisions] != [d["losses"] for d in others]
    assert [d["shares"] for d in decisions] == [d["shares"] for d in others]
    assert one.order.tolist() == other.order.tolist()


def test_a_task_that_cannot_be_measured_keeps_its_share() -> None:
    schedule = built()
    decisions = run(schedule, [evaluation(20, a=2.0, b=1.0), evaluation(40, a=float("nan"), b=0.5, c=None)])
    assert decisions[1]["scores"] == {"a": 0.0, "b": 0.0, "c": 0.0}
    assert decisions[1]["losses"] == {"a": None, "b": 0.5, "c": None}


def test_exp3_gives_more_to_the_task_that_falls_fastest_a_step() -> None:
    schedule = built({"a": 50, "b": 50, "c": 50}, interval=30, adaptive={"rule": "exp3"})
    measured = [evaluation(30 * n, a=4.0 - n, b=4.0 - 0.5 * n, c=4.0) for n in range(1, 5)]
    decisions = run(schedule, measured)
    assert decisions[0]["shares"] == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, abs=1e-4)
    # Falls 0.1, 0.05, 0: the 20th and 80th percentile are 0.02 and 0.08, rewards 1, 0, -1, times 0.5.
    assert decisions[1]["scores"] == pytest.approx({"a": 0.5, "b": 0.0, "c": -0.5}, abs=1e-3)
    for decision in decisions[1:]:
        assert decision["shares"]["a"] > decision["shares"]["b"] > decision["shares"]["c"]
    counts = schedule.counts()
    assert counts["a"] > counts["b"] > counts["c"]
    assert sum(counts.values()) == 150


def test_a_rare_task_gets_its_steps_in_the_end() -> None:
    """Each interval owes it a tenth of a step; what rounding leaves is carried on."""
    schedule = built({"a": 990, "b": 10}, interval=10, adaptive={"exponent": 0})
    run(schedule, [evaluation(10 * n, a=1.0, b=1.0) for n in range(1, 100)])
    assert schedule.known == 1000
    assert schedule.counts() == {"a": 990, "b": 10}


@pytest.mark.parametrize("rule", ["loss_ratio", "exp3"])
def test_decisions_that_were_kept_give_the_same_schedule_again(rule: str) -> None:
    rng = np.random.Generator(np.random.Philox(3))
    measured = [evaluation(20 * n, **dict(zip("abc", rng.uniform(0.5, 3, 3), strict=True))) for n in range(1, 5)]
    whole = built(adaptive={"rule": rule})
    decisions = run(whole, measured)
    again = built(adaptive={"rule": rule})
    again.follow(decisions[:2])
    assert again.known == 60
    again.follow(decisions)  # those followed before change nothing
    again.follow(decisions)
    assert again.order.tolist() == whole.order.tolist()
    assert again.visit.tolist() == whole.visit.tolist()
    assert again.digest() == whole.digest() == built(adaptive={"rule": rule}).digest()
    with pytest.raises(ValueError, match="the decision at step 20 is missing"):
        built().follow(decisions[1:])


def test_digest_tells_rules_and_intervals_apart() -> None:
    others = [built(), built(interval=25), built(seed=1), built(temperature=2), built(adaptive={"rule": "exp3"})]
    assert len({schedule.digest() for schedule in others}) == len(others)


def test_a_config_that_cannot_be_adaptive_is_refused() -> None:
    from small import small_config

    with pytest.raises(UserError) as caught:
        small_config("schedule.kind=adaptive")
    assert "set train.eval_every" in "\n".join([caught.value.message, *caught.value.problems])
    with pytest.raises(UserError) as caught:
        small_config("schedule.kind=uniform", "schedule.temperature=2")
    assert "schedule.temperature=2" in "\n".join([caught.value.message, *caught.value.problems])
