"""What the README tells a newcomer to do is true: its config, its commands, its recipes."""

import re
from pathlib import Path

import pytest

from pipelines.cli import COMMANDS
from polyvit.config import load_config, recipe_names
from polyvit.data.layouts.scanner import scan
from polyvit.synthetic.write import write_example_pair

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_two_dataset_config_trains_on_the_example_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    write_example_pair(Path("pair"))
    Path("mine.yaml").write_text(block)
    config = load_config("mine.yaml", ["schedule.kind=uniform", "model.l_adapt=2"])
    assert list(config.tasks) == ["shapes", "sounds"]
    for name, task in config.tasks.items():
        assert task.root is not None
        found = scan(task, Path(task.root), name)
        assert found.problems == []
        assert found.counts()["train"] > 0
        assert found.counts()[task.eval_split] > 0
        assert len(found.classes) == task.num_classes == 3


def test_every_command_is_documented_and_every_documented_command_exists() -> None:
    documented = set(re.findall(r"^\| `polyvit (\w+)", README, re.MULTILINE))
    assert documented == set(COMMANDS)
    assert set(re.findall(r"^    polyvit (\w+)", README, re.MULTILINE)) <= set(COMMANDS)


def test_every_recipe_named_in_a_command_ships() -> None:
    named = re.findall(
        r"(?:polyvit (?:cotrain|plan|index)|pipelines\.cotrain) (\w[\w-]+)(?= |$)", README, re.MULTILINE
    )
    assert {"tiny-nine", "polyvit-b-nine"} <= set(named)
    assert set(named) <= set(recipe_names())
