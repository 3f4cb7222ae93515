"""The paper's recipes: every number of the official configuration, exact sizes, and a tiny twin of each trained.

The expected numbers are typed in from ../shared/facts.md (sections 2, 4 and 6), not read from our code.
"""

import math

import numpy as np
import pytest
import torch

from pipelines.plan import plan_document
from polyvit.config import AudioTask, ImageTask, RunConfig, VideoTask, load_config, recipe_names
from polyvit.config.paper_tasks import KNOWN_TASKS
from polyvit.data.loading.minibatch import Minibatch, multi_hot
from polyvit.model import build_model, parameters_of
from polyvit.schedule.schedule import build_schedule
from polyvit.training.initialisation import freeze_parts
from polyvit.training.optim import build_optimiser
from polyvit.training.step import SingleProcess, train_step

SINGLE = {
    "single-imagenet": 86_859_496,
    "single-cifar100": 86_167_396,
    "single-cifar10": 86_098_186,
    "single-pets": 86_118_949,
    "single-resisc45": 86_125_101,
    "single-kinetics400": 88_929_424,
    "single-moments_in_time": 88_882_515,
    "single-audioset": 86_360_591,
    "single-vggsound": 86_192_949,
}
BY_MODALITY = {"images-only": 87_007_144, "videos-only": 89_190_115, "audio-only": 86_598_212}
TOTALS = {"polyvit-b-nine": 92_683_471, "polyvit-b-nine-l6": 177_737_935, **BY_MODALITY, **SINGLE}
OWN_NUMBERS = {"polyvit-l-video", "polyvit-b-audio"}
"""The paper's runs that the release has no configuration of."""

# classes, loss, metric, batch, steps, lr_coef, drop_path, mixup
TASKS = {
    "imagenet": (1000, "sigmoid", "top1", 512, 20_000, 0.03, 0.0, None),
    "cifar100": (100, "sigmoid", "top1", 512, 10_000, 0.03, 0.0, None),
    "cifar10": (10, "sigmoid", "top1", 512, 10_000, 0.03, 0.0, None),
    "pets": (37, "sigmoid", "top1", 512, 500, 0.03, 0.0, None),
    "resisc45": (45, "sigmoid", "top1", 512, 2_500, 0.1, 0.0, None),
    "kinetics400": (400, "softmax", "top1", 64, 100_680, 0.1, 0.0, None),
    "moments_in_time": (339, "softmax", "top1", 64, 123_640, 0.25, 0.0, None),
    "audioset": (527, "sigmoid", "map", 64, 15_900, 0.5, 0.3, 0.3),
    "vggsound": (309, "softmax", "top1", 64, 134_700, 0.5, 0.3, 0.3),
}


def total(name: str) -> int:
    return sum(parameters_of(load_config(name)).values())


def test_the_papers_recipes_are_there() -> None:
    assert {*TOTALS, *OWN_NUMBERS} <= set(recipe_names())


@pytest.mark.parametrize("name", TOTALS)
def test_parameters(name: str) -> None:
    assert total(name) == TOTALS[name]


def test_sums_of_parameters() -> None:
    assert sum(map(total, BY_MODALITY)) == 262_795_471
    assert sum(map(total, SINGLE)) == 781_734_607


# ---------------------------------------------------------------------------------- the official configuration


def test_the_nine_tasks() -> None:
    tasks = load_config("polyvit-b-nine").tasks
    found = {
        name: (
            task.num_classes, task.loss, task.metric, task.batch, task.steps, task.lr_coef, task.drop_path,
            task.mixup_alpha if isinstance(task, AudioTask) else None,
        )
        for name, task in tasks.items()
    }  # fmt: skip
    assert found == TASKS
    assert all(task.label_smoothing == 0 for task in tasks.values())


def test_steps_and_warmup() -> None:
    config = load_config("polyvit-b-nine")
    schedule = build_schedule(config.schedule, config.tasks, config.seed)
    assert (config.schedule.kind, len(schedule), config.warmup_steps) == ("weighted", 417_920, 47_330)
    assert schedule.counts() == {name: row[4] for name, row in TASKS.items()}


