"""Checkpoints: exact resume bit for bit, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_kit import save_checkpoint
from safetensors.torch import load_file, save_file
from small import ArrayFeed, Heard, fresh, small_config

from polyvit.checkpoint.state import (
    TrainState,
    TrainUnit,
    load_model,
    load_trained,
    load_training,
    read_document,
)
from polyvit.config import RunConfig
from polyvit.data.loading.minibatch import Quarantined
from polyvit.errors import UserError
from polyvit.model.polyvit import PolyViT
from polyvit.training.drift import build_drift
from polyvit.training.ema import Ema
from polyvit.training.loop import train
from polyvit.training.loss_weights import learned_weights
from polyvit.training.step import SingleProcess

pytestmark = pytest.mark.usefixtures("one_thread")

BAD = frozenset({("picture", 3), ("sound", 5)})
LENIENT = "data.max_bad_fraction=1"


class Saved(Heard):
    """Events that write a real checkpoint."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        super().__init__()
        self.folder, self.config = folder, config
        self.model, self.optimiser, schedule = fresh(config)
        self.schedule = schedule
        ema = Ema(self.model, config.optim.ema_decay) if config.optim.ema_decay else None
        weights = learned_weights(config, torch.device("cpu"))
        self.learner = TrainUnit(self.model, self.optimiser, ema, weights, build_drift(self.model, config))
        self.hashes = {"schedule_hash": schedule.digest(), "index_hash": {"picture": "abc"}}

    def checkpoint(self, state: TrainState, last: bool = False) -> None:
        super().checkpoint(state, last)
        folder = self.folder / f"step_{state.global_step}"
        save_checkpoint(folder, self.learner, state, self.config, self.hashes)

    def run(self, resume: Path | None = None) -> TrainState:
        state = TrainState()
        if resume:
            state = load_training(resume, self.learner, self.hashes)
        feed = ArrayFeed(self.config, bad=BAD, schedule=self.schedule)
        return train(self.learner, self.schedule, feed, self.config, SingleProcess(), state, self)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.eval_every=5"],
        ["optim.momentum_dtype=bfloat16", "optim.inactive_params=momentum", "model.l_adapt=3"],
        ["optim.kind=adamw", "optim.lr=0.01", "optim.weight_decay=0.1"],
        ["schedule.kind=accumulating"],
        ["optim.ema_decay=0.9", "train.eval_every=5", "train.microbatch=4"],
        ["schedule.kind=accumulating", "schedule.loss_weights=uncertainty"],
        ["train.drift=true"],
    ],
    ids=["sgd", "bfloat16", "adamw", "accumulating", "ema", "uncertainty", "drift"],
)
def test_resume_is_exact_to_the_last_bit(tmp_path: Path, overrides: list[str]) -> None:
    """All steps straight == k steps + save + fresh objects + load + the rest: every file, every byte."""
    config = small_config(*overrides, "train.checkpoint_every=3", LENIENT)
    straight, resumed = Saved(tmp_path / "straight", config), Saved(tmp_path / "resumed", config)
    final = straight.run()
    total = len(straight.schedule)
    assert straight.checkpoints == [*range(3, total, 3), total]
    before = [p.clone() for p in resumed.model.parameters()]
    assert resumed.run(tmp_path / "straight" / "step_3") == final
    assert resumed.checkpoints == [c for c in straight.checkpoints if c > 3]
    for step in resumed.checkpoints:
        one, other = (bytes_of(run.folder / f"step_{step}") for run in (straight, resumed))
        more = {"ema.safetensors"} if config.optim.ema_decay else set()
        more |= {f"{name}.safetensors" for name in straight.learner.besides()}
        assert one.keys() == {"model.safetensors", "optimiser.safetensors", "state.json", "manifest.json"} | more
        assert one == other
    assert any(not torch.equal(p, q) for p, q in zip(before, resumed.model.parameters(), strict=True))
    if "schedule.kind=accumulating" not in overrides:
        assert {entry.key for entry in final.quarantine} == {"3", "5"}


