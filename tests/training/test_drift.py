"""Accounts of how far each task's steps moved shared weights: by hand, against the parameters, as data."""

import pytest
import torch
from small import ArrayFeed, Heard, fresh, small_config

from polyvit.checkpoint.state import TrainState
from polyvit.checkpoint.unit import TrainUnit
from polyvit.distributed import SingleProcess
from polyvit.errors import UserError
from polyvit.model.polyvit import PolyViT
from polyvit.schedule.schedule import schedule_of
from polyvit.training.drift import Drift, build_drift, drift_by_task, drift_bytes
from polyvit.training.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")
BLOCK = "shared.blocks.0."
CONFIG = small_config(
    "train.drift=true", "schedule.kind=task_by_task", "train.eval_every=6", "data.max_bad_fraction=1"
)


def test_what_an_account_says_by_hand() -> None:
    """Two tasks move a block by (3, 0) and (-1, 2): together by (2, 2); half of four parameters are followed."""
    state = {
        "a/shared.blocks.0": torch.tensor([3.0, 0.0]), "b/shared.blocks.0": torch.tensor([-1.0, 2.0]),
        "parameters/shared.blocks.0": torch.tensor(4),
        "a/shared.norm": torch.tensor([1.0]), "b/shared.norm": torch.tensor([0.0]),
        "parameters/shared.norm": torch.tensor(1),
    }  # fmt: skip
    document = drift_by_task(state)
    block = document["groups"]["shared.blocks.0"]
    assert (block["parameters"], block["measured"]) == (4, 2)
    assert block["norm"] == pytest.approx(4.0)  # twice (2, 2), squared, is 16
    assert block["tasks"]["a"] == pytest.approx({"norm": 18**0.5, "cosine": 6 / (3 * 8**0.5)})
    assert block["tasks"]["b"] == pytest.approx({"norm": 10**0.5, "cosine": 2 / (5**0.5 * 8**0.5)})
    assert document["tasks"] == block["tasks"]  # the norm is no block
    assert document["groups"]["shared.norm"]["tasks"]["b"] == {"norm": 0.0, "cosine": None}


def run(drifts: bool) -> tuple[PolyViT, Drift | None, Heard, dict[int, torch.Tensor]]:
    """A run with a checkpoint each step; the first shared block at each."""
    config = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"checkpoint_every": 1})})
    model, optimiser, schedule = fresh(config)
    drift, places = Drift(model) if drifts else None, {0: flat(model, BLOCK)}

    class Watched(Heard):
        def checkpoint(self, state: TrainState, last: bool) -> None:
            places[state.global_step] = flat(model, BLOCK)

    unit, events = TrainUnit(model, optimiser, drift=drift), Watched()
    feed = ArrayFeed(config, schedule=schedule)
    train(unit, schedule, feed, config, SingleProcess(), TrainState(), events)
    return model, drift, events, places


def test_accounts_add_up_to_the_movement() -> None:
    """Task by task: an account is the parameters behind the task's block less those before it. Parameters do not
    change by keeping it, to the bit."""
    plain, _, silent, _ = run(drifts=False)
    model, drift, events, places = run(drifts=True)
    assert torch.equal(flat(plain, ""), flat(model, ""))
    assert drift is not None
    schedule = schedule_of(CONFIG)
    for task in CONFIG.tasks:
        first, last = (int(schedule.steps_of(task)[n]) for n in (0, -1))
        moved = places[last] - places[first - 1]
        torch.testing.assert_close(drift.sums[task]["shared.blocks.0"], moved, rtol=0, atol=1e-5)
        assert moved.norm() > 1e-3
    curves = {step: {k: v for k, v in values.items() if k.startswith("drift/")} for step, values in events.points}
    assert [step for step, values in curves.items() if values] == [6, 12, 18]
    assert set(curves[18]) == {f"drift/{task}/{key}" for task in CONFIG.tasks for key in ("norm", "cosine")}
    assert curves[18]["drift/clip/norm"] == pytest.approx(drift_by_task(drift.state())["tasks"]["clip"]["norm"])
    assert not any(key.startswith("drift/") for _, values in silent.points for key in values)


def flat(model: torch.nn.Module, begins: str) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for n, p in model.named_parameters() if n.startswith(begins)])


def test_a_large_group_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the coordinates tells about how far all of them moved."""
    norms = []
    for most in (2**18, 600):
        monkeypatch.setattr("polyvit.training.interference.COORDINATES", most)
        model, _, _ = fresh(CONFIG)
        drift = build_drift(model, CONFIG)
        assert drift is not None
        drift.before()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
        drift.after("word")
        row = drift_by_task(drift.state())["groups"]["shared.blocks.0"]
        assert row["measured"] == min(most, row["parameters"])
        assert row["tasks"]["word"]["cosine"] == pytest.approx(1)
        norms.append(row["tasks"]["word"]["norm"])
    assert norms[0] == pytest.approx(row["parameters"] ** 0.5, rel=0.05)
    assert norms[1] == pytest.approx(norms[0], rel=0.1)


def test_the_memory_of_the_accounts_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they hold after a step, some groups sampled; nothing where there are none."""
    for module in ("drift", "interference"):
        monkeypatch.setattr(f"polyvit.training.{module}.COORDINATES", 300)
    model, _, _ = fresh(CONFIG)
    drift = Drift(model)
    drift.before()
    assert drift.last is not None
    held = [*drift.last.values(), *(x for sums in drift.sums.values() for x in sums.values())]
    assert {300} < {x.numel() for x in held}
    assert drift_bytes(model, CONFIG) == sum(x.numel() * x.element_size() for x in held)
    assert drift_bytes(model, CONFIG.with_train(drift=False)) == 0


def test_a_task_alone_has_no_account(caplog: pytest.LogCaptureFixture) -> None:
    """As in a single-task model of a sweep."""
    alone = CONFIG.model_copy(update={"tasks": {"clip": CONFIG.tasks["clip"]}})
    model, _, _ = fresh(alone)
    assert build_drift(model, alone) is None
    assert "no two tasks of this run train the same weights" in caplog.text
    model, _, _ = fresh(CONFIG)
    assert build_drift(model, CONFIG) is not None


@pytest.mark.parametrize(
    ("override", "words"), [("schedule.kind=accumulating", "trains all tasks at once"),
                            ("train.sharding=full", "train.drift needs whole weights")]
)  # fmt: skip
def test_where_a_movement_is_no_tasks_own_it_is_refused(override: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        small_config("train.drift=true", override)
    assert words in "\n".join([caught.value.message, *caught.value.problems])
