"""The feed through a real Ray: the plan's order and bytes, for any number of workers and decoders, any start."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from feed_kit import Broken, Fed, KilledOnce, Noted
from pipelines_kit import Signature, pair_config, planned, scanned, signature
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipelines.feed.worker_feed import RayFeed, decoders_of_a_worker, make_decoder
from pipelines.index import Indexes
from polyvit.config import RunConfig
from polyvit.data.loading import chunks
from polyvit.data.loading.minibatch import Decoder
from polyvit.data.loading.requests import InlineFeed, Requests

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

STEPS = 9
BACKENDS = ("ray_core", "ray_data")


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


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minibatches of a few kilobytes are decoded in parts, as large ones are."""
    for name in ("CHUNK_BYTES", "FIRST_BYTES", "PART_BYTES"):
        monkeypatch.setattr(chunks, name, 512)


def with_feed(config: RunConfig, **keys: object) -> RunConfig:
    return config.model_copy(update={"feed": config.feed.model_copy(update=keys)})


def feed(config: RunConfig, indexes: Indexes, rank: int = 0, world_size: int = 1) -> RayFeed:
    return RayFeed(config, planned(config, indexes), indexes, rank, world_size)


@pytest.fixture(scope="module")
def inline(config: RunConfig, indexes: Indexes) -> list[Signature]:
    """Every step, decoded in this process by one rank."""
    requests = Requests.of(config, planned(config, indexes), indexes.scans, 0, 1)
    made = [signature(found) for found in InlineFeed(requests, make_decoder(config, indexes)).train(1)]
    assert [step for step, *_ in made] == list(range(1, STEPS + 1))
    assert {task for _, task, *_ in made} == {"shapes", "sounds"}
    assert any(bad for *_, bad, _ in made)
    return made


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_bytes_in_step_order_for_any_number_of_workers(
    config: RunConfig, indexes: Indexes, inline: list[Signature], backend: str, world_size: int, in_parts: None
) -> None:
    """Across a segment's boundary, with a broken picture and with parts that are empty."""
    chosen = with_feed(config, backend=backend, decode_workers=3)
    streams = [feed(chosen, indexes, rank, world_size).train(1) for rank in range(world_size)]
    assert [signature([part for (part,) in made]) for made in zip(*streams, strict=True)] == inline


@pytest.mark.parametrize("backend", BACKENDS)
def test_starting_at_a_step_gives_the_tail(
    config: RunConfig, indexes: Indexes, inline: list[Signature], backend: str
) -> None:
    """Segments are counted from the start, so their boundaries fall elsewhere."""
    chosen = with_feed(config, backend=backend)
    assert [signature(made) for made in feed(chosen, indexes).train(4)] == inline[3:]
    assert list(feed(chosen, indexes).train(STEPS + 1)) == []


@pytest.mark.parametrize(("decoders", "decode_cpus"), [(1, 1.0), (4, 0.5), (2, 5.0)])
def test_any_number_of_decoding_processes(
    config: RunConfig, indexes: Indexes, inline: list[Signature], decoders: int, decode_cpus: float, in_parts: None
) -> None:
    """The last: one process at a time, whatever is asked for, as it takes all CPUs of the cluster."""
    data = config.data.model_copy(update={"decode_cpus": decode_cpus})
    chosen = with_feed(config.model_copy(update={"data": data}), decode_workers=decoders)
    assert [signature(made) for made in feed(chosen, indexes).train(1)] == inline


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_killed_decoding_process_changes_no_byte(
    config: RunConfig, indexes: Indexes, inline: list[Signature], backend: str, tmp_path: Path
) -> None:
    made, marker = feed(with_feed(config, backend=backend), indexes), tmp_path / "killed"
    known = [getattr(made.decoder, name) for name in Decoder.__dataclass_fields__]
    made.decoder = KilledOnce(*known, marker=marker)
    assert [signature(found) for found in made.train(1)] == inline
    assert marker.exists()


def test_accumulating_brings_a_minibatch_of_every_task(config: RunConfig, indexes: Indexes) -> None:
    schedule = config.schedule.model_copy(update={"kind": "accumulating", "steps": 6})
    found = list(feed(config.model_copy(update={"schedule": schedule}), indexes).train(1))
    assert [[(m.step, m.task) for m in made] for made in found] == [
        [(step, "shapes"), (step, "sounds")] for step in (1, 2, 3)
    ]