@pytest.mark.parametrize("rule", ["loss_ratio", "exp3"])
def test_an_adaptive_run_killed_anywhere_takes_the_same_decisions(tmp_path: Path, rule: str) -> None:
    """From every checkpoint: inside an interval, at an evaluation, and before the first decision."""
    config = small_config(
        "schedule.kind=adaptive", f"schedule.adaptive.rule={rule}", "schedule.adaptive.exponent=20",
        "schedule.steps=24", "train.eval_every=4", "train.checkpoint_every=2", LENIENT,
    )  # fmt: skip
    straight = Saved(tmp_path / "straight", config)
    final = straight.run()
    assert [decision["step"] for decision in final.decisions] == [4, 8, 12, 16, 20]
    shares = [tuple(decision["shares"].values()) for decision in final.decisions]
    assert len(set(shares)) > 2
    assert straight.schedule.known == len(straight.schedule) == 24
    assert {k for _, values in straight.points for k in values if k.startswith("schedule/")} == {
        f"schedule/{task}/share" for task in config.tasks
    }
    for step in (2, 8, 14):
        resumed = Saved(tmp_path / f"from_{step}", config)
        assert resumed.run(tmp_path / "straight" / f"step_{step}") == final
        assert bytes_of(resumed.folder / "step_24") == bytes_of(straight.folder / "step_24")
        assert resumed.schedule.order.tolist() == straight.schedule.order.tolist()


def test_a_run_resumed_at_its_end_does_nothing(tmp_path: Path) -> None:
    config = small_config("train.checkpoint_every=100", LENIENT)
    first, again = Saved(tmp_path / "a", config), Saved(tmp_path / "b", config)
    final = first.run()
    assert again.run(tmp_path / "a" / f"step_{final.global_step}") == final
    assert again.checkpoints == again.points == []
    assert again.scores == first.scores[-1:]  # said once more, for a sweep that missed it
    assert all(torch.equal(p, q) for p, q in zip(first.model.parameters(), again.model.parameters(), strict=True))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Saved]:
    """A checkpoint after no step, and what wrote it."""
    events = Saved(tmp_path, small_config())
    state = TrainState(0, {"picture": 7}, {"picture": 1}, [Quarantined("picture", "k", "p", "r")], [{"step": 1}])
    events.checkpoint(state)
    return tmp_path / "step_0", events


def test_what_a_checkpoint_holds(saved: tuple[Path, Saved]) -> None:
    folder, events = saved
    document = read_document(folder)
    assert document["seed"] == 7
    assert document["global_step"] == 0
    assert document["schedule_hash"] == events.schedule.digest()
    assert document["quarantine"] == [{"task": "picture", "key": "k", "path": "p", "reason": "r"}]
    assert RunConfig.model_validate(document["config"]) == events.config
    state = load_training(folder, events.learner, events.hashes)
    assert state.quarantine == [Quarantined("picture", "k", "p", "r")]
    assert (state.read, state.bad, state.evaluations) == ({"picture": 7}, {"picture": 1}, [{"step": 1}])


@pytest.mark.parametrize("key", ["schedule_hash", "index_hash"])
def test_another_schedule_or_index_is_refused(saved: tuple[Path, Saved], key: str) -> None:
    folder, events = saved
    with pytest.raises(UserError, match=f"its {key.replace('_', ' ')} differs") as caught:
        load_training(folder, events.learner, {**events.hashes, key: "other"})
    assert "start a new run" in str(caught.value)
    assert str(folder) in str(caught.value)


def test_another_shape_is_refused_and_named(saved: tuple[Path, Saved]) -> None:
    folder, _ = saved
    config = small_config("tasks.picture.num_classes=9")
    model = PolyViT(config.model, config.tasks)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(UserError, match="does not fit the model of this config") as caught:
        load_model(folder, model)
    assert "heads.picture.bias: the model has (9,), the checkpoint (5,)" in str(caught.value)
    assert len(caught.value.problems) == 2
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    deeper = small_config("model.depth=9")
    with pytest.raises(UserError, match="does not fit") as caught:
        load_model(folder, PolyViT(deeper.model, deeper.tasks))
    assert "shared.blocks.2.attn.proj.bias: the model has (16,), the checkpoint None" in caught.value.problems
    assert len(caught.value.problems) == 10  # the first of many


def test_what_a_run_was_trained_without_cannot_begin_at_a_resume(tmp_path: Path) -> None:
    """Accounts of drift of half a run would be no accounts of it."""
    plain = Saved(tmp_path, small_config("train.checkpoint_every=9", LENIENT))
    plain.checkpoint(TrainState(global_step=9))
    drifting = Saved(tmp_path, small_config("train.checkpoint_every=9", "train.drift=true", LENIENT))
    with pytest.raises(UserError, match=r"it has no drift\.safetensors, so its run was trained without"):
        drifting.run(tmp_path / "step_9")