def test_model_and_optimiser() -> None:
    config = load_config("polyvit-b-nine")
    model, optim = config.model, config.optim
    assert (model.width, model.depth, model.num_heads, model.mlp_dim, model.l_adapt) == (768, 12, 12, 3072, 0)
    assert (model.gelu, model.norm_eps, model.drop_path_ramp) == ("tanh", 1e-6, "reference")
    assert [model.num_tokens(m) + 1 for m in config.modalities] == [577, 1569, 401]
    assert (model.image.grid, model.video.grid, model.audio.grid) == ((24, 24), (8, 14, 14), (50, 8))
    assert (model.audio.channels, model.audio.mean, model.audio.std) == (3, 0.0, 1.0)
    assert (optim.kind, optim.lr, optim.momentum, optim.weight_decay, optim.clip_norm) == ("sgd", 1, 0.9, 0, 1)
    assert (config.seed, config.init.kernel_init, config.init.path) == (42, "central", None)
    assert (config.train.eval_every, config.train.checkpoint_every, config.train.log_every) == (5000, 5000, 100)


def test_augmentation() -> None:
    for task in load_config("polyvit-b-nine").tasks.values():
        if isinstance(task, ImageTask):
            image = task.augment
            assert (image.crop_area, image.crop_ratio) == ((0.05, 1.0), (0.75, pytest.approx(1.333, abs=1e-3)))
            assert (image.flip, image.antialias, image.eval_resize) == (0.5, False, "square")
        elif isinstance(task, VideoTask):
            video = task.augment
            assert (video.frame_stride, video.resize_side, video.scale_jitter) == (2, None, (0.9, 1.33))
            assert (video.flip, video.colour_jitter, video.colour_drop) == (0.5, 0.8, 0.1)
        else:
            audio = task.augment
            assert (audio.freq_mask_count, audio.freq_mask_bins, audio.time_mask_count) == (1, 48, 0)


def test_the_l6_variant_differs_in_l_adapt_alone() -> None:
    nine, l6 = (
        load_config(name).model_dump(exclude={"name", "source"})
        for name in ("polyvit-b-nine", "polyvit-b-nine-l6")
    )
    assert l6["model"].pop("l_adapt") == 6
    assert nine["model"].pop("l_adapt") == 0
    assert l6 == nine


@pytest.mark.parametrize("name", [*BY_MODALITY, *SINGLE])
def test_baselines_train_their_tasks_as_the_nine_task_run_does(name: str) -> None:
    nine, config = load_config("polyvit-b-nine"), load_config(name)
    for task, entry in config.tasks.items():
        assert entry.model_copy(update={"warmup_steps": 0}) == nine.tasks[task].model_copy(
            update={"warmup_steps": 0}
        )
    assert (config.model, config.optim, config.train) == (nine.model, nine.optim, nine.train)
    if name in SINGLE:
        assert list(config.tasks) == [name.removeprefix("single-")]


