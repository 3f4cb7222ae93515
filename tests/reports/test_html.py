"""Pages from templates: every value is escaped, a missing one is an error, the templates are in the package."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import jinja2
import pytest
from PIL import Image

import polyvit
from polyvit.reports.html import Cell, Column, FactBox, Figure, Table, render

PAGE = {
    "title": "<i>", "subtitle": "<s>", "facts": [FactBox("<b>", "a & b")], "notes": ["<u>"], "order": "<o>",
    "leaderboard": Table([Column(["<h>", "two"], word=True)], [[Cell("<c>", hover='"')]], mark_first=True),
    "paper": Table([Column(["run"])], [[Cell("<q>")]]),
    "sections": [], "differences": None, "commands": ["a > b", "c"],
}  # fmt: skip


def test_values_are_escaped() -> None:
    page = render("comparison.html.j2", **PAGE)
    for escaped in (
        "<h1>&lt;i&gt;</h1>",
        "a &amp; b",
        "&lt;h&gt;<br>two",
        "&lt;c&gt;",
        'title="&#34;"',
        "a &gt; b\nc",
    ):
        assert escaped in page, escaped
    for tag in ("<i>", "<s>", "<u>", "<o>", "<h>", "<c>", "<q>"):
        assert tag not in page, tag


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="order"):
        render("comparison.html.j2", **{key: value for key, value in PAGE.items() if key != "order"})


def test_a_figure_has_its_own_size(tmp_path: Path) -> None:
    Image.new("RGB", (300, 20)).save(tmp_path / "a.png")
    assert Figure(tmp_path / "a.png", "a picture", css_pixels=0.5).width == 150
    assert Figure(tmp_path / "a.png", "a picture").src.startswith("data:image/png;base64,iVBOR")


def test_the_package_holds_its_templates() -> None:
    root = Path(polyvit.__file__).parent
    settings = tomllib.loads((root.parent / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["polyvit"]
    templates = [str(path.relative_to(root)) for path in root.rglob("*.j2")]
    assert len(templates) >= 4
    assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in templates)
