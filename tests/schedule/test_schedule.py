"""Schedules, exactly: counts, order, visits, digest, scaling; golden orders as a regression lock."""

from collections import Counter
from itertools import groupby

import numpy as np
import pytest

from polyvit.config import ScheduleConfig, VideoTask
from polyvit.config.paper_tasks import PAPER_TASKS
from polyvit.schedule.schedule import Schedule, build_schedule, scaled_steps

STEPS = {"a": 5, "b": 3, "c": 2}


def built(kind: str = "weighted", seed: int = 0, steps: dict[str, int] | None = None, **keys: object) -> Schedule:
    """`own_seed` and `total` are the section's keys `seed` and `steps`."""
    tasks = {
        name: VideoTask(layout="csv", num_classes=2, steps=n, batch=1) for name, n in (steps or STEPS).items()
    }
    names = {"own_seed": "seed", "total": "steps"}
    config = ScheduleConfig.model_validate({"kind": kind, **{names.get(k, k): v for k, v in keys.items()}})
    return build_schedule(config, tasks, seed)


def order(schedule: Schedule) -> str:
    return "".join(schedule.tasks_at(step)[0][0] for step in range(1, len(schedule) + 1))


def test_golden_orders() -> None:
    """A change of any of these changes every run that was ever started: never do it silently."""
    assert order(built(kind="weighted")) == "caabbaabac"
    assert order(built(kind="weighted", seed=1)) == "baaacaacbb"
    assert order(built(kind="weighted", replacement=True)) == "aaaacacaaa"
    assert order(built(kind="uniform")) == "aacabbbaac"
    assert order(built(kind="alternating")) == "abcabcabca"
    assert order(built(kind="task_by_task")) == "ccaaaaabbb"


@pytest.mark.parametrize("seed", range(20))
def test_weighted_is_a_permutation_of_the_multiset(seed: int) -> None:
    schedule = built(seed=seed)
    assert Counter(order(schedule)) == STEPS
    assert schedule.counts() == STEPS


def test_weighted_has_no_place_that_a_task_prefers() -> None:
    """Over 4000 seeds task a stands at each of the 10 places half of the time (5 sigma is 0.04)."""
    orders = np.array([built(seed=seed).order for seed in range(4000)])
    np.testing.assert_allclose((orders == 0).mean(axis=0), 0.5, atol=0.04)


def test_replacement_draws_with_probability_in_proportion_to_the_steps() -> None:
    schedule = built(steps={"a": 50_000, "b": 30_000, "c": 20_000}, replacement=True)
    counts = schedule.counts()
    assert sum(counts.values()) == len(schedule) == 100_000
    for task, expected in {"a": 50_000, "b": 30_000, "c": 20_000}.items():
        assert abs(counts[task] - expected) < 5 * np.sqrt(expected)  # 5 sigma
    assert counts["a"] != 50_000  # exactly U_j would be the other kind


def test_uniform_draws_all_tasks_alike() -> None:
    schedule = built(kind="uniform", steps={"a": 89_998, "b": 1, "c": 1})
    for count in schedule.counts().values():
        assert abs(count - 30_000) < 5 * np.sqrt(30_000 * 2 / 3)
    # Draws are independent: a task follows itself one time in three.
    assert abs((schedule.order[1:] == schedule.order[:-1]).mean() - 1 / 3) < 0.01


def test_alternating_goes_round_in_config_order_whatever_the_seed() -> None:
    assert order(built(kind="alternating", seed=9, steps={"z": 1, "a": 3, "m": 1})) == "zamza"


@pytest.mark.parametrize("seed", range(10))
def test_task_by_task_is_one_block_a_task(seed: int) -> None:
    blocks = [(task, len(list(run))) for task, run in groupby(order(built(kind="task_by_task", seed=seed)))]
    assert len(blocks) == 3
    assert dict(blocks) == STEPS


def test_task_by_task_shuffles_the_blocks() -> None:
    assert len({order(built(kind="task_by_task", seed=seed)) for seed in range(60)}) == 6