def test_warmup_of_the_baselines() -> None:
    warmup = {name: load_config(name).warmup_steps for name in [*BY_MODALITY, *SINGLE]}
    assert warmup == {
        "images-only": 500, "videos-only": 8_390 + 30_910, "audio-only": 795 + 6_735,
        "single-imagenet": 500, "single-cifar100": 500, "single-cifar10": 500, "single-pets": 100,
        "single-resisc45": 200, "single-kinetics400": 8_390, "single-moments_in_time": 30_910,
        "single-audioset": 795, "single-vggsound": 6_735,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------ our own numbers


@pytest.mark.parametrize("name", sorted(OWN_NUMBERS))
def test_what_is_ours_says_so(name: str) -> None:
    config = load_config(name)
    assert "ours" in config.source
    own = [task for task in config.tasks if task not in TASKS]
    assert own
    assert all("ours" in (config.tasks[task].source or "") for task in own)


def test_the_large_video_model() -> None:
    config = load_config("polyvit-l-video")
    model = config.model
    assert (model.width, model.depth, model.num_heads, model.mlp_dim) == (1024, 24, 16, 4096)
    assert (model.video.tubelet_size, model.video.grid) == ((2, 16, 16), (16, 14, 14))
    assert {name: task.num_classes for name, task in config.tasks.items()} == {
        "kinetics400": 400, "kinetics600": 600, "moments_in_time": 339,
    }  # fmt: skip
    assert config.tasks["kinetics600"].layout == "kinetics"


def test_audioset_500k_reads_the_unbalanced_list() -> None:
    config = load_config("polyvit-b-audio")
    assert list(config.tasks) == ["audioset_500k", "vggsound"]
    assert config.tasks["audioset_500k"].layout == "audioset"
    assert config.tasks["audioset_500k"].options == {"train": "unbalanced"}


@pytest.mark.parametrize(("task", "epochs"), [("kinetics400", 30), ("kinetics600", 30), ("audioset_500k", 50)])
def test_derived_steps_and_warmup_are_whole_epochs(task: str, epochs: int) -> None:
    entry = KNOWN_TASKS[task]
    per_epoch = entry["train_examples"] // entry["batch"]
    assert entry["steps"] == epochs * per_epoch
    assert entry["warmup_steps"] == math.floor(2.5 * per_epoch)


# ------------------------------------------------------------------------------------------ every recipe


@pytest.mark.parametrize("name", recipe_names())
def test_the_plan_of_every_recipe(name: str) -> None:
    config = load_config(name)
    plan = plan_document(config, build_schedule(config.schedule, config.tasks, config.seed), {})
    assert plan["parameters"]["total"] == total(name)
    assert plan["steps"] == (config.schedule.steps or sum(task.steps for task in config.tasks.values()))
    assert sum(row["probability"] for row in plan["tasks"].values()) == pytest.approx(1)
    for task, row in plan["tasks"].items():
        assert row["lr"] == pytest.approx(config.optim.lr * config.tasks[task].lr_coef)
        assert row["epochs"] is not None


AVBERT_TWIN = [
    "model.width=16", "model.num_heads=2", "model.mlp_dim=32", "model.depth=2", "model.sharing.rank=4",
    "model.visual_width=2", "model.audio_width=2", "model.blocks=[1, 1, 1, 1]",
    "model.audiovisual={clips: 2, frames: 4, size: 16, mel_bins: 16, spectrogram_frames: 16}",
]  # fmt: skip


def twin(name: str) -> RunConfig:
    """A recipe with everything that costs time made tiny, and nothing else changed."""
    full = load_config(name)
    if full.model.kind == "avbert":
        return load_config(name, [*AVBERT_TWIN, *(f"tasks.{task}.batch=4" for task in full.tasks)])
    time = full.model.video.tubelet_size[0]
    model = {
        "width": 16, "num_heads": 2, "mlp_dim": 32, "depth": 4,
        "l_adapt": full.model.l_adapt * 4 // full.model.depth,
        "image.size": 8, "image.patch_size": 4,
        "video.frames": 2 * time, "video.size": 8, "video.tubelet_size": [time, 4, 4],
        "audio.frames": 16, "audio.mel_bins": 8, "audio.patch_size": 4,
    }  # fmt: skip
    overrides = [f"model.{key}={value}" for key, value in model.items()]
    return load_config(name, [*overrides, *(f"tasks.{task}.batch=4" for task in full.tasks)])


def random_minibatch(config: RunConfig, name: str, step: int, rng: np.random.Generator) -> Minibatch:
    task, arrays = config.tasks[name], {}
    for key, spec in config.model.input(task.modality).arrays.items():
        shape = (task.batch, *spec.shape)
        drawn = rng.integers(0, 256, shape) if spec.dtype == "uint8" else rng.normal(size=shape)
        arrays[key] = drawn.astype(spec.dtype)
    labels = multi_hot([(label,) for label in rng.integers(0, task.num_classes, task.batch)], task.num_classes)
    keys = tuple(map(str, range(task.batch)))
    return Minibatch(step, name, arrays, labels, keys, 0, task.batch)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", recipe_names())
def test_a_tiny_twin_of_every_recipe_trains(name: str) -> None:
    """Two optimiser steps of each task. Two, as a head that starts at zero passes no gradient in its first."""
    config, rng = twin(name), np.random.default_rng(0)
    model = build_model(config, seed=config.seed)
    freeze_parts(model, config.optim.frozen)
    assert model.parameter_table().keys() == parameters_of(load_config(name)).keys()
    optimiser = build_optimiser(dict(model.named_parameters()), config.optim)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    order = [*config.tasks, *config.tasks]
    for step, task in enumerate(order, start=1):
        minibatch = random_minibatch(config, task, step, rng)
        lr = config.optim.lr * config.tasks[task].lr_coef
        result = train_step(model, optimiser, [minibatch], lr, config, SingleProcess())
        assert np.isfinite(result.losses).all()
        assert result.grad_norm > 0
    reached = {key for task in config.tasks for key in model.touched(task)}
    for key, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), key
        assert torch.equal(parameter, before[key]) != (key in reached), key
