"""Gradients over ranks: what moves, in which order, when; the same bits as one flat sum."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks_kit import GlooWorld, meet
from small import ArrayFeed, fresh, small_config
from torch import Tensor, nn

import polyvit.distributed.reducer
from polyvit.config import RunConfig
from polyvit.distributed import Buckets, Reducer
from polyvit.distributed.communicator import Done
from polyvit.training.step import StepResult, train_step

pytestmark = pytest.mark.usefixtures("one_thread")
ACCUMULATING = ("schedule.kind=accumulating", "schedule.steps=40")
EMPTY = ("tasks.picture.batch=2", "tasks.sound.batch=2", "tasks.clip.batch=2", "tasks.word.batch=2")


class Recorded:
    """The world as one of `size` ranks, keeping what it is given to sum and what had arrived at that moment."""

    def __init__(self, rank: int = 0, size: int = 2) -> None:
        self.rank, self.size, self.sent = rank, size, []  # type: ignore[var-annotated]
        self.watch: list[nn.Parameter] = []
        self.arrived: list[int] = []

    def sum_(self, flat: Tensor) -> None:
        raise NotImplementedError

    def sum_async(self, flat: Tensor) -> Done:
        self.sent.append(flat.clone())
        self.arrived.append(sum(p.grad is not None for p in self.watch))
        return Done()

    def gather(self, value: object) -> list:
        raise NotImplementedError


def step(config: RunConfig, number: int, world: Recorded) -> StepResult:
    """Step `number` as one rank of the world takes it."""
    model, optimiser, _ = fresh(config)
    feed = ArrayFeed(config, world.rank, world.size)
    minibatches = [feed.minibatch(batch) for batch in feed.plan.at(number, world.rank, world.size)]
    world.watch = list(model.touched(minibatches[-1].task).values())
    return train_step(model, optimiser, minibatches, 0.1, config, world)


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polyvit.distributed.reducer, "BUCKET_BYTES", 4096)


def test_no_byte_moves_for_what_the_task_does_not_reach() -> None:
    config = small_config()
    model, _, schedule = fresh(config)
    for task in config.tasks:
        world = Recorded()
        result = step(config, int(schedule.steps_of(task)[0]), world)
        reached = sum(p.numel() for p in model.touched(task).values())
        extra = 4  # loss, bad, examples, flag
        assert result.reduced_bytes == 4 * (reached + extra)
        assert sum(flat.numel() for flat in world.sent) == reached + extra
        assert reached < 0.7 * sum(p.numel() for p in model.parameters())


def test_a_world_of_one_moves_nothing() -> None:
    assert step(small_config(), 1, Recorded(size=1)).reduced_bytes == 0


@pytest.mark.usefixtures("small_buckets")
def test_buckets_leave_while_the_backward_pass_goes_on() -> None:
    world = Recorded()
    step(small_config(), 1, world)
    whole = len(world.watch)
    assert len(world.sent) > 5
    assert world.arrived[0] <= whole // 3
    assert world.arrived == sorted(world.arrived)
    assert world.arrived[-1] == whole


@pytest.mark.usefixtures("small_buckets")
@pytest.mark.parametrize("keys", [(), ACCUMULATING, EMPTY, (*EMPTY, *ACCUMULATING)])
def test_every_rank_sends_the_same_buckets_in_the_same_order(keys: tuple[str, ...]) -> None:
    """Also a rank without examples, which has no backward pass to wait for. Bucket k is of the same parameters."""
    config = small_config(*keys)
    for number in range(1, 6):
        worlds = [Recorded(rank, 3) for rank in range(3)]
        for world in worlds:
            step(config, number, world)
        first, *others = ([flat.numel() for flat in world.sent] for world in worlds)
        assert all(other == first for other in others)
        assert len(first) > 3


def test_accumulating_sends_the_other_tasks_first_and_each_gradient_once() -> None:
    parameters = [nn.Parameter(torch.ones(3) * i) for i in range(4)]
    late, world, extra = parameters[1:3], Recorded(), torch.tensor([5.0])
    reducer = Reducer(Buckets(parameters, late), extra, world)
    for i in (0, 1):
        parameters[i].grad = torch.full((3,), float(10 * i + 1))
    with reducer.overlapping():
        (parameters[1].sum() + parameters[2].sum() * 7).backward()
    reducer.finish()
    # early ones in the model's order, then the late ones from the last; a gradient that is not there is zeros
    (flat,) = world.sent
    assert flat.tolist() == [1.0] * 3 + [0.0] * 3 + [7.0] * 3 + [12.0] * 3 + [5.0]
    assert [p.grad.tolist()[0] for p in parameters if p.grad is not None] == [1.0, 12.0, 7.0, 0.0]
    assert reducer.bytes == 4 * 13


def both_ways(rank: int, folder: str) -> None:
    """One rank of two: gradients by the reducer, and by one flat sum of the local ones."""
    meet(rank, 2, folder)
    polyvit.distributed.reducer.BUCKET_BYTES = 4096
    world, found = GlooWorld(), []
    for keys in ((), ACCUMULATING, EMPTY):
        config = small_config(*keys, "optim.clip_norm=null")
        feed = ArrayFeed(config, rank, 2)
        for number in range(1, 6):
            model, optimiser, _ = fresh(config)
            minibatches = [feed.minibatch(batch) for batch in feed.plan.at(number, rank, 2)]
            train_step(model, optimiser, minibatches, 0.1, config, Recorded(rank, 2))  # type: ignore[arg-type]
            own = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            flat = torch.cat([g.reshape(-1) for g in own.values()])
            dist.all_reduce(flat)
            model, optimiser, _ = fresh(config)
            train_step(model, optimiser, minibatches, 0.1, config, world)
            other = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            assert list(other) == list(own)
            found.append(torch.equal(flat, torch.cat([g.reshape(-1) for g in other.values()])))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_get_the_bits_of_one_flat_sum(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(both_ways, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == [True] * 15
