"""`polyvit config`: each of its forms, and one message for what it does not take."""

import json
from pathlib import Path

import pytest

from pipelines import cli
from polyvit.config import load_config


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["config", *arguments]) == 0
    return capsys.readouterr().out


def test_each_form_prints_what_it_says(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "  lr: 0.1  # command line\n" in said(capsys, "show", "demo", "optim.lr=0.1")
    assert "no problem; 9 tasks" in said(capsys, "validate", "demo")
    assert "model.l_adapt" in said(capsys, "diff", "demo", "demo", "model.l_adapt=1")
    assert "no key differs" in said(capsys, "diff", "demo", "demo")
    assert "integer > 0" in said(capsys, "keys", "tasks.*.batch")
    assert "model.l_adapt" not in said(capsys, "keys", "schedule")
    assert json.loads(said(capsys, "schema"))["title"] == "PolyViT recipe"
    out = tmp_path / "keys.json"
    said(capsys, "keys", "model.l_adapt", "--json", str(out))
    assert [key["path"] for key in json.loads(out.read_text())["keys"]] == ["model.l_adapt"]


def test_a_run_is_shown_and_compared(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(load_config("demo", ["model.l_adapt=2"]).model_dump_json())
    assert "l_adapt: 2  # the run" in said(capsys, "show", str(tmp_path))
    assert "model.l_adapt" in said(capsys, "diff", "demo", str(tmp_path))
    assert cli.main(["config", "show", str(tmp_path), "model.l_adapt=1"]) == 2
    assert "its config is what it is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show"], "takes one CONFIG; given: nothing"),
        (["diff", "demo"], "takes two CONFIGs; given: demo"),
        (["keys", "a", "b"], "takes one PATTERN; given: a b"),
        (["keys", "no.such"], "no key matches 'no.such'"),
        (["schema", "demo"], "takes nothing; given: demo"),
        (["validate", "demo", "optim.lr=much"], "optim.lr: Input should be a valid number"),
        (["show", "dmeo"], "Did you mean demo?"),
    ],
)
def test_one_message_for_a_mistake(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", *arguments]) == 2
    assert words in capsys.readouterr().err