def test_accumulating_takes_every_task_at_every_step() -> None:
    schedule = built(kind="accumulating", steps={"a": 8, "b": 3, "c": 2})
    assert len(schedule) == 4  # round(13 / 3)
    assert schedule.tasks_at(1) == (("a", 0), ("b", 0), ("c", 0))
    assert schedule.tasks_at(4) == (("a", 3), ("b", 3), ("c", 3))
    assert schedule.counts() == {"a": 4, "b": 4, "c": 4}
    assert schedule.counts(until=3) == {"a": 3, "b": 3, "c": 3}
    assert schedule.steps_of("b").tolist() == [1, 2, 3, 4]
    assert len(built(kind="accumulating", steps={"a": 1, "b": 1, "c": 1})) == 1


@pytest.mark.parametrize("kind", ["weighted", "uniform", "alternating", "task_by_task"])
def test_visits_number_the_steps_of_a_task_from_0(kind: str) -> None:
    schedule = built(kind=kind, steps={"a": 11, "b": 7, "c": 3})
    seen: Counter[str] = Counter()
    for step in range(1, 22):
        ((task, visit),) = schedule.tasks_at(step)
        assert visit == seen[task]
        seen[task] += 1
        assert schedule.counts(until=step) == {name: seen[name] for name in "abc"}
    for task in "abc":
        assert [schedule.tasks_at(int(s))[0][0] for s in schedule.steps_of(task)] == [task] * seen[task]


@pytest.mark.parametrize("step", [-1, 0, 11])
def test_a_step_outside_the_run_is_an_error(step: int) -> None:
    for kind in ("weighted", "accumulating"):
        with pytest.raises(IndexError, match=rf"step {step} is outside 1\.\."):
            built(kind=kind).tasks_at(step)


def test_digest_tells_schedules_apart() -> None:
    same = built().digest()
    assert built().digest() == same
    assert built(seed=5).digest() != same
    renamed = built(steps={"a": 5, "b": 3, "d": 2})
    assert np.array_equal(renamed.order, built().order)
    assert renamed.digest() != same
    swapped = built(steps={"b": 5, "a": 3, "c": 2})
    assert swapped.digest() != same
    kinds = ("weighted", "uniform", "alternating", "task_by_task", "accumulating")
    digests = {built(kind=kind).digest() for kind in kinds}
    assert len(digests) == 5


def test_the_schedules_own_seed_wins() -> None:
    assert built(seed=3).digest() == built(seed=99, own_seed=3).digest()
    assert built(seed=3).digest() != built(seed=3, own_seed=4).digest()


@pytest.mark.parametrize(
    ("steps", "total", "expected"),
    [
        ({"a": 5, "b": 3, "c": 2}, None, {"a": 5, "b": 3, "c": 2}),
        ({"a": 5, "b": 3, "c": 2}, 10, {"a": 5, "b": 3, "c": 2}),
        ({"a": 5, "b": 3, "c": 2}, 100, {"a": 50, "b": 30, "c": 20}),
        ({"a": 5, "b": 3, "c": 2}, 4, {"a": 2, "b": 1, "c": 1}),  # 2.0, 1.2, 0.8: the largest remainder is c's
        ({"a": 1, "b": 1, "c": 1}, 5, {"a": 2, "b": 2, "c": 1}),
        ({"a": 1000, "b": 1, "c": 1}, 10, {"a": 8, "b": 1, "c": 1}),
        ({"a": 5, "b": 3, "c": 2}, 2, {"a": 1, "b": 1, "c": 1}),
    ],
)
def test_scaled_steps(steps: dict[str, int], total: int | None, expected: dict[str, int]) -> None:
    assert scaled_steps(steps, total) == expected


def test_schedule_steps_scales_every_task() -> None:
    assert built(total=20).counts() == {"a": 10, "b": 6, "c": 4}


def test_official_nine_tasks() -> None:
    """facts.md, section 4: 417,920 steps, exactly U_j of each."""
    steps = {name: int(task["steps"]) for name, task in PAPER_TASKS.items()}
    schedule = built(seed=42, steps=steps)
    assert len(schedule) == 417_920
    assert schedule.counts() == {
        "imagenet": 20_000, "cifar100": 10_000, "cifar10": 10_000, "pets": 500, "resisc45": 2_500,
        "kinetics400": 100_680, "moments_in_time": 123_640, "audioset": 15_900, "vggsound": 134_700,
    }  # fmt: skip
    assert sum(int(task.get("warmup_steps", 0)) for task in PAPER_TASKS.values()) == 47_330
    last_visit = max(visit for step in schedule.steps_of("pets") for _, visit in schedule.tasks_at(int(step)))
    assert last_visit == 499
