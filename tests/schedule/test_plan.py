"""Plans, exactly: the same global batch for any number of workers, whole epochs, no history."""

import itertools

import numpy as np
import pytest

from polyvit.config import AudioTask, ImageTask, ScheduleConfig, TaskConfig
from polyvit.schedule.plan import SPARES, Plan, PlannedBatch, epoch_permutation, mixes, rank_slice
from polyvit.schedule.schedule import build_schedule


def image_task(batch: int, steps: int = 12) -> ImageTask:
    return ImageTask(layout="csv", num_classes=2, steps=steps, batch=batch)


def audio_task(batch: int, steps: int = 12, alpha: float = 0.3) -> AudioTask:
    return AudioTask(layout="csv", num_classes=2, steps=steps, batch=batch, mixup_alpha=alpha)


def planned(tasks: dict[str, TaskConfig], sizes: dict[str, int], seed: int = 3, kind: str = "weighted") -> Plan:
    schedule = build_schedule(ScheduleConfig.model_validate({"kind": kind}), tasks, seed)
    return Plan(schedule, tasks, sizes, seed)


@pytest.fixture
def plan() -> Plan:
    tasks: dict[str, TaskConfig] = {"pic": image_task(5), "big": image_task(11, steps=3), "snd": audio_task(7)}
    return planned(tasks, {"pic": 13, "big": 4, "snd": 10})


def stream(plan: Plan, task: str) -> list[tuple[int, int]]:
    """(epoch, position) of every example of a task over the run, in order."""
    found = []
    for step in plan.schedule.steps_of(task):
        (batch,) = plan.at(int(step))
        found += list(zip(batch.epochs.tolist(), batch.positions.tolist(), strict=True))
    return found


def same(one: PlannedBatch, other: PlannedBatch) -> bool:
    return all(np.array_equal(getattr(one, f), getattr(other, f)) for f in one.__dataclass_fields__)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("kind", ["weighted", "accumulating"])
def test_the_global_batch_is_the_same_for_any_number_of_workers(world_size: int, kind: str) -> None:
    tasks: dict[str, TaskConfig] = {"pic": image_task(5), "big": image_task(11, steps=3), "snd": audio_task(7)}
    plan = planned(tasks, {"pic": 13, "big": 4, "snd": 10}, kind=kind)
    for step in range(1, len(plan.schedule) + 1):
        parts = [plan.at(step, rank, world_size) for rank in range(world_size)]
        for i, whole in enumerate(plan.at(step)):
            mine = [part[i] for part in parts]
            same_step = {(p.step, p.task, p.global_batch) for p in mine}
            assert same_step == {(step, whole.task, tasks[whole.task].batch)}
            np.testing.assert_array_equal(np.concatenate([p.positions for p in mine]), whole.positions)
            np.testing.assert_array_equal(np.concatenate([p.epochs for p in mine]), whole.epochs)
            ends = np.cumsum([0] + [len(p.positions) for p in mine])
            assert [p.first_slot for p in mine] == ends[:-1].tolist()
            for part in mine:
                np.testing.assert_array_equal(part.spares, whole.spares)
            assert len(whole.spares) == SPARES
            assert 0 <= whole.spares.min() <= whole.spares.max() < plan.sizes[whole.task]


def test_every_example_of_an_epoch_exactly_once_across_batches(plan: Plan) -> None:
    assert {task: len(stream(plan, task)) for task in plan.tasks} == {"pic": 60, "big": 33, "snd": 84}
    for task, size in plan.sizes.items():
        found = stream(plan, task)
        assert [epoch for epoch, _ in found] == [i // size for i in range(len(found))]
        for epoch in range(len(found) // size):
            members = [position for e, position in found if e == epoch]
            assert sorted(members) == list(range(size))
        tail = [position for e, position in found if e == len(found) // size]
        assert len(set(tail)) == len(tail)


def test_a_batch_larger_than_the_split_spans_epochs(plan: Plan) -> None:
    (batch,) = plan.at(int(plan.schedule.steps_of("big")[0]))
    assert batch.epochs.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    (second,) = plan.at(int(plan.schedule.steps_of("big")[1]))
    assert second.epochs.tolist() == [2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5]


def test_epochs_tasks_and_seeds_are_shuffled_apart() -> None:
    orders = {
        epoch_permutation(seed, task, epoch, 50).tobytes()
        for seed in (0, 1)
        for task in "ab"
        for epoch in range(5)
    }
    assert len(orders) == 20
    with pytest.raises(ValueError, match="read-only"):
        epoch_permutation(0, "a", 0, 50)[0] = 1


def test_golden_epoch() -> None:
    """A change here changes the data order of every run that was ever started: never do it silently."""
    assert epoch_permutation(42, "imagenet", 0, 8).tolist() == [5, 2, 7, 0, 4, 1, 3, 6]
    assert epoch_permutation(42, "imagenet", 1, 8).tolist() == [1, 4, 0, 6, 7, 5, 2, 3]


def test_a_step_does_not_depend_on_what_was_asked_before(plan: Plan) -> None:
    steps = range(1, len(plan.schedule) + 1)
    forward = {step: plan.at(step, 1, 2) for step in steps}
    for step in reversed(steps):
        epoch_permutation.cache_clear()
        (jumped,) = plan.at(step, 1, 2)
        assert same(jumped, forward[step][0])


def test_pairs_stay_on_one_rank() -> None:
    for batch in range(1, 20):
        for world_size in range(1, 8):
            parts = [rank_slice(batch, rank, world_size, pairs=True) for rank in range(world_size)]
            assert parts[0][0] == 0
            assert parts[-1][1] == batch
            assert all(left[1] == right[0] for left, right in itertools.pairwise(parts))
            assert all(start % 2 == 0 or start == stop == batch for start, stop in parts)
            lengths = [stop - start for start, stop in parts]
            assert max(lengths) - min(lengths) <= 2 + batch % 2


def test_slices_differ_by_one_at_most() -> None:
    assert [rank_slice(10, rank, 3) for rank in range(3)] == [(0, 3), (3, 6), (6, 10)]
    assert [rank_slice(10, rank, 3, pairs=True) for rank in range(3)] == [(0, 2), (2, 6), (6, 10)]
    assert [rank_slice(2, rank, 3) for rank in range(3)] == [(0, 0), (0, 1), (1, 2)]
    for batch in range(1, 30):
        for world_size in range(1, 9):
            lengths = [b - a for a, b in (rank_slice(batch, rank, world_size) for rank in range(world_size))]
            assert sum(lengths) == batch
            assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_outside_the_world_is_an_error(rank: int, world_size: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        rank_slice(4, rank, world_size)


def test_only_audio_with_mixup_needs_pairs() -> None:
    assert mixes(audio_task(4))
    assert not mixes(audio_task(4, alpha=0.0))
    assert not mixes(image_task(4))


def test_sizes_of_other_tasks_change_nothing(plan: Plan) -> None:
    other = Plan(plan.schedule, plan.tasks, {**plan.sizes, "snd": 999}, plan.seed)
    assert stream(other, "pic") == stream(plan, "pic")
    assert stream(other, "snd") != stream(plan, "snd")
