"""Where each value of a config comes from; what it prints is read again; the schema accepts every recipe."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from polyvit.config import (
    config_difference,
    config_yaml,
    load_config,
    recipe_names,
    recipe_schema,
    resolve_config,
    resolve_run,
)


@pytest.mark.parametrize("recipe", recipe_names())
def test_what_is_printed_is_the_same_config_again(recipe: str, tmp_path: Path) -> None:
    resolved = resolve_config(recipe)
    file = tmp_path / "again.yaml"
    file.write_text(config_yaml(resolved))
    assert load_config(str(file)) == load_config(recipe)


def test_each_value_names_its_source(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: tiny-nine\ntasks: {pets: {batch: 4}}\nmodel: {width: 192}\n")
    sources = resolve_config(str(mine), ["optim.lr=0.5", "model.image.size=32"]).sources
    assert sources["model", "width"] == f"file {mine}"
    assert sources["model", "depth"] == "recipe tiny-nine"
    assert sources["model", "image", "size"] == "command line"
    assert sources["optim", "lr"] == "command line"
    assert sources["tasks", "pets", "batch"] == f"file {mine}"
    assert sources["tasks", "pets", "num_classes"] == "known task pets"
    assert sources["train", "keep_best"] == "default"


def test_an_old_name_of_a_key_has_its_source_too() -> None:
    assert resolve_config("demo", ["optim.untouched=frozen"]).sources["optim", "inactive_params"] == "command line"


def test_two_configs_differ_in_what_was_changed() -> None:
    rows = config_difference(resolve_config("demo"), resolve_config("demo", ["model.l_adapt=1"]))
    assert [tuple(row) for row in rows] == [("model.l_adapt", "0", "default", "1", "command line")]
    only = config_difference(resolve_config("demo"), resolve_config("demo", [], ["pets"]))
    assert all(row.key.startswith("tasks.") and row.second == "(not there)" for row in only)
    assert len(only) > 8


def test_a_run_is_what_it_is() -> None:
    config = load_config("demo", ["model.l_adapt=2"])
    run = resolve_run(config.model_dump(mode="json"))
    assert run.config == config
    assert set(run.sources.values()) == {"the run"}


SCHEMA = recipe_schema()


@pytest.mark.parametrize("recipe", recipe_names())
def test_the_schema_accepts_every_recipe(recipe: str) -> None:
    path = Path(__file__).parents[2] / "polyvit" / "recipes" / f"{recipe}.yaml"
    jsonschema.Draft202012Validator(SCHEMA).validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    "wrong", [{"no_such_key": {}}, {"train": {"workers": "two"}}, {"tasks": {"pets": {"modality": "smell"}}}]
)
def test_the_schema_refuses(wrong: dict[str, Any]) -> None:
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(wrong)


def test_the_schema_says_what_keys_mean() -> None:
    train, task = (SCHEMA["$defs"][name]["properties"] for name in ("TrainConfig", "ImageTask"))
    assert "Steps between" in train["checkpoint_every"]["description"]
    assert "folder or URL" in task["root"]["description"]
