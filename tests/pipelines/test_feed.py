"""The feed through a real Ray: the plan's order and bytes for any number of workers and any start."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pipelines_kit import pair_config, planned, scanned

from pipelines.feed import RayDataFeed, make_decoder
from pipelines.index import Indexes
from polyvit.config import RunConfig
from polyvit.data.minibatch import Minibatch
from polyvit.feed import InlineFeed, Requests

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

STEPS = 9
Signature = tuple[int, str, bytes, bytes, tuple[str, ...], tuple]


@pytest.fixture(scope="module")
def config(pair_root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    # Two segments of 5 and 4 steps; with three ranks the parts of a batch of 2 are empty on some.
    return pair_config(
        pair_root, tmp_path_factory.mktemp("feed"), f"schedule.steps={STEPS}", "feed.segment_steps=5",
        "tasks.sounds.steps=20", "feed.prefetch=2",
    )  # fmt: skip


@pytest.fixture(scope="module")
def indexes(config: RunConfig) -> Indexes:
    return scanned(config)


def feed(config: RunConfig, indexes: Indexes, rank: int = 0, world_size: int = 1) -> RayDataFeed:
    return RayDataFeed(config, planned(config, indexes), indexes, rank, world_size)


def signature(parts: list[Minibatch]) -> Signature:
    """The minibatch that the ranks' parts make together, as bytes."""
    first = parts[0]
    assert {(p.step, p.task, p.global_batch) for p in parts} == {(first.step, first.task, first.global_batch)}
    assert [p.first_slot for p in parts] == np.cumsum([0, *(len(p.keys) for p in parts)])[:-1].tolist()
    assert len({(p.tokens.dtype, p.tokens.shape[1:], p.labels.dtype, p.labels.shape[1:]) for p in parts}) == 1
    return (
        first.step, first.task, b"".join(p.tokens.tobytes() for p in parts),
        b"".join(p.labels.tobytes() for p in parts), sum((p.keys for p in parts), ()),
        sum((p.bad for p in parts), ()),
    )  # fmt: skip


@pytest.fixture(scope="module")
def inline(config: RunConfig, indexes: Indexes) -> list[Signature]:
    """Every step, decoded in this process by one rank."""
    requests = Requests.of(config, planned(config, indexes), indexes.scans, 0, 1)
    return [signature(made) for made in InlineFeed(requests, make_decoder(config, indexes)).train(1)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_same_bytes_in_step_order_for_any_number_of_workers(
    config: RunConfig, indexes: Indexes, inline: list[Signature], world_size: int
) -> None:
    """Across a segment's boundary, with a broken picture and with parts that are empty."""
    streams = [feed(config, indexes, rank, world_size).train(1) for rank in range(world_size)]
    together = [signature([part for (part,) in parts]) for parts in zip(*streams, strict=True)]
    assert [(step, task) for step, task, *_ in together] == [
        (n, planned(config, indexes).schedule.tasks_at(n)[0][0]) for n in range(1, STEPS + 1)
    ]
    assert {task for _, task, *_ in together} == {"shapes", "sounds"}
    assert together == inline
    assert any(bad for *_, bad in together)


def test_starting_at_a_step_gives_the_tail(config: RunConfig, indexes: Indexes, inline: list[Signature]) -> None:
    """Segments are counted from the start, so their boundaries fall elsewhere."""
    assert [signature(made) for made in feed(config, indexes).train(4)] == inline[3:]
    assert list(feed(config, indexes).train(STEPS + 1)) == []


def test_accumulating_brings_a_minibatch_of_every_task(config: RunConfig, indexes: Indexes) -> None:
    schedule = config.schedule.model_copy(update={"kind": "accumulating", "steps": 6})
    found = list(feed(config.model_copy(update={"schedule": schedule}), indexes).train(1))
    assert [[(m.step, m.task) for m in made] for made in found] == [
        [(step, "shapes"), (step, "sounds")] for step in (1, 2, 3)
    ]


@pytest.mark.parametrize("world_size", [1, 2])
def test_evaluation_brings_every_held_out_example_once(
    config: RunConfig, indexes: Indexes, world_size: int
) -> None:
    made = [m for rank in range(world_size) for m in feed(config, indexes, rank, world_size).evaluation()]
    for task in config.tasks:
        keys = [key for m in made if m.task == task for key in m.keys]
        assert sorted(keys) == [e.key for e in indexes.scans[task].split("validation")]
        assert len(keys) == 12


def test_an_error_in_the_reading_thread_reaches_the_training_thread(config: RunConfig, indexes: Indexes) -> None:
    broken = feed(config, indexes)
    broken.decoder = replace(broken.decoder, tasks={})
    with pytest.raises(Exception, match="KeyError"):
        next(broken.train(1))


def test_a_feed_that_is_left_stops_reading(config: RunConfig, indexes: Indexes) -> None:
    def reading() -> int:
        return sum(t.name == "polyvit-feed" for t in threading.enumerate())

    until = time.monotonic() + 20
    while reading() and time.monotonic() < until:
        time.sleep(0.1)
    stream = feed(config, indexes).train(1)
    for _ in range(4):  # the next segment has begun
        next(stream)
    assert reading() == 2
    stream.close()
    while reading() and time.monotonic() < until:
        time.sleep(0.1)
    assert reading() == 0
