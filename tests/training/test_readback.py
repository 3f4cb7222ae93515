"""A step waits for nothing; its numbers come later: the same run, the same ends, whatever the lag."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from avbert_small import TINY, minibatch
from small import ArrayFeed, Heard, document, fresh, small_config
from sync_kit import META, HostSyncs, LateReadback, MetaCopies

from polyvit.checkpoint.state import TrainState, TrainUnit
from polyvit.config import RunConfig, validate_config
from polyvit.data.loading import Minibatch
from polyvit.data.loading.device_prefetch import DeviceMinibatch, on_host, staged
from polyvit.errors import UserError
from polyvit.model import build_model
from polyvit.schedule.schedule import build_schedule
from polyvit.training.loop import train
from polyvit.training.optim import build_optimiser
from polyvit.training.step import SingleProcess

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 20


def of_one_task(task: str, **keys: Any) -> RunConfig:
    """STEPS steps of one task of the small PolyViT."""
    changed = document()
    changed["tasks"] = {task: {**changed["tasks"][task], "steps": STEPS}}
    changed["train"] = {"log_every": 7, "checkpoint_every": 1000}
    changed["optim"] |= keys
    return validate_config(changed)


def audiovisual(loss: dict[str, Any], **model: Any) -> RunConfig:
    changed = {**TINY, "tasks": {"one": {**TINY["tasks"]["one"], **loss, "steps": STEPS}}}
    changed["model"] = {**TINY["model"], **model}
    return validate_config({**changed, "train": {"log_every": 7}})


CASES = {
    "image": of_one_task("picture", ema_decay=0.9),
    "video": of_one_task("clip"),
    "audio": of_one_task("sound"),
    "audio in microbatches": of_one_task("sound").model_copy(
        update={"train": of_one_task("sound").train.model_copy(update={"microbatch": 4})}
    ),
    "video as released": of_one_task("clip", clip_order="reference", inactive_params="momentum"),
    "audiovisual": audiovisual({}, depth=1),
    "audiovisual contrastive": audiovisual(
        {"loss": "contrastive", "metric": "retrieval"}, depth=1, sharing={"roles": "full"}
    ),
}


def of_steps(config: RunConfig, steps: int) -> RunConfig:
    """The config of one task, with another number of steps."""
    ((name, task),) = config.tasks.items()
    return config.model_copy(update={"tasks": {name: task.model_copy(update={"steps": steps})}})


class MetaFeed:
    """Minibatches whose copies are on `meta`, as a GPU's feed brings them; nothing to evaluate."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def train(self, start_step: int) -> Iterator[list[Minibatch]]:
        if "one" in self.config.tasks:
            steps: Iterator[list[Minibatch]] = (
                [minibatch(self.config, "one", n)] for n in range(start_step, self.config.tasks["one"].steps + 1)
            )
        else:
            steps = ArrayFeed(self.config).train(start_step)
        return staged(steps, MetaCopies())

    def evaluation(self) -> Iterator[Minibatch]:
        return iter(())


@pytest.mark.parametrize(
    ("name", "steps"),
    [(name, 6) for name in CASES if name != "audiovisual"]
    + [pytest.param(name, STEPS, marks=pytest.mark.slow) for name in CASES],
)
def test_no_step_waits_for_the_device(name: str, steps: int) -> None:
    """Steps of the loop on a device whose numbers cannot be read: nothing but the readback reads any."""
    config = of_steps(CASES[name], steps)
    model = build_model(config, seed=config.seed).to(META)
    optimiser = build_optimiser(dict(model.named_parameters()), config.optim)
    optimiser.fused = False  # what a GPU runs is one operation more that does not wait
    (task,) = config.tasks.values()
    readback, heard = LateReadback(2, task.batch), Heard()
    schedule, unit = build_schedule(config.schedule, config.tasks, config.seed), TrainUnit(model, optimiser)
    with HostSyncs() as syncs:
        train(unit, schedule, MetaFeed(config), config, SingleProcess(), TrainState(), heard, readback=readback)
    assert len(heard.snapshots) == steps
    assert syncs.operations > 100 * steps
    assert all(p.grad is None or p.grad.is_meta for p in model.parameters())
    assert not +syncs.waits
    assert readback.reads == [(n + 2, n) for n in range(1, steps - 1)] + [(steps, steps - 1), (steps, steps)]


