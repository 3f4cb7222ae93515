"""Text of the user's is never markup: it is shown letter for letter, whatever brackets and colons are in it."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from pipelines import inspect
from pipelines.index import print_index
from pipelines.runtime import command_line, console
from pipelines.training import driver
from polyvit.reports.inspect.finding import Finding

ROOT = Path(__file__).parents[3]
NAMES = ["take[/2].wav", "song [official video].wav", ":cat:.jpg", "[red]x[/red].png", "a[bold", "end\\"]


@pytest.mark.parametrize("name", NAMES)
def test_lines_tables_and_titles_show_a_name_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console, "_file", shown)  # `file` gives sys.stdout of now, and would put that back
    console.print(f"{name}: cannot be read", style="yellow")
    table = Table(title=f"title {name}")
    table.add_column(f"head {name}")
    table.add_row(f"cell {name}")
    console.print(table)
    inspect.print_findings([Finding("shapes", "error", "kind", 1, f"says {name}", f"do {name}")])
    entry = {"left_out": {"missing": 1}, "problems": [{"where": f"left {name}", "reason": "missing"}]}
    driver._print_left_out({"shapes": entry})
    problem = {"kind": "missing", "where": f"index {name}", "reason": "missing"}
    counts = dict.fromkeys(("train", "validation", "test", "classes", "classes_present", "reused"), 1)
    print_index(
        {
            "shapes": {
                **counts,
                "examples_of_class": {f"class {name}": 2},
                "left_out": {"missing": 1},
                "problems": [problem],
            }
        }
    )
    text = shown.getvalue()
    for where in ("", "title ", "head ", "cell ", "says ", "do ", "left ", "index "):
        assert f"{where}{name}" in text, where


def test_there_is_one_console_and_nothing_turns_markup_on() -> None:
    """A second Console, a progress column that reads markup, or a tag in a text would bring the fault back."""
    assert isinstance(command_line.console, Console)
    found_again = []
    for path in sorted((ROOT / "pipelines").rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            bare = "TextColumn(" in line and "markup=False" not in line
            tag = re.search(r"\[/(\w*)\]", line) and "console" not in path.name and not line.startswith("#")
            console_made = "Console(" in line and path.name != "command_line.py"
            if bare or tag or console_made or "from_markup" in line or "markup=True" in line:
                found_again.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found_again
