"""The scaling model: bytes against the real model and the real tokens, seconds against sums done by hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import avbert_small
import numpy as np
import pytest
import torch
from arrays_kit import token_dtype, token_shape
from benchmarks import scaling_check
from small import SIZES, ArrayFeed, fresh, small_config

from pipelines import cli
from polyvit.config import RunConfig, load_config
from polyvit.cost.cluster_model import (
    DECODE,
    DecodeCost,
    Hardware,
    StepCost,
    checkpoint_bytes,
    local_batches,
    reduction,
    run_cost,
    step_cost,
    token_bytes,
    touched_parameters,
)
from polyvit.cost.exchange import exchanged
from polyvit.distributed import BUCKET_BYTES
from polyvit.model import build_model
from polyvit.model.flops import training_flops
from polyvit.objectives.pretraining import MEASURES
from polyvit.schedule.schedule import build_schedule
from polyvit.training.optim import build_optimiser
from polyvit.training.step import train_step

PLAIN = Hardware(
    peak_flops={"float32": 1e12, "bfloat16": 2e12}, utilisation=0.5, launch_ms=0.0, workers_per_node=4,
    link_gb_s=100.0, node_network_gb_s=10.0, link_efficiency=0.5, hop_us=0.0, overlap=0.0, memory_gb_s=1000.0,
    host_gb_s=10.0, storage_gb_s=0.5,
    decode={"image": DecodeCost(0.001, 0.0, 1000), "video": DecodeCost(0.1, 1e-6, 9000),
            "audio": DecodeCost(0.01, 0.0, 300)},
)  # fmt: skip


def test_gradients_are_what_a_step_touches() -> None:
    config = small_config()
    model, _, _ = fresh(config)
    assert touched_parameters(config) == {
        task: sum(p.numel() for p in model.touched(task).values()) for task in config.tasks
    }


class Counting:
    """Two ranks, of which one is here: the bytes of their sums are counted."""

    rank, size = 0, 2

    def __init__(self) -> None:
        self.sent, self.sums = 0, 0

    def sum_(self, flat: torch.Tensor) -> None:
        self.sums += 1
        self.sent += flat.numel() * flat.element_size()

    def sum_async(self, flat: torch.Tensor) -> "Counting":
        self.sum_(flat)
        return self

    def wait(self) -> None:
        """Nothing is under way."""

    def gather(self, value: object) -> list:
        return [value, value]


def test_the_bytes_of_a_real_step() -> None:
    """Gradients and four numbers: loss, bad examples, examples, flag; and the minibatch as it was fed."""
    config = small_config()
    model, optimiser, schedule = fresh(config)
    seen = set()
    for step in range(1, len(schedule) + 1):
        world = Counting()
        feed = ArrayFeed(config, world.rank, world.size)
        (minibatch,) = (feed.minibatch(batch) for batch in feed.plan.at(step, 0, 2))
        train_step(model, optimiser, [minibatch], 0.01, config, world)
        cost = step_cost(config, minibatch.task, 2, PLAIN)
        assert world.sent == cost.gradient_bytes + 4 * 4
        fed = minibatch.inputs["tokens"].nbytes + minibatch.labels.nbytes
        assert fed == cost.feed_bytes // cost.local_batch * minibatch.rows
        seen.add(minibatch.task)
    assert seen == set(SIZES)


EXCHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "mid": ({}, {}, False),
    "late": ({}, {"fusion": "late"}, False),
    "detached": ({"detach_targets": True}, {"fusion": "early"}, False),
    "norms apart": ({"sync_batch_norm": False}, {}, False),
    "checkpointed": ({}, {}, True),
}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("settings", "model", "again"), EXCHANGES.values(), ids=EXCHANGES)
def test_the_exchange_of_a_real_contrastive_step(
    settings: dict[str, Any], model: dict[str, Any], again: bool
) -> None:
    """Embeddings both ways, batch norm's sums, running averages: to the byte, and each message."""
    config = avbert_small.contrastive(settings, **model)
    config = config.model_copy(
        update={"train": config.train.model_copy(update={"activation_checkpointing": again})}
    )
    built, world = build_model(config, seed=1), Counting()
    built.activation_checkpointing = again
    optimiser = build_optimiser(dict(built.named_parameters()), config.optim)
    train_step(built, optimiser, [avbert_small.minibatch(config, "one", 1, slice(0, 2))], 0.01, config, world)
    cost, besides = step_cost(config, "one", 2, PLAIN), exchanged(config, "one")
    counters = 4 * (4 + 2 * len(MEASURES))
    assert world.sent == cost.gradient_bytes + counters + besides.bytes
    assert cost.exchange_bytes == besides.bytes  # 2 (n - 1) / n = 1
    gradients = -(-cost.gradient_bytes // BUCKET_BYTES)
    assert world.sums - besides.sums in (gradients, gradients + 1)
    assert cost.exchange_s == pytest.approx(besides.bytes / 50e9)
    slow = replace(PLAIN, hop_us=1e6)
    assert step_cost(config, "one", 2, slow).exchange_s == pytest.approx(2 * besides.sums, rel=1e-3)


def test_what_is_exchanged_where_nothing_is_contrasted() -> None:
    """A task with classes: running averages alone; PolyViT: nothing; one worker: nothing."""
    config = avbert_small.tiny()
    buffers = sum(buffer.numel() for buffer in build_model(config).buffers())
    assert exchanged(config, "one") == (4 * buffers, 1)
    assert exchanged(small_config(), "clip") == (0, 0)
    assert step_cost(avbert_small.contrastive(), "one", 1, PLAIN).exchange_s == 0


def test_the_plan_of_the_papers_pre_training_says_what_is_exchanged(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """256 sequences of 30 clips at width 768 on 64 workers."""
    kept = tmp_path / "plan.json"
    given = ["plan", "avbert-kinetics700", "train.workers=64", "--no-measure", "--json", str(kept)]
    assert cli.main(given) == 0
    cost = json.loads(kept.read_text())["needs"]["steps"]["kinetics700"]
    embeddings = 4 * 2 * (2 * 256 * 30 * 768 + 256 * 31 * 768)
    assert embeddings < cost["exchange_bytes"] / (2 * 63 / 64) < embeddings * 1.01
    said = " ".join(capsys.readouterr().out.split())
    share = f"kinetics700: {cost['exchange_bytes'] / 1e6:,.0f} of its "
    assert share in said
    assert f"in {cost['exchange_sums']} sums that nothing hides: {cost['exchange_s'] * 1e3:.2f} ms" in said


@pytest.mark.parametrize("modality", ["image", "video", "audio"])
def test_token_bytes(modality: Any) -> None:
    config = small_config()
    shape = token_shape(config.model.input(modality))
    assert token_bytes(config.model, modality) == np.zeros(shape, token_dtype(modality)).nbytes


def test_local_batches_and_pairs() -> None:
    config = small_config()
    assert local_batches(config, "picture", 3) == [2, 2, 3]
    assert local_batches(config, "sound", 2) == [4, 5]  # mixed in pairs
    nine = load_config("polyvit-b-nine")
    assert local_batches(nine, "audioset", 64).count(0) == 32  # 32 pairs on 64 workers
    assert set(local_batches(nine, "kinetics400", 64)) == {1}


def test_reduction() -> None:
    """90 GB of 100 GB/s links at half their rate; more than four workers share 10 GB/s between nodes."""
    assert reduction(9e9, 1, PLAIN) == 0
    assert reduction(9e9, 4, PLAIN) == pytest.approx(9 / 50)
    assert reduction(9e9, 5, PLAIN) == pytest.approx(9 / 5)
    # Two buckets through a tree of five workers: 2 x 2 x 3 hops.
    slow = replace(PLAIN, hop_us=1e6)
    assert reduction(2 * 2 * BUCKET_BYTES, 5, slow) == pytest.approx(12, abs=0.1)


def test_a_step_by_hand() -> None:
    """Video, 4 examples on 2 workers; every term apart."""
    config = small_config("train.precision=float32")
    cost = step_cost(config, "clip", 2, PLAIN)
    parameters = touched_parameters(config)["clip"]
    flops = training_flops(config.model, "video", 4)
    assert (cost.local_batch, cost.flops, cost.gradient_bytes) == (2, 2 * flops, 4 * parameters)
    assert cost.compute_s == cost.ideal_s == pytest.approx(2 * flops / 0.5e12)
    assert cost.wire_bytes == 4 * parameters  # 2 (n - 1) / n = 1
    assert cost.reduce_s == cost.exposed_s == pytest.approx(4 * parameters / 50e9)
    # Clipping reads twice and writes once, SGD reads three and writes two, flattening and back are four.
    assert cost.update_s == pytest.approx(12 * 4 * parameters / 1e12)
    values = 2 * 2 * 2 * (2 * 8 * 8 * 3)  # tubelets x numbers
    assert cost.feed_bytes == 2 * (values + 4)
    assert cost.copy_s == pytest.approx(cost.feed_bytes / 10e9)
    assert cost.decode_s == pytest.approx(2 * (0.1 + values * 1e-6))
    assert cost.read_bytes == 18_000
    assert cost.step_s == pytest.approx(cost.compute_s + cost.exposed_s + cost.update_s)
    assert replace(cost, copy_s=99.0).step_s == 99.0  # copies run beside the step before
    assert cost.cores == pytest.approx(cost.decode_s / cost.step_s)
    assert cost.efficiency == pytest.approx(cost.ideal_s / cost.step_s)


def test_what_changes_a_step() -> None:
    def cost(hardware: Hardware = PLAIN, workers: int = 2, *overrides: str) -> StepCost:
        return step_cost(small_config("train.precision=float32", *overrides), "clip", workers, hardware)

    plain = cost()
    assert cost(PLAIN, 1).wire_bytes == cost(PLAIN, 1).exposed_s == 0
    for precision in ("bfloat16", "auto"):  # of a GPU
        assert cost(PLAIN, 2, f"train.precision={precision}").compute_s == pytest.approx(plain.compute_s / 2)
    assert cost(replace(PLAIN, crowding=3.0)).compute_s == pytest.approx(3 * plain.compute_s)
    assert cost(replace(PLAIN, launch_ms=7.0)).compute_s == pytest.approx(0.007)
    again = cost(PLAIN, 2, "train.activation_checkpointing=true")
    assert again.compute_s == pytest.approx(4 / 3 * plain.compute_s)
    assert cost(PLAIN, 2, "train.sharding=full").wire_bytes == pytest.approx(1.5 * plain.wire_bytes)
    # The parameters are less than one bucket, which leaves after the backward pass: nothing is hidden.
    assert cost(replace(PLAIN, overlap=1.0)).exposed_s == plain.exposed_s


def test_overlap_hides_all_but_the_last_bucket() -> None:
    config = load_config("polyvit-b-nine", ["train.precision=float32"])
    hidden = step_cost(config, "imagenet", 8, Hardware(overlap=1.0))
    assert hidden.exposed_s == pytest.approx(hidden.reduce_s * BUCKET_BYTES / hidden.gradient_bytes)
    little = step_cost(config, "imagenet", 8, Hardware(overlap=1.0, peak_flops={"float32": 1e20}, launch_ms=0.3))
    assert little.exposed_s == pytest.approx(little.reduce_s - 0.2e-3)


def test_a_run() -> None:
    config = small_config("train.checkpoint_every=10", "optim.kind=adamw")
    steps = {"picture": 5, "clip": 4, "sound": 6, "word": 3}
    run = run_cost(config, steps, 2, PLAIN)
    seconds = sum(steps[name] * cost.step_s for name, cost in run.steps.items())
    assert run.hours == pytest.approx(seconds / 3600)
    work = sum(steps[name] * cost.decode_s for name, cost in run.steps.items())
    assert run.cores_mean == pytest.approx(work / seconds)
    assert run.cores_peak == run.steps["clip"].cores
    assert run.cores_mean < run.cores_peak
    assert run.idle_share(run.cores_mean) == run.idle_share(2 * run.cores_mean) == 0.0
    assert run.idle_share(run.cores_mean / 4) == pytest.approx(0.75)  # four times as long for its data
    assert run.checkpoint_bytes == checkpoint_bytes(config) == 12 * run_parameters(config)
    assert run.checkpoint_s == pytest.approx(run.checkpoint_bytes / 0.5e9)
    assert run.checkpoint_share == pytest.approx(run.checkpoint_s / (10 * seconds / 18))
    assert checkpoint_bytes(small_config()) == 8 * run_parameters(config)


def run_parameters(config: RunConfig) -> int:
    model, _, _ = fresh(config)
    return sum(p.numel() for p in model.parameters())


def test_cores_that_a_look_ahead_needs() -> None:
    """Steps of 1 s; a heavy task of 8 core-seconds, a light one of 2."""
    config = small_config()
    cost = step_cost(config, "clip", 1, PLAIN)
    heavy, light = (
        replace(cost, decode_s=work, compute_s=1.0, exposed_s=0.0, update_s=0.0, copy_s=0.0) for work in (8.0, 2.0)
    )
    costs, order = {"h": heavy, "l": light}, list("lhlhhllh")
    assert [scaling_check.cores_for(order, costs, ahead) for ahead in (1, 2, 4, 8, 99)] == [
        8.0,
        8.0,
        6.5,
        5.0,
        5.0,
    ]


def test_the_nine_tasks_need_more_cores_for_video_than_for_the_rest() -> None:
    """The recipe of docs/scaling.md: what it says of one worker of eight."""
    config = load_config("polyvit-b-nine", ["train.precision=bfloat16", "train.workers=8"])
    run = run_cost(config, build_schedule(config.schedule, config.tasks, config.seed).counts(), 8)
    assert run.steps["imagenet"].gradient_bytes == 4 * 86_859_496  # facts of the single-task models
    assert run.steps["vggsound"].gradient_bytes == 4 * 86_192_949
    assert run.checkpoint_bytes == 8 * 92_683_471
    assert run.steps["kinetics400"].feed_bytes == 8 * (1568 * 3072 + 400)
    assert run.cores_peak == max(run.steps[name].cores for name in ("kinetics400", "moments_in_time"))
    assert DECODE["image"].seconds(224 * 224 * 3) == pytest.approx(1 / 1065, rel=1e-3)


def test_the_plan_prints_it(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    """`polyvit plan`: the table, the cores, and the same as data."""
    out = tmp_path / "plan.json"
    arguments = [
        "plan",
        "polyvit-b-nine",
        "train.workers=8",
        "train.precision=bfloat16",
        "--no-measure",
        "--json",
        str(out),
    ]
    assert cli.main(arguments) == 0
    needs, printed = json.loads(out.read_text())["needs"], " ".join(capsys.readouterr().out.split())
    assert (needs["workers"], needs["checkpoint_bytes"]) == (8, 8 * 92_683_471)
    assert needs["steps"]["kinetics400"]["local_batch"] == 8
    assert f"CPU cores per GPU needed to decode: {needs['cores_peak']:.1f} so that no step ever waits" in printed
    assert f"{needs['cores_mean']:.1f} on average" in printed
    assert "40% of 989 TFLOP/s (bfloat16)" in printed


def test_the_tables_of_the_page() -> None:
    """docs/scaling.md holds what the model says today; else print it anew with `--tables`."""
    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
    assert scaling_check.tables() in page