@pytest.mark.parametrize("world_size", [1, 2])
def test_evaluation_brings_every_held_out_example_once(
    config: RunConfig, indexes: Indexes, world_size: int, in_parts: None
) -> None:
    made = [m for rank in range(world_size) for m in feed(config, indexes, rank, world_size).evaluation()]
    for task in config.tasks:
        keys = [key for m in made if m.task == task for key in m.keys]
        assert sorted(keys) == [e.key for e in indexes.scans[task].split("validation")]
        assert len(keys) == 12


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_evaluation_while_training_waits_on_one_cpu(config: RunConfig, indexes: Indexes, backend: str) -> None:
    """Both feeds need the cluster's only decoding process: the one that idles does not hold it."""
    data = config.data.model_copy(update={"decode_cpus": 5.0})
    chosen = feed(with_feed(config.model_copy(update={"data": data}), backend=backend), indexes)
    training = chosen.train(1)
    next(training)
    assert len(list(chosen.evaluation())) == 2
    assert [made.step for (made,) in training] == list(range(2, STEPS + 1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_in_a_decoding_process_reaches_the_training_thread(
    config: RunConfig, indexes: Indexes, backend: str
) -> None:
    broken = feed(with_feed(config, backend=backend), indexes)
    broken.decoder = Broken(*(getattr(broken.decoder, name) for name in Decoder.__dataclass_fields__))
    with pytest.raises(Exception, match="no such thing"):
        next(broken.train(1))


def assert_that_threads_come_to(number: int) -> None:
    """Those that read ahead."""
    until = time.monotonic() + 300
    while (reading := sum(t.name == "polyvit-feed" for t in threading.enumerate())) != number:
        assert time.monotonic() < until, f"{reading} threads read, expected {number}"
        time.sleep(0.1)


@pytest.mark.parametrize(("backend", "threads"), [("ray_core", 1), ("ray_data", 3)])
def test_a_feed_that_is_left_stops_reading(
    config: RunConfig, indexes: Indexes, backend: str, threads: int
) -> None:
    assert_that_threads_come_to(0)
    # 4 steps used, 2 held by the feed. Of Ray Data, 2 are left in the first segment and 1 in the next, which has
    # begun with step 6: either thread has more to hand over (the end counts) than the one that may wait.
    stream = feed(with_feed(config, backend=backend, segment_steps=8, prefetch=1), indexes).train(1)
    for _ in range(4):
        next(stream)
    assert_that_threads_come_to(threads)
    stream.close()
    assert_that_threads_come_to(0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_feed_that_is_left_interrupts_no_process(
    config: RunConfig, indexes: Indexes, in_parts: None, tmp_path: Path, backend: str
) -> None:
    """Which may be in the middle of an import, and could never do it again."""
    left = feed(with_feed(config, decode_workers=1, backend=backend), indexes)
    left.decoder = Noted(*(getattr(left.decoder, name) for name in Decoder.__dataclass_fields__), tmp_path)
    stream = left.train(1)
    next(stream)
    stream.close()
    assert_that_threads_come_to(0)

    def steps(what: str) -> set[str]:
        return {path.name.split()[0] for path in tmp_path.glob(f"* {what}")}

    until = time.monotonic() + 300
    while steps("began") != steps("ended") | steps("was interrupted"):
        assert time.monotonic() < until, sorted(path.name for path in tmp_path.iterdir())
        time.sleep(0.1)
    assert len(steps("ended")) > 1
    assert not steps("was interrupted")


def test_the_share_of_the_clusters_decoders(config: RunConfig) -> None:
    """Five CPUs, one a train worker."""
    shares = [decoders_of_a_worker(config, world_size) for world_size in (1, 2, 3, 9)]
    assert shares == [4, 1, 1, 1]
    assert decoders_of_a_worker(with_feed(config, decode_workers=7), 2) == 7


def test_two_workers_of_two_trials_share_four_cpus(config: RunConfig, indexes: Indexes) -> None:
    """Each would take all four, and waits for the others in the middle: none that is idle holds a CPU."""
    data = config.data.model_copy(update={"decode_cpus": 1.25})  # of the five that there are
    chosen = with_feed(config.model_copy(update={"data": data}), backend="ray_data", decode_workers=4)
    middle = threading.Barrier(4)

    def consume(rank: int) -> list[int]:
        steps = []
        for (minibatch,) in feed(chosen, indexes, rank, 2).train(1):
            steps.append(minibatch.step)
            if minibatch.step == STEPS // 2:
                middle.wait(300)
        return steps

    with ThreadPoolExecutor(4) as trials:
        made = list(trials.map(consume, [0, 1, 0, 1]))
    assert made == [list(range(1, STEPS + 1))] * 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_trial_whose_placement_group_is_full_is_fed_all_the_same(
    config: RunConfig, indexes: Indexes, backend: str
) -> None:
    """What Tune starts hands its placement group on to the tasks that it starts; there is no room in it."""
    group = placement_group([{"CPU": 1}])
    ray.get(group.ready(), timeout=300)
    inside = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)

    trial = ray.remote(Fed).options(num_cpus=1, scheduling_strategy=inside).remote()
    try:
        # Without room it would wait for ever; on a busy machine its processes alone take a minute to start.
        assert ray.get(trial.steps.remote(feed(with_feed(config, backend=backend), indexes)), timeout=300) == list(
            range(1, STEPS + 1)
        )
    finally:
        remove_placement_group(group)
