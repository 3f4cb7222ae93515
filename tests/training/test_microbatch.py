"""Microbatches: the same gradients; pairs stay together; the count of bytes; what is derived from it."""

from itertools import pairwise

import psutil
import pytest
import torch
from small import ArrayFeed, fresh, small_config

import polyvit.training.microbatch
from polyvit.config import load_config
from polyvit.data.loading import requests
from polyvit.data.loading.example import example_bytes
from polyvit.data.loading.requests import eval_rows
from polyvit.distributed import SingleProcess
from polyvit.errors import UserError
from polyvit.model.polyvit import PolyViT
from polyvit.training.microbatch import (
    FakePass,
    PeakBytes,
    derive_eval_batch,
    derive_microbatches,
    free_bytes,
    largest_fit,
    pass_peak,
    sure_bytes,
    views_that_fit,
)
from polyvit.training.step import parts, train_step

pytestmark = pytest.mark.usefixtures("one_thread")
TASKS = ("picture", "clip", "sound", "word")
VIEWS = {"picture": 1, "clip": 3, "sound": 1, "word": 1}
"""Of an evaluation, with three clips of a video."""


@pytest.mark.parametrize("keys", [(), ("schedule.kind=accumulating",), ("train.activation_checkpointing=true",)])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_gradients_and_losses_do_not_depend_on_the_microbatch(most: int, keys: tuple[str, ...]) -> None:
    """With mixup, drop path and odd parts. Float32 sums in another order."""
    plain = small_config("optim.clip_norm=null")
    config = small_config("optim.clip_norm=null", *keys)
    feed = ArrayFeed(config)
    steps = range(1, 5) if config.schedule.kind == "weighted" else (1,)
    for number in steps:
        minibatches = [feed.minibatch(batch) for batch in feed.plan.at(number)]
        results, gradients = [], []
        for used, microbatches in ((plain, None), (config, dict.fromkeys(TASKS, most))):
            model, optimiser, _ = fresh(used)
            model.activation_checkpointing = used.train.activation_checkpointing
            with torch.no_grad():
                for head in model.heads.values():
                    head.weight.normal_(generator=torch.Generator().manual_seed(0))
            results.append(
                train_step(model, optimiser, minibatches, 0.1, used, SingleProcess(), microbatches=microbatches)
            )
            gradients.append({n: p.grad for n, p in model.named_parameters()})
        assert results[1].losses == pytest.approx(results[0].losses, rel=1e-5)
        assert results[1].examples == results[0].examples
        assert results[1].grad_norm == pytest.approx(results[0].grad_norm, rel=1e-5)
        for name, expected in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-5, msg=name)


def test_the_config_key_is_the_default_and_the_mapping_wins() -> None:
    config = small_config("train.microbatch=2")
    sizes: list[int] = []

    class Watched(PolyViT):
        def forward(self, inputs, task, keep=None):  # type: ignore[no-untyped-def]
            sizes.append(len(inputs["tokens"]))
            return super().forward(inputs, task, keep)

    model, optimiser, schedule = fresh(config)
    model.__class__ = Watched
    feed = ArrayFeed(config)
    minibatches = [feed.minibatch(batch) for batch in feed.plan.at(int(schedule.steps_of("sound")[0]))]
    train_step(model, optimiser, minibatches, 0.1, config, SingleProcess())
    train_step(model, optimiser, minibatches, 0.1, config, SingleProcess(), microbatches={"sound": 4})
    assert sizes == [2, 2, 2, 2, 1, 2, 4, 3]


