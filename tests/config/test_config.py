"""Config errors: every level names the nearest key, all problems at once; derived numbers of the sections."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from small import document, small_config

from polyvit.config import AudioInput, ImageInput, ModelConfig, RunConfig, VideoInput, validate_config
from polyvit.config.loader import known_keys
from polyvit.errors import UserError


def problems(changed: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        validate_config(changed)
    count = len(caught.value.problems)
    assert caught.value.message == f"the config has {count} problem{'s' if count != 1 else ''}:"
    return caught.value.problems


def with_key(path: str, value: Any) -> dict[str, Any]:
    changed = document()
    place = changed
    *parents, last = path.split(".")
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("sede", "seed"),
        ("model.wdth", "width"),
        ("model.image.patchsize", "patch_size"),
        ("model.video.tubelet", "tubelet_size"),
        ("model.audio.mels_bin", "mel_bins"),
        ("tasks.picture.num_clases", "num_classes"),
        ("tasks.picture.augment.crop_aera", "crop_area"),
        ("tasks.clip.augment.frames_stride", "frame_stride"),
        ("tasks.sound.augment.freq_mask_bin", "freq_mask_bins"),
        ("tasks.sound.mixup", "mixup_alpha"),
        ("schedule.kinds", "kind"),
        ("optim.learning", "warmup_steps"),
        ("data.max_bad", "max_bad_fraction"),
        ("feed.segments", "segment_steps"),
        ("train.worker", "workers"),
        ("tracking.experiments", "experiment"),
    ],
)
def test_an_unknown_key_names_the_nearest(path: str, nearest: str) -> None:
    (line,) = problems(with_key(path, 1))
    if path == "optim.learning":  # nothing is near: all are named
        assert line.startswith(f"{path}: unknown key; known here: kind, lr, momentum")
    else:
        assert line == f"{path}: unknown key; did you mean {nearest}?"


def test_a_key_of_another_modality_is_unknown() -> None:
    (line,) = problems(with_key("tasks.clip.mixup_alpha", 0.3))
    assert line.startswith("tasks.clip.mixup_alpha: unknown key")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("model.width", "wide", ["model.width", "integer", "'wide'"]),
        ("model.width", 0, ["model.width", "greater than 0", "0"]),
        ("model.image.size", [16, 16, 16], ["model.image.size", "at most 2"]),
        ("tasks.picture.loss", "softmx", ["tasks.picture.loss", "'softmax', 'sigmoid'", "softmx"]),
        ("tasks.picture.layout", "imagenets", ["tasks.picture.layout", "imagenet, ", "or parquet", "'imagenets'"]),
        ("tasks.picture.drop_path", 1.5, ["tasks.picture.drop_path", "less than or equal to 1", "1.5"]),
        ("tasks.picture.steps", 0, ["tasks.picture.steps", "greater than 0"]),
        ("tasks.picture", 3, ["tasks.picture"]),
        (
            "tasks.picture.modality",
            "smell",
            ["tasks.picture.modality", "'smell'", "image, video, audio or audiovisual"],
        ),
        ("schedule.kind", "random", ["schedule.kind", "'task_by_task'", "random"]),
        ("data.max_bad_fraction", 2, ["data.max_bad_fraction", "less than or equal to 1"]),
        ("train", 3, ["train"]),
        ("tasks", None, ["tasks", "dictionary"]),
    ],
)
def test_a_wrong_value_names_its_key_and_what_is_allowed(path: str, value: Any, words: list[str]) -> None:
    (line,) = problems(with_key(path, value))
    for word in words:
        assert word in line


def test_missing_keys() -> None:
    changed = document()
    del changed["tasks"]["picture"]["steps"]
    del changed["tasks"]["clip"]["modality"]
    assert problems(changed) == (
        "tasks.picture.steps: missing; give a value",
        "tasks.clip.modality: missing; give image, video, audio or audiovisual",
    )
    assert problems({}) == ("tasks: missing; give a value",)


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("tasks", {}, "tasks: empty; give at least one task"),
        ("model.num_heads", 3, "model.width=16 must be a multiple of model.num_heads=3"),
        ("model.l_adapt", 4, "model.l_adapt=4 must be at most model.depth=3"),
        ("model.image.size", 20, "model.image: height 20 is not divided by its patch side 8;"
         " the nearest that fit are 16 and 24"),
        ("model.video.frames", 5, "model.video: frames 5 is not divided by its patch side 2;"
         " the nearest that fit are 4 and 6"),
        ("model.audio.mel_bins", 8, "model.audio: mel_bins 8 is not divided by its patch side 16;"
         " the nearest that fit are 16"),
        ("model.audio.stride", [16, 10], None),
        ("model.audio", {"frames": 1024, "mel_bins": 128, "patch_size": 16, "stride": 10}, None),
        ("model.audio", {"frames": 1024, "mel_bins": 126, "patch_size": 16, "stride": [10, 16]}, "model.audio:"
         " mel_bins 126 is not divided by its patch side 16; the nearest that fit are 112 and 128"),
        ("model.audio", {"frames": 32, "mel_bins": 8, "patch_size": 16, "stride": 10}, "model.audio:"
         " mel_bins 8 is not divided by its patch side 16 at stride 10; the nearest that fit are 16"),
        ("model.image", {"size": 21, "patch_size": 8, "stride": [4, 8]}, "model.image:"
         " width 21 is not divided by its patch side 8; the nearest that fit are 16 and 24"),
        ("train.workers", 5, "tasks.clip.batch=4 must be at least train.workers=5:"
         " every worker takes a part of each minibatch"),
    ],
)  # fmt: skip
def test_contradictions_between_keys(path: str, value: Any, line: str | None) -> None:
    if line is None:
        validate_config(with_key(path, value))  # one patch, whatever the stride; AST, with a rest on both sides
    else:
        assert line in problems(with_key(path, value))


def test_adamw_with_moving_inactive_parameters() -> None:
    changed = with_key("optim.kind", "adamw")
    changed["optim"]["inactive_params"] = "momentum"
    assert problems(changed) == (
        "optim.inactive_params=momentum needs optim.kind=sgd; with adamw it must be frozen",
    )


@pytest.mark.parametrize("name", ["a.b", "a/b", "", "a b"])
def test_a_task_name_is_a_folder_and_a_module_name(name: str) -> None:
    changed = document()
    changed["tasks"][name] = changed["tasks"].pop("word")
    assert problems(changed) == (f"tasks.{name}: a task's name may hold letters, digits, '_' and '-' only",)


def test_all_problems_at_once() -> None:
    """Wrong keys, wrong values, and the contradictions behind them."""
    changed = with_key("model.num_heads", 3)
    changed["optim"]["lrr"] = 1
    changed["tasks"]["sound"]["mixup_alpha"] = -1
    changed["tasks"]["picture"]["augmnt"] = {}
    changed["model"]["image"]["size"] = 20
    lines = problems(changed)
    for start in (
        "optim.lrr: unknown key; did you mean lr?",
        "tasks.sound.mixup_alpha: Input should be greater than or equal to 0 (given: -1)",
        "tasks.picture.augmnt: unknown key; did you mean augment?",
        "model.width=16 must be a multiple of model.num_heads=3",
        "model.image: height 20 is not divided by its patch side 8",
        "model.image: width 20 is not divided by its patch side 8",
    ):
        assert sum(line.startswith(start) for line in lines) == 1, start
    assert len(lines) == 6


def test_only_inputs_of_present_modalities_are_judged() -> None:
    changed = document()
    changed["tasks"] = {"picture": changed["tasks"]["picture"]}
    changed["model"]["video"]["frames"] = 5
    assert validate_config(changed).modalities == ("image",)


def test_known_keys_at_every_level() -> None:
    """Walk the models themselves, so that a new section cannot be forgotten."""

    def walk(model: type[BaseModel], at: tuple[str, ...]) -> None:
        assert known_keys(at, document()) == list(model.model_fields)
        for name, info in model.model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
                walk(info.annotation, (*at, name))

    walk(RunConfig, ())
    assert known_keys(("tasks", "picture", "augment"), document())[0] == "crop_area"
    assert known_keys(("seed",), document()) == []


def test_a_config_is_frozen_and_survives_json() -> None:
    config = small_config()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_grids_and_patches() -> None:
    assert ImageInput(size=384, patch_size=16).grid == (24, 24)
    assert ImageInput(size=(32, 48), patch_size=(8, 16)).grid == (4, 3)
    assert ImageInput(size=224, patch_size=16, stride=10).grid == (21, 21)
    assert VideoInput().grid == (8, 14, 14)
    assert AudioInput().grid == (50, 8)
    model = ModelConfig()
    assert [model.num_tokens(m) for m in ("image", "video", "audio")] == [196, 1568, 400]  # type: ignore[arg-type]
    assert (ImageInput().patch_dim, VideoInput().patch_dim, AudioInput().patch_dim) == (768, 3072, 256)


def test_modalities_keep_their_order() -> None:
    assert small_config().modalities == ("image", "video", "audio")
