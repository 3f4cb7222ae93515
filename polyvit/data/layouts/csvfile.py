"""Layout `csv`: a table of paths and labels with a header line, for images, videos or recordings.

One file `data.csv` (or option `file`) with a split column, or without one: then the hash of the key carves
the splits. Where there is no such file, `train.csv`, `val.csv` (or `validation.csv`) and `test.csv`. Paths
are relative to the task's root (and option `folder`), or absolute ones in it. Where train.csv has no val.csv
beside it, the hash of the key carves validation out of it. One line is one row. Labels are names (index: sorted
unique names of the train rows, or the position in `task.classes`) or whole numbers from 0. Several rows may
cut one file by start and end. Several rows of one path (and the same times) are several labels of it, where the
task takes several (`loss: sigmoid`); else the first counts.

Options, with their defaults:
    file = ""                 the one table; "" looks for data.csv, then for train.csv, val.csv, test.csv
    folder = ""               put before every path
    path_column = "path"      label_column = "label"
    label_separator = ""      such as "|": several labels in one cell (a multi-label task)
    split_column = ""         cells train, val(idation), test; "" takes a column `split` if there is one
    start_column = ""         end_column = ""     seconds; an empty end cell means up to the end
    delimiter = ","           "\\t" for a TSV
    labels = "auto"           "name" or "index"; auto: index where every train label is a whole number
    validation_fraction = 0.1    test_fraction = 0.1    shares that are carved without a split column
"""

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from polyvit.data.index import Example, Scan, Split
from polyvit.data.layouts.scanning import (
    OUTSIDE,
    SPLIT_NAMES,
    Layout,
    Row,
    Rows,
    ScanContext,
    carve,
    carve_fractions,
    label_rows,
    need_columns,
    read_options,
    read_table,
)
from polyvit.errors import UserError

EXPECTS = "data.csv, or train.csv (val.csv, test.csv), with columns path and label: see options"
OPTIONS: dict[str, Any] = {
    "file": "", "folder": "", "path_column": "path", "label_column": "label", "label_separator": "",
    "split_column": "", "start_column": "", "end_column": "", "delimiter": ",", "labels": "auto",
    "validation_fraction": 0.1, "test_fraction": 0.1,
}  # fmt: skip
PER_SPLIT = ("train.csv", "val.csv", "validation.csv", "test.csv")
_Cells = dict[str, str]
logger = logging.getLogger(__name__)


def scan_csv(context: ScanContext) -> Scan:
    """Examples from the table or tables. Raises UserError for a missing table or column."""
    options = read_options(context, OPTIONS)
    below = carve_fractions(context, options)
    if len(options["delimiter"]) != 1:
        raise UserError(f"tasks.{context.name}.options.delimiter={options['delimiter']!r} must be one character")
    rows = Rows()
    for row in _joined(context, _rows(context, options, below)):
        rows.append(row)
    return label_rows(context, rows, options["labels"], context.classes)


def _rows(context: ScanContext, options: dict[str, Any], below: tuple[float, float]) -> Iterator[Row]:
    """The rows of all tables; `below`: thresholds for the rows whose split is carved."""
    files = _files(context, options["file"])
    splits = {split for _, split in files}
    carved = "train" in splits and "validation" not in splits and not options["split_column"]
    if carved:
        below = (below[0] + 1 - below[1], 1.0)
    for file, split in files:
        for where, cells, row_split in _read(context, file, split, options):
            address = _address(context, where, cells, options)
            if address is None:
                continue
            key, path, start, end = address
            if row_split is None or (carved and row_split == "train"):
                row_split = carve(key, *below)
            labels = _labels(cells[options["label_column"]], options["label_separator"])
            yield Row(Example(key, path, (), row_split, start=start, end=end), labels, where)


def _joined(context: ScanContext, rows: Iterable[Row]) -> Iterable[Row]:
    """The rows; of a task that takes several labels, one for each key and split, with all their labels."""
    if context.task.loss != "sigmoid":
        return rows
    joined: dict[tuple[str, str], Row] = {}
    count = 0
    for row in rows:
        first = joined.setdefault((row.example.key, row.example.split), row)
        if first is not row:
            count += 1
            joined[row.example.key, row.example.split] = replace(first, labels=first.labels + row.labels)
    if count:
        logger.warning("tasks.%s: %d rows name an example again; their labels are joined", context.name, count)
    return joined.values()


def _files(context: ScanContext, file: str) -> list[tuple[str, Split | None]]:
    """Tables and the split that each is; None where its rows say or the carve-out does."""
    if file or context.size("data.csv") is not None:
        return [(file or "data.csv", None)]
    names = [name for name in PER_SPLIT if context.size(name) is not None]
    if not names:
        raise UserError(
            f"tasks.{context.name}: neither data.csv nor train.csv is in {context.at()}; put one there, or set"
            f" tasks.{context.name}.options.file to the table's name"
        )
    return [(name, SPLIT_NAMES[name.removesuffix(".csv")]) for name in names]


def _read(
    context: ScanContext, file: str, split: Split | None, options: dict[str, Any]
) -> Iterator[tuple[str, _Cells, Split | None]]:
    """(file:line, cells, split) of the rows whose split is known or to be carved (None)."""
    header, rows = read_table(context, file, options["delimiter"])
    column = options["split_column"] or ("split" if split is None and "split" in header else "")
    used = [options[key] for key in ("path_column", "label_column", "start_column", "end_column")] + [column]
    hint = f"; name the columns with tasks.{context.name}.options.path_column, label_column ..."
    need_columns(context, file, header, [name for name in used if name], hint)
    for where, cells in rows:
        if not column:
            yield where, cells, split
        elif (row_split := SPLIT_NAMES.get(cells[column].lower())) is not None:
            yield where, cells, row_split
        else:
            context.skip("label", where, f"unknown split {cells[column]!r}")


def _address(
    context: ScanContext, where: str, cells: _Cells, options: dict[str, Any]
) -> tuple[str, str, float, float] | None:
    """(key, path, start, end) of a row; None, and a problem, where its path or its times are wrong."""
    cell = cells[options["path_column"]]
    path = context.inside(cell)
    if path is None:
        context.skip("broken", where, OUTSIDE if cell else "empty path")
        return None
    absolute = cell.startswith("/") or "://" in cell
    if (folder := options["folder"].strip("/")) and not absolute:
        path = f"{folder}/{path}"
    start_column, end_column = options["start_column"], options["end_column"]
    if not start_column and not end_column:
        return path, path, 0.0, -1.0
    try:
        start = float(cells[start_column] or 0) if start_column else 0.0
        end = float(cells[end_column] or -1) if end_column else -1.0
    except ValueError:
        start = math.nan
    if not (math.isfinite(start) and math.isfinite(end) and start >= 0 and (end < 0 or end > start)):
        times = [cells[column] for column in (start_column, end_column) if column]
        context.skip("label", where, f"malformed times {times}")
        return None
    return f"{path}#{start}-{end}", path, start, end


def _labels(cell: str, separator: str) -> tuple[str, ...]:
    """A cell's labels; an empty cell has none, and becomes a problem."""
    return tuple(part.strip() for part in (cell.split(separator) if separator else [cell]) if part.strip())


LAYOUT = Layout(scan_csv, EXPECTS)