@pytest.mark.parametrize("task", TASKS)
def test_accumulated_passes_are_the_step_of_the_whole_minibatch(task: str) -> None:
    """As `accumulate` says, or as far as there are examples or pairs; gradients equal up to rounding."""
    gradients, counts = [], []
    for keys in ((), ("train.accumulate=2",), (f"tasks.{task}.accumulate=2", "train.accumulate=1")):
        config = small_config("tasks.word.batch=4", *keys)
        model, optimiser, schedule = fresh(config)
        feed = ArrayFeed(config)
        minibatches = [feed.minibatch(batch) for batch in feed.plan.at(int(schedule.steps_of(task)[0]))]
        counts.append(len(parts(minibatches[0], None, config, 1)))
        train_step(model, optimiser, minibatches, 0.1, config, SingleProcess())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert counts == [1, 2, 2]
    for others in gradients[1:]:
        assert others.keys() == gradients[0].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_more_passes_than_examples_are_refused() -> None:
    with pytest.raises(UserError) as refused:
        small_config("tasks.picture.accumulate=8", "train.accumulate=4")
    assert [line.split(" is")[0] for line in refused.value.problems] == [
        "tasks.picture.accumulate=8", "train.accumulate=4",
    ]  # fmt: skip
    assert (
        "train.accumulate=4 is more than the 1 pairs of examples of tasks.word.batch=3"
        in refused.value.problems[1]
    )


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 9, 100])
def test_parts(most: int, size: int) -> None:
    """They are whole in order, no larger than asked, as many on every rank, pairs together."""
    config = small_config()
    schedule = fresh(config)[2]
    for task in TASKS:
        pair = 2 if task in ("sound", "word") else 1
        counts = set()
        for rank in range(size):
            feed = ArrayFeed(config, rank, size)
            (batch,) = feed.plan.at(int(schedule.steps_of(task)[0]), rank, size)
            whole = feed.minibatch(batch)
            found = parts(whole, most, config, size)
            counts.add(len(found))
            assert torch.equal(
                torch.cat([torch.from_numpy(part.inputs["tokens"]) for part in found]),
                torch.from_numpy(whole.inputs["tokens"]),
            )
            assert sum(len(part.labels) for part in found) == len(whole.labels)
            assert all(part.rows <= max(most, pair) for part in found)
            assert all(b.first_slot - a.first_slot == a.rows for a, b in pairwise(found))
            assert all(a.rows % pair == 0 for a, b in pairwise(found) if b.rows)
        assert len(counts) == 1


@pytest.mark.parametrize("keys", [(), ("train.activation_checkpointing=true",), ("train.precision=bfloat16",)])
def test_a_fake_pass_has_the_peak_of_a_real_one(keys: tuple[str, ...]) -> None:
    config = small_config(*keys)
    for task in TASKS:
        model = PolyViT(config.model, {task: config.tasks[task]})
        model.activation_checkpointing = config.train.activation_checkpointing
        assert FakePass(config, task).peak(8) == pass_peak(model, config, task, 8)


@pytest.mark.parametrize(
    "keys", [(), ("model.width=2", "model.num_heads=1", "model.mlp_dim=1"), ("model.depth=1",)]
)
def test_what_is_surely_enough_is_more_than_the_peak(keys: tuple[str, ...]) -> None:
    config = load_config("demo", keys)
    for name in ("imagenet", "kinetics400", "audioset"):
        assert FakePass(config, name).peak(8) < sure_bytes(config, name, 8) < 2e9


def test_peak_bytes_by_hand() -> None:
    with PeakBytes() as counted:
        a = torch.ones(100)
        b = a + 1
        c = b.view(10, 10)  # no storage of its own
        del a
        d = c.sum()
    assert (counted.peak, counted.now) == (800, 404)
    assert d == 200


def test_activation_checkpointing_needs_less() -> None:
    plain, thrifty = (
        FakePass(small_config("model.depth=8", f"train.activation_checkpointing={on}"), "clip").peak(32)
        for on in ("false", "true")
    )
    assert thrifty < 0.5 * plain


def test_largest_fit() -> None:
    for budget in range(0, 400, 7):
        asked = []

        def need(n: int, asked: list[int] = asked) -> int:
            asked.append(n)
            return 30 + 3 * n + n % 3

        found = largest_fit(need, budget, 100)
        assert found == max((n for n in range(1, 101) if need(n) <= budget), default=0)
    assert largest_fit(lambda n: n, 10**9, 5) == 5


