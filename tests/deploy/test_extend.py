"""New tasks for a trained model: the new run's config, and what comes out unchanged."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small import ArrayFeed, Heard, fresh, small_config
from use_kit import CLASSES, model_without, without

from polyvit.checkpoint.state import TrainState, TrainUnit, load_trained
from polyvit.config import RunConfig
from polyvit.deploy.extend import add_results, assemble, extension_config, write_extended
from polyvit.deploy.package import write_package
from polyvit.errors import UserError
from polyvit.training.initialisation import freeze_parts, initialise_model
from polyvit.training.loop import train
from polyvit.training.step import SingleProcess

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def base(tmp_path: Path) -> tuple[Path, RunConfig]:
    """A model that knows pictures and clips; `sound` and `word` are new, and so is their modality."""
    return model_without(tmp_path, "sound", "word")


def test_the_config_of_the_new_run(base: tuple[Path, RunConfig]) -> None:
    folder, old = base
    requested = small_config(
        "model.width=32", "model.audio.mel_bins=32", "optim.lr=0.25", "tasks.picture.steps=77"
    )
    config = extension_config(old, requested, folder)
    assert list(config.tasks) == ["sound", "word"]
    assert (config.model.width, config.model.image, config.model.audio) == (
        16,
        old.model.image,
        requested.model.audio,
    )
    assert (config.optim.lr, config.init.path) == (0.25, str(folder))
    assert config.optim.frozen == ("shared",)  # no old tokenizer is in this run
    config = extension_config(old, requested, folder, rehearse=["picture"])
    assert config.tasks["picture"].steps == 77
    assert config.optim.frozen == ("shared", "tokenizers.image", "adaptors.image", "heads.picture")
    config = extension_config(old, requested, folder, ["adaptors", "shared.blocks.0"], ["clip"])
    assert config.optim.frozen == ("adaptors.video", "shared.blocks.0")
    for freeze, rehearse, said in [
        (["heart"], [], "--freeze heart: give shared, tokenizers, adaptors, heads"),
        ([], ["dance"], "--rehearse dance: the model has no such task; it has picture, clip"),
    ]:
        with pytest.raises(UserError, match=said):
            extension_config(old, requested, folder, freeze, rehearse)
    with pytest.raises(UserError, match=r"no task that the model lacks .it has picture, clip"):
        extension_config(old, without(requested, "sound", "word"), folder)


def test_extending_keeps_the_old_tasks_to_the_bit(base: tuple[Path, RunConfig], tmp_path: Path) -> None:
    folder, _ = base
    write_package(folder, tmp_path / "base")
    old, old_config, document = load_trained(tmp_path / "base")
    config = extension_config(old_config, small_config("optim.lr=0.1"), tmp_path / "base")
    model, optimiser, schedule = fresh(config)
    freeze_parts(model, config.optim.frozen)
    report = initialise_model(model, config)
    assert set(report.loaded) == {name for name, _ in model.named_parameters() if name.startswith("shared.")}
    assert all(name.startswith(("tokenizers.audio", "adaptors.audio", "heads.")) for name in report.random)
    state = train(
        TrainUnit(model, optimiser), schedule, ArrayFeed(config), config, SingleProcess(), TrainState(), Heard()
    )
    whole, whole_config, changed = assemble(old, old_config, model, config)
    assert changed == []
    assert list(whole_config.tasks) == ["picture", "clip", "sound", "word"]
    tokens = {
        "picture": torch.from_numpy(np.random.default_rng(0).normal(size=(2, 4, 192))).float(),
        "sound": torch.from_numpy(np.random.default_rng(0).normal(size=(2, 2, 256))).float(),
    }
    with torch.no_grad():
        assert torch.equal(
            whole({"tokens": tokens["picture"]}, "picture"), old({"tokens": tokens["picture"]}, "picture")
        )
        assert torch.equal(
            whole({"tokens": tokens["sound"]}, "sound"), model.eval()({"tokens": tokens["sound"]}, "sound")
        )
    half = {"global_step": state.global_step, "classes": {"sound": CLASSES["sound"]},
            "config": config.model_dump(mode="json"), "index_hash": {"sound": "5"}}  # fmt: skip
    write_extended(tmp_path / "extended", whole, whole_config, document, half)
    again, again_config, told = load_trained(tmp_path / "extended")
    assert again_config == whole_config
    assert torch.equal(again.heads["word"].weight, model.heads["word"].weight)
    assert told["classes"] == CLASSES
    assert told["extended"]["frozen"] == ["shared"]


def test_an_extended_model_has_the_results_of_all_its_tasks(base: tuple[Path, RunConfig], tmp_path: Path) -> None:
    folder, _ = base
    model, _, _ = fresh(small_config())
    result = {"metric": "top1", "value": 0.25, "examples": 8, "skipped": 0, "protocol": "1 view"}
    config = small_config().model_dump(mode="json")
    half = {"global_step": 5, "config": config, "evaluations": [{"step": 5, "tasks": {"sound": result}}]}
    document = json.loads((folder / "state.json").read_text())
    write_extended(tmp_path / "extended", model, small_config(), document, half)
    add_results(tmp_path / "extended", {"picture": {**result, "value": 0.75}, "sound": {**result, "value": 0.5}})
    write_package(tmp_path / "extended", tmp_path / "release")
    card = (tmp_path / "release" / "model_card.md").read_text()
    results = card.partition("## Data")[0]
    rows = {line.split(" | ")[0].strip("| "): line for line in results.splitlines() if line.startswith("| ")}
    assert "| 0.7500 | 8 | 1 view |" in rows["picture"]
    assert "| 0.2500 | 8 | 1 view |" in rows["sound"]
    assert "| - | - | - |" in rows["word"]
    assert "after step 6." in card
