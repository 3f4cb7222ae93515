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

MOST_EMBEDDED = 1_700_000
"""Bytes of figures inside a page, so that it stays below 2 MB, which mail and MLflow show."""


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
    """A PNG or JPEG file to be shown inside the page. alt: the sentence for readers who cannot see it. pixels: its
    width; None: a PNG's header says it.
    """

    path: Path
    alt: str
    css_pixels: float = CSS_PIXELS
    pixels: int | None = None

    @property
    def width(self) -> int:
        """Width on the page, in CSS pixels."""
        pixels = self.pixels or int.from_bytes(self.path.read_bytes()[16:20], "big")
        return round(pixels * self.css_pixels)

    @property
    def src(self) -> str:
        """The file's content, as a `data:` address."""
        kind = "jpeg" if self.path.suffix == ".jpg" else "png"
        return f"data:image/{kind};base64,{base64.b64encode(self.path.read_bytes()).decode()}"


class _Room:
    """Tells whether a page has room for one more figure inside, in the order of the page."""

    def __init__(self, left: int) -> None:
        self.left = left

    def has(self, figure: Figure) -> bool:
        size = -(-figure.path.stat().st_size // 3) * 4  # base64
        fits = size <= self.left
        self.left -= size if fits else 0
        return fits


def render(template: str, most_embedded: int = MOST_EMBEDDED, /, **values: Any) -> str:
    """The page that `templates/<template>` makes of `values`. A name that the template lacks is an error.

    most_embedded: bytes of figures; for one beyond them the page names its file.
    """
    environment = Environment(
        loader=PackageLoader("polyvit.reports"),
        autoescape=select_autoescape(enabled_extensions=("html", "html.j2"), default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["has_room"] = _Room(most_embedded).has
    return environment.get_template(template).render(**values)