def test_microbatches_fill_the_free_memory_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config("tasks.clip.batch=64", "tasks.sound.batch=200")
    model, device = fresh(config)[0], torch.device("cpu")
    assert derive_microbatches(model, config, SingleProcess(), device) == {
        "picture": 7, "clip": 64, "sound": 200, "word": 3
    }  # fmt: skip
    clip = FakePass(config, "clip")
    reserved = sum(p.numel() for p in model.parameters()) * 8  # momentum and temporaries
    free = 2 * (clip.peak(20) + reserved)
    monkeypatch.setattr(polyvit.training.microbatch, "free_bytes", lambda device: free)
    found = derive_microbatches(model, config, SingleProcess(), device)
    assert found["clip"] == 20
    sound = FakePass(config, "sound")
    assert found["sound"] % 2 == 0
    assert sound.peak(found["sound"]) <= clip.peak(20) < sound.peak(found["sound"] + 2)
    asked = small_config("train.microbatch=5")
    assert derive_microbatches(model, asked, SingleProcess(), device) == {
        "picture": 5,
        "clip": 4,
        "sound": 4,
        "word": 3,
    }


def test_too_little_memory_is_tried_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(polyvit.training.microbatch, "free_bytes", lambda device: 1000)
    config = small_config()
    found = derive_microbatches(fresh(config)[0], config, SingleProcess(), torch.device("cpu"))
    assert found == {"picture": 1, "clip": 1, "sound": 2, "word": 2}
    assert "train.activation_checkpointing=true" in caplog.text


class Poor:
    """Rank 0 of two, whose other rank has little memory; both on one machine."""

    rank, size = 0, 2

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def gather(self, value: object) -> list:
        return [value, self.budget if isinstance(value, int) else value]


def test_all_ranks_take_the_least() -> None:
    """Rank 0 has room for everything, the other rank for one clip."""
    config = small_config()
    world = Poor(FakePass(config, "clip").peak(1))
    found = derive_microbatches(fresh(config)[0], config, world, torch.device("cpu"))  # type: ignore[arg-type]
    assert found == {"picture": 4, "clip": 1, "sound": 2, "word": 2}


def test_evaluation_minibatches_fill_the_memory_of_a_gpu_and_no_more() -> None:
    """On a CPU they stay at 64 views; on a GPU each task's forward pass fits."""
    config, cpu = small_config("tasks.clip.eval_clips=3"), torch.device("cpu")
    model = fresh(config)[0]
    assert derive_eval_batch(model, config, SingleProcess(), cpu) == 64
    assert derive_eval_batch(model, small_config("train.eval_batch=5"), SingleProcess(), torch.device("cuda")) == 5
    need = {
        views: max(FakePass(config, name).evaluation_peak(views // per * per) for name, per in VIEWS.items())
        for views in (64, 128, 256)
    }
    assert need[128] > need[64] > 64 * 4 * example_bytes(config.model.input("image"))
    for views in (128, 256):
        assert views_that_fit(config, need[views]) == views
        assert views_that_fit(config, need[views] - 1) == views // 2
    assert views_that_fit(config, 0) == 64


def test_evaluation_minibatches_hold_whole_examples_and_few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config("tasks.clip.eval_clips=3", "train.eval_batch=200")
    assert [eval_rows(config, name) for name in TASKS] == [200, 198, 200, 200]
    monkeypatch.setattr(requests, "EVAL_BYTES", 100 * example_bytes(config.model.input("video")))
    assert eval_rows(config, "clip") == 99
    monkeypatch.setattr(requests, "EVAL_BYTES", 1)
    assert [eval_rows(config, name) for name in TASKS] == [64, 63, 64, 64]


def test_free_bytes() -> None:
    assert 0 < free_bytes(torch.device("cpu")) <= psutil.virtual_memory().total


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_count_covers_a_gpu() -> None:
    """The GPU's own kernels may differ from the CPU's; the share of SHARE is for that."""
    config = small_config("model.width=256", "model.num_heads=4", "model.mlp_dim=1024", "train.precision=bfloat16")
    model, optimiser, schedule = fresh(config)
    model.cuda()
    feed = ArrayFeed(config)
    minibatches = [feed.minibatch(batch) for batch in feed.plan.at(int(schedule.steps_of("clip")[0]))]
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    train_step(model, optimiser, minibatches, 0.0, config, SingleProcess())
    used = torch.cuda.max_memory_allocated() - before
    assert used < FakePass(config, "clip").peak(4) / polyvit.training.microbatch.SHARE["cuda"] + 16 * 2**20