def test_the_counter_counts() -> None:
    there, here = torch.zeros(3, device=META), torch.zeros(3)
    with HostSyncs() as syncs:
        here.to(META)
        here.to(META, non_blocking=True)
        there.copy_(here)
        torch.tensor([1.0], device=META)
        here.tolist()
        float(here[0])
        for read in (there[0].item, there.cpu, lambda: bool(there[0])):
            with pytest.raises((RuntimeError, NotImplementedError)):
                read()
    assert +syncs.waits == {
        "blocking _to_copy": 1, "blocking copy_": 1, "torch.tensor": 1, "item": 1, "cpu": 1, "__bool__": 1,
    }  # fmt: skip


class Kept(Heard):
    """Keeps what a checkpoint would hold."""

    def __init__(self, unit: TrainUnit) -> None:
        super().__init__()
        self.unit, self.kept = unit, {}  # type: ignore[var-annotated]
        self.calls = 0
        self.asked_to_stop_at: int | None = None

    def checkpoint(self, state: TrainState, last: bool) -> None:
        super().checkpoint(state, last)
        parameters = {n: p.detach().clone() for n, p in self.unit.model.named_parameters()}
        optimiser = {n: t.clone() for n, t in self.unit.optimiser.state().items()}
        self.kept[state.global_step] = (parameters, optimiser, copy.deepcopy(state))

    def stop_requested(self) -> bool:
        self.calls += 1
        return self.calls == self.asked_to_stop_at


def run(
    config: RunConfig, lag: int, start: Any = None, feed: ArrayFeed | None = None, stop_at: int | None = None
) -> Kept:
    """A run with numbers that come `lag` steps late, from the beginning or from what a checkpoint holds."""
    model, optimiser, schedule = fresh(config)
    state = TrainState()
    if start:
        parameters, slots, state = copy.deepcopy(start)
        model.load_state_dict(parameters)
        optimiser.load_state(slots)
    unit = TrainUnit(model, optimiser)
    heard = Kept(unit)
    heard.asked_to_stop_at = stop_at
    feed = feed or ArrayFeed(config, bad=BAD)
    train(unit, schedule, feed, config, SingleProcess(), state, heard, readback=LateReadback(lag))
    return heard


BAD = frozenset({("picture", 3), ("sound", 5)})
KEYS = ("train.log_every=4", "train.checkpoint_every=8", "train.eval_every=5", "data.max_bad_fraction=1")


def without_timings(points: list[tuple[int, dict[str, float]]]) -> list[tuple[int, dict[str, float]]]:
    return [(n, {k: v for k, v in values.items() if not k.startswith("pace/")}) for n, values in points]


def same_end(one: Kept, other: Kept) -> None:
    """Parameters, optimiser and counters of the last checkpoint, to the bit."""
    (p, o, s), (q, r, t) = (kept[max(kept)] for kept in (one.kept, other.kept))
    assert p.keys() == q.keys()
    assert o.keys() == r.keys()
    assert all(torch.equal(p[k], q[k]) for k in p)
    assert all(torch.equal(o[k], r[k]) for k in o)
    assert s == t


@pytest.mark.parametrize("lag", [1, 2, 5])
def test_a_run_is_the_same_whatever_the_lag(lag: int) -> None:
    """Bits, counters, quarantine, evaluations; every point of the curves once, at its step, with its numbers."""
    config = small_config(*KEYS)
    at_once, late = run(config, 0), run(config, lag)
    same_end(at_once, late)
    assert at_once.checkpoints == late.checkpoints == [8, 16, 18]
    assert without_timings(late.points) == without_timings(at_once.points)
    assert [n for n, _ in late.points] == [4, 5, 8, 10, 12, 15, 16, 18]
    assert [s["step"] for s in late.snapshots] == list(range(1, 19))
    assert [s["loss"] for s in late.snapshots] == [s["loss"] for s in at_once.snapshots]
    assert late.scores == at_once.scores
    assert at_once.kept[8][2].bad == late.kept[8][2].bad
    assert late.kept[18][2].quarantine


