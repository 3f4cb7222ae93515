"""docs/reference/config.md says what the models say, for every key that a config has."""

from pathlib import Path

from pydantic import BaseModel, Field

from pipelines.cli import main
from polyvit.config import config_sections, flatten, load_config, recipe_names, reference_markdown
from polyvit.config.reference import INTRODUCTION

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "config.md"


def test_the_page_is_what_the_command_prints(capsys) -> None:
    assert main(["config", "reference"]) == 0
    printed = capsys.readouterr().out
    assert printed == reference_markdown()
    assert printed.startswith(INTRODUCTION)
    assert PAGE.read_text() == printed, "run: polyvit config reference > docs/reference/config.md"


def test_every_key_of_every_recipe_has_a_row() -> None:
    rows = {key.path: key.type for section in config_sections() for key in section.keys}
    # Below a mapping the names are the user's.
    mappings = tuple(f"{path}." for path, kind in rows.items() if kind.startswith("mapping of"))
    for recipe in recipe_names():
        config = load_config(recipe)
        for key in flatten(config.model_dump(mode="json")):
            for task in config.tasks:
                key = key.replace(f"tasks.{task}.", "tasks.NAME.", 1) if key.startswith(f"tasks.{task}.") else key
            assert key in rows or key.startswith(mappings), f"{recipe}: {key}"


def test_a_row_has_the_type_with_its_bounds_the_default_and_the_text_under_the_field() -> None:
    keys = {key.path: key for section in config_sections() for key in section.keys}
    bad, lr, path = keys["data.max_bad_fraction"], keys["optim.lr"], keys["init.path"]
    assert (bad.type, bad.default) == ("number >= 0 and <= 1", "`0.1`")
    assert (lr.type, lr.default) == ("number > 0", "`1.0`")
    assert lr.meaning == "Peak learning rate; each task multiplies it by its own `lr_coef`."
    assert (path.type, path.default) == ("text, or null", "`null`")
    assert keys["tasks.NAME.steps"].default == "required"
    assert keys["schedule.kind"].type.startswith("`weighted` / `uniform`")


class _Inner(BaseModel):
    """Inside."""

    size: int = Field(3, ge=1)
    """How large,
    in metres."""


class _Outer(BaseModel):
    """Outside."""

    inner: _Inner = _Inner()
    by_name: dict[str, _Inner] = {}
    either: list[int] | _Inner | None = None
    described: str = Field("x", description="From the field.")


def test_any_models_are_walked() -> None:
    sections = config_sections(_Outer)
    assert [(section.path, section.summary) for section in sections] == [
        ("", "Outside."), ("inner", "Inside."), ("by_name.NAME", "Inside."), ("either", "Inside."),
    ]  # fmt: skip
    outer, inner = sections[0].keys, sections[1].keys
    assert [(key.path, key.type) for key in outer] == [
        ("either", "list of integer, or {size}, or null"), ("described", "text"),
    ]  # fmt: skip
    assert outer[1].meaning == "From the field."
    assert [(key.path, key.type, key.default, key.meaning) for key in inner] == [
        ("inner.size", "integer >= 1", "`3`", "How large, in metres.")
    ]
