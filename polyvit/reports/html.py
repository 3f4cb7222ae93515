"""HTML pages from the templates in `templates/`: each page loads nothing, its pictures lie inside it.

In: plain data (words, numbers, `Figure`s of PNG files). Out: HTML. Jinja2 escapes every value.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

CSS_PIXELS = 0.65
"""Width on the page of one pixel of a picture. All pictures share it, so that their letters have one size."""


@dataclass(frozen=True)
class FactBox:
    """One box of the row below the title: a value, and what it is."""

    value: Any
    label: str


@dataclass(frozen=True)
class Cell:
    """One cell of a table. best: shaded as its column's best. second: underlined. word: aligned left. hover: shown
    under the mouse."""

    value: Any
    best: bool = False
    second: bool = False
    word: bool = False
    hover: str = ""


@dataclass(frozen=True)
class Column:
    """The head of a table's column, one or more lines. word: aligned left."""

    lines: Sequence[str]
    word: bool = False


@dataclass(frozen=True)
class Table:
    """A table. mark_first: a line is drawn below the first row."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]] = field(default_factory=tuple)
    mark_first: bool = False


@dataclass(frozen=True)
class Figure:
    """A PNG file to be shown inside the page. alt: the sentence for readers who cannot see it."""

    path: Path
    alt: str
    css_pixels: float = CSS_PIXELS

    @property
    def width(self) -> int:
        """Width on the page, in CSS pixels."""
        return round(
            int.from_bytes(self.path.read_bytes()[16:20], "big") * self.css_pixels
        )  # from the PNG's header

    @property
    def src(self) -> str:
        """The file's content, as a `data:` address."""
        return f"data:image/png;base64,{base64.b64encode(self.path.read_bytes()).decode()}"


def render(template: str, **values: Any) -> str:
    """The page that `templates/<template>` makes of `values`. A name that the template lacks is an error."""
    environment = Environment(
        loader=PackageLoader("polyvit.reports"),
        autoescape=select_autoescape(enabled_extensions=("html", "html.j2"), default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)