def test_another_optimiser_is_refused(saved: tuple[Path, Saved]) -> None:
    folder, events = saved
    for p in events.model.parameters():
        p.grad = torch.ones_like(p)
    events.optimiser.step(0.1)
    events.checkpoint(TrainState())
    config = small_config("optim.kind=adamw")
    model, optimiser, _ = fresh(config)
    with pytest.raises(UserError, match=r"optim\.kind=adamw"):
        load_training(folder, TrainUnit(model, optimiser), events.hashes)


@pytest.mark.parametrize("name", ["model.safetensors", "optimiser.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "absent", "noise"])
def test_damaged_tensors_are_a_clear_error(saved: tuple[Path, Saved], name: str, damage: str) -> None:
    folder, events = saved
    path = folder / name
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if damage == "cut" else b"not a tensor file")
    with pytest.raises(UserError, match=f"{name} cannot be read .* use another checkpoint"):
        load_training(folder, events.learner, events.hashes)


@pytest.mark.parametrize("text", ["{", "", "[]", "null", "\udcff"], ids=["open", "empty", "list", "null", "bytes"])
def test_a_damaged_state_is_a_clear_error(saved: tuple[Path, Saved], text: str) -> None:
    folder, _ = saved
    (folder / "state.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"state\.json cannot be read .* use another checkpoint"):
        read_document(folder)


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a checkpoint: it has no state\.json"):
        read_document(tmp_path)
    with pytest.raises(UserError, match="is not a checkpoint"):
        read_document(tmp_path / "nowhere")


def test_a_newer_format_is_refused(saved: tuple[Path, Saved]) -> None:
    folder, _ = saved
    document = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**document, "format": 99}))
    with pytest.raises(UserError, match="format 99; this version reads format 2"):
        read_document(folder)


def test_quarantine_is_sorted_and_holds_each_once() -> None:
    one, two = Quarantined("b", "k", "p", "r"), Quarantined("a", "z", "p", "r")
    state = TrainState()
    state.quarantined([one, one])
    state.quarantined([two, one])
    assert state.quarantine == [two, one]
    early = Quarantined("b", "k", "p", "another part is broken")
    for order in ([early, one], [one, early]):
        state = TrainState(quarantine=[two])
        for entry in order:
            state.quarantined([entry])
        assert state.quarantine == [two, early]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("global_step", None), ("global_step", "7"), ("global_step", -1), ("read", None), ("read", [1]),
        ("quarantine", [{"task": "x"}]), ("quarantine", [3]), ("microbatches", "x"), ("evaluations", [3]),
        ("evaluations", {}), ("classes", [1]), ("config", []),
    ],
)  # fmt: skip
def test_a_forged_state_is_one_message(saved: tuple[Path, Saved], key: str, value: Any) -> None:
    folder, events = saved
    document = json.loads((folder / "state.json").read_text())
    document[key] = value
    if value is None:
        del document[key]
    (folder / "state.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"state\.json is not what polyvit wrote") as caught:
        load_training(folder, events.learner, events.hashes)
    assert caught.value.problems[0].startswith(key)


def test_a_forged_config_is_one_message(saved: tuple[Path, Saved]) -> None:
    folder, _ = saved
    (folder / "manifest.json").unlink()
    document = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**document, "evaluations": [], "config": {"tasks": {"a": 1}}}))
    with pytest.raises(UserError, match=r"state\.json: the config has"):
        load_trained(folder)


@pytest.mark.parametrize("kind", ["nan", "infinite", "half", "double", "whole"])
def test_weights_that_cannot_be_used_are_refused(saved: tuple[Path, Saved], kind: str) -> None:
    folder, events = saved
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    types = {"half": torch.float16, "double": torch.float64, "whole": torch.int32}
    if kind in types:
        tensors[name] = tensors[name].to(types[kind])
    else:
        tensors[name].view(-1)[0] = float("nan" if kind == "nan" else "inf")
    save_file(tensors, path)
    with pytest.raises(UserError, match="has weights that cannot be used") as caught:
        load_model(folder, events.model)
    assert caught.value.problems[0].startswith(f"{name}: ")
    if kind in ("nan", "infinite"):
        load_model(folder, events.model, allow_nonfinite=True)


def test_an_optimiser_that_is_no_number_is_refused(tmp_path: Path) -> None:
    events = Saved(tmp_path, small_config())
    for p in events.model.parameters():
        p.grad = torch.ones_like(p)
    events.optimiser.step(0.1)
    events.checkpoint(TrainState())
    path = tmp_path / "step_0" / "optimiser.safetensors"
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(UserError, match="has weights that cannot be used") as caught:
        load_training(path.parent, events.learner, events.hashes)
    assert caught.value.problems == (f"{name}: NaN or infinite",)