@pytest.mark.parametrize("cut", [8, 16])
def test_a_run_killed_after_a_checkpoint_ends_with_the_same_bits(cut: int) -> None:
    config = small_config(*KEYS)
    whole = run(config, 3)
    same_end(whole, run(config, 3, whole.kept[cut]))
    same_end(whole, run(config, 0, whole.kept[cut]))


def test_a_stop_acts_with_the_lag_and_the_rest_follows_on() -> None:
    """Asked for at step 6, known at step 8; no point of the curves is lost or comes twice."""
    config = small_config("train.log_every=4", "data.max_bad_fraction=1")
    whole, first = run(config, 2), run(config, 2, stop_at=6)
    assert first.checkpoints == [8]
    assert first.kept[8][2].stopped
    then = run(config, 2, first.kept[8])
    same_end(whole, then)
    assert [n for n, _ in first.points + then.points] == [4, 8, 12, 16, 18]
    assert without_timings(first.points + then.points) == without_timings(whole.points)


def test_a_stop_between_two_points_of_the_curves() -> None:
    config = small_config("train.log_every=7", "data.max_bad_fraction=1")
    first = run(config, 2, stop_at=7)
    assert first.checkpoints == [9]
    assert [n for n, _ in first.points] == [7, 9]
    losses = [s["loss"] for s in first.snapshots[7:]]
    told = [v for k, v in first.points[-1][1].items() if k.endswith("/loss")]
    assert sum(told) / len(told) == pytest.approx(sum(losses) / 2)


class Poisoned(ArrayFeed):
    """From step 7 on no number is a number; which minibatches were saved is kept."""

    def minibatch(self, batch: Any) -> Minibatch:
        built = super().minibatch(batch)
        if batch.step >= 7:
            inputs = {"tokens": np.full(built.inputs["tokens"].shape, np.nan, np.float32)}
            return replace(built, inputs=inputs)
        return built


def test_the_minibatch_that_broke_is_saved_though_others_came_after_it() -> None:
    """Steps 8, 9 and 10 were under way when step 7's loss was read: it is step 7 that is named and saved."""
    config = small_config("train.checkpoint_every=5")
    saved: list[Minibatch] = []

    class Saving(Heard):
        def anomaly(self, minibatch: Minibatch) -> str | None:
            saved.append(minibatch)
            return f"anomaly/{minibatch.step}"

    model, optimiser, schedule = fresh(config)
    state, heard = TrainState(), Saving()
    with pytest.raises(UserError, match="at step 7 ") as caught:
        train(
            TrainUnit(model, optimiser), schedule, Poisoned(config), config, SingleProcess(), state, heard,
            readback=LateReadback(3),
        )  # fmt: skip
    assert state.global_step == 10 == 7 + 3
    assert [m.step for m in saved] == [7]
    assert np.isnan(saved[0].inputs["tokens"]).all()
    assert "minibatch saved: anomaly/7" in caught.value.problems
    assert heard.checkpoints == [5]  # step 10's would have held what step 7 broke


def test_too_many_broken_files_end_the_run_at_the_same_step_of_the_data() -> None:
    config = small_config("data.max_bad_fraction=0.1", "tasks.sound.steps=30")
    messages = []
    for lag in (0, 2):
        feed = ArrayFeed(config, bad=frozenset(("sound", i) for i in range(15)))
        with pytest.raises(UserError) as caught:
            run(config, lag, feed=feed)
        messages.append((caught.value.message, caught.value.problems))
    assert messages[0] == messages[1]


def test_steps_in_flight_hold_no_memory_of_the_device() -> None:
    """The ring is of minibatches in host memory, as an anomaly is saved from."""
    config = CASES["image"]
    feed = MetaFeed(config)
    (on_device_too,) = next(feed.train(1))
    assert isinstance(on_device_too, DeviceMinibatch)
    kept = on_host(on_device_too)
    assert type(kept) is Minibatch
    assert kept.inputs is on_device_too.inputs
    assert (kept.step, kept.keys) == (on_device_too.step, on_device_too.keys)
