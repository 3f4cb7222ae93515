"""Modalities and layouts that a config brings along."""

from collections.abc import Iterator

import pytest
from small import document
from toy_sensor import SENSOR, SensorTask

from polyvit.config import MODALITIES, validate_config
from polyvit.config.loader import known_keys
from polyvit.errors import UserError
from polyvit.model import build_model, parameters_of


@pytest.fixture(autouse=True)
def no_sensor_stays() -> Iterator[None]:
    """The table is the process's: other tests find it as it was."""
    yield
    MODALITIES.pop("sensor", None)


def with_sensor(**task: object) -> dict:
    changed = document()
    changed["plugins"] = {"modalities": {"sensor": "toy_sensor:SENSOR"}}
    changed["model"]["inputs"] = {"sensor": {"samples": 32}}
    changed["tasks"]["wave"] = {
        "modality": "sensor", "layout": "imagefolder", "num_classes": 2, "steps": 3, "batch": 4, **task,
    }  # fmt: skip
    return changed


def test_a_modality_from_outside_is_a_config_like_any_other() -> None:
    config = validate_config(with_sensor(augment={"noise": 0.5}))
    task = config.tasks["wave"]
    assert isinstance(task, SensorTask)
    assert task.augment.noise == 0.5
    assert config.modalities[-1] == "sensor"
    assert config.model.input("sensor").grid == (4,)
    assert MODALITIES["sensor"] == SENSOR
    again = validate_config(config.model_dump(mode="json"))
    assert again == config
    assert parameters_of(config)["tokenizer/sensor"] == config.model.width * (8 + 1) + config.model.width * (1 + 5)
    assert "heads.wave.weight" in build_model(config).touched("wave")


def test_its_keys_are_checked_and_hinted_at() -> None:
    with pytest.raises(UserError) as caught:
        validate_config(with_sensor(augment={"noize": 1.0}, steps=0))
    assert "tasks.wave.augment.noize: unknown key; did you mean noise?" in caught.value.problems
    assert any(problem.startswith("tasks.wave.steps") for problem in caught.value.problems)
    assert known_keys(("tasks", "wave", "augment"), with_sensor()) == ["noise"]
    changed = with_sensor()
    changed["model"]["inputs"]["sensor"]["samples"] = 33
    with pytest.raises(UserError, match=r"model.sensor: samples 33 is not divided by its patch side 8"):
        validate_config(changed)


@pytest.mark.parametrize(
    ("plugins", "words"),
    [
        ({"modalities": {"sensor": "toy_sensor"}}, "'toy_sensor' is no address; write module:attribute"),
        ({"modalities": {"sensor": "no_such_module:SENSOR"}}, "no_such_module:SENSOR: No module named"),
        ({"modalities": {"sensor": "toy_sensor:write_signals"}}, "is not a polyvit.config.ModalityEntry"),
        ({"modalities": {"image": "toy_sensor:SENSOR"}}, "plugins.modalities.image: the name is taken"),
        ({"layouts": {"csv": "toy_sensor:SENSOR"}}, "plugins.layouts.csv: the name is taken by another layout"),
        ({"modalitys": {}}, "plugins.modalitys: unknown key; did you mean modalities?"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_named(plugins: dict, words: str) -> None:
    changed = document()
    changed["plugins"] = plugins
    with pytest.raises(UserError) as caught:
        validate_config(changed)
    assert words in str(caught.value)


def test_a_section_for_a_modality_that_no_plugin_brings() -> None:
    changed = document()
    changed["model"]["inputs"] = {"smell": {}}
    with pytest.raises(UserError, match=r"model.inputs.smell: no modality of plugins.modalities"):
        validate_config(changed)
