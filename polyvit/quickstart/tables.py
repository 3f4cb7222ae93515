"""Tables of paths and labels in a folder, and the options by which layout `csv` reads them.

In: a folder. Out: for each table the options, and some of its paths. Which column is which shows in its cells:
paths are those that are files in the folder, labels those with few values.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from polyvit.data.layouts import SPLIT_NAMES

ROWS = 2000
"""Rows of a table that are looked at."""
LABELS = (
    "label",
    "labels",
    "class",
    "classes",
    "category",
    "categories",
    "target",
    "tag",
    "tags",
    "class_name",
    "y",
)
SEPARATORS = "|;,"
_OWN = ("train.csv", "val.csv", "validation.csv", "test.csv")


@dataclass(frozen=True)
class Table:
    """options: of layout `csv`. paths: some cells of its column of paths."""

    options: dict[str, Any]
    paths: tuple[str, ...]


def read_tables(folder: Path) -> Iterator[Table]:
    """The tables that lie in a folder itself, those with the usual names first."""
    tables = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in (".csv", ".tsv", ".txt")]
    tables.sort(key=lambda path: (path.name != "data.csv", path.name not in _OWN))
    for path in tables:
        if table := _table(folder, path):
            yield table


def _table(folder: Path, path: Path) -> Table | None:
    """None where no column holds files of the folder, or none could be labels."""
    try:
        with path.open("rb") as file:
            # The last line may be cut in a character.
            text = file.read(1 << 20).decode("utf-8-sig", errors="ignore")
    except OSError:
        return None
    header = text.partition("\n")[0]
    delimiter = max(",\t;|", key=header.count)
    rows = list(islice(csv.DictReader(io.StringIO(text), delimiter=delimiter), ROWS))
    columns = [name for name in (rows[0] if rows else {}) if name]
    if len(columns) < 2:
        return None
    cells = {name: [row.get(name) or "" for row in rows] for name in columns}
    inside = _path_column(folder, cells)
    if inside is None:
        return None
    path_column, below = inside
    split_column = _split_column({name: cells[name] for name in columns if name != path_column})
    others = {name: cells[name] for name in columns if name not in (path_column, split_column)}
    label_column = _label_column(others)
    if label_column is None:
        return None
    options: dict[str, Any] = {"file": "" if path.name in ("data.csv", *_OWN) else path.name, "folder": below}
    options |= {"path_column": path_column, "label_column": label_column, "split_column": split_column or ""}
    options |= {"delimiter": delimiter, "label_separator": _separator(cells[label_column], delimiter)}
    usual = {
        "file": "", "folder": "", "path_column": "path", "label_column": "label", "delimiter": ",",
        "label_separator": "",
    }  # fmt: skip
    usual["split_column"] = "split" if split_column == "split" else ""
    return Table({k: v for k, v in options.items() if v != usual[k]}, tuple(cells[path_column]))


def _path_column(folder: Path, cells: dict[str, list[str]]) -> tuple[str, str] | None:
    """(column, folder before its paths) where at least half of the cells are files."""
    folders = ["", *(path.name for path in sorted(folder.iterdir()) if path.is_dir())]
    for name, values in cells.items():
        some = [value for value in values[:40] if value and len(value) < 250 and "\0" not in value]
        for below in folders if len(some) > 1 else ():
            if 2 * sum((folder / below / value).is_file() for value in some) >= len(some):
                return name, below
    return None


def _split_column(cells: dict[str, list[str]]) -> str | None:
    """The column whose cells are all names of splits, of which train is one."""
    for name, values in cells.items():
        splits = {SPLIT_NAMES.get(value.strip().lower()) for value in values}
        if None not in splits and "train" in splits and len(splits) > 1:
            return name
    return None


def _label_column(cells: dict[str, list[str]]) -> str | None:
    """One of the usual names, else the column with the fewest values, each of which several rows have."""
    for name in LABELS:
        if usual := next((column for column in cells if column.strip().lower() == name), None):
            return usual
    distinct = {name: len(set(values)) for name, values in cells.items()}
    able = {name: count for name, count in distinct.items() if 1 < count <= len(cells[name]) / 2}
    return min(able, key=able.__getitem__) if able else None


def _separator(labels: list[str], delimiter: str) -> str:
    """The character between several labels of one cell: its parts must come alone elsewhere, or again."""
    for mark in SEPARATORS:
        several = [label for label in labels if mark in label]
        parts = {part.strip() for label in several for part in label.split(mark)}
        if several and mark != delimiter and len(parts) < sum(label.count(mark) + 1 for label in several):
            return mark
    return ""
