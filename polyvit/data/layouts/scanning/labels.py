"""Labels as people write them, in CSV cells, `.cls` files and Parquet columns: names or indices.

In: rows whose labels are text or whole numbers. Out: a `Scan` with label indices; a label that
cannot be understood is a `Problem` that names its row.
"""

import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from polyvit.data.index import CHUNK, SCHEMA, Example, ExampleWriter, Scan
from polyvit.data.layouts.scanning.context import ScanContext, unknown_label
from polyvit.errors import UserError

LABEL_MODES = ("auto", "name", "index")
LONGEST = 9
"""Digits of a number that can be a class."""
_WHOLE = re.compile(r"-?[0-9]+")


@dataclass(frozen=True, slots=True)
class Row:
    """An example whose labels are still as written: class names, or indices as text or int.

    where: the row to name in a problem, such as `train.csv:17`.
    """

    example: Example
    labels: tuple[str | int, ...]
    where: str


class Rows:
    """Rows in columns: a million take tens of megabytes, not hundreds."""

    def __init__(self) -> None:
        self._fresh: list[Row] = []
        self._done: list[tuple[pa.Table, array, pa.Array]] = []
        self._known: dict[tuple[str | int, ...], int] = {}
        self._train: set[int] = set()

    def append(self, row: Row) -> None:
        """Add one row."""
        self._fresh.append(row)
        if len(self._fresh) == CHUNK:
            self._flush()

    def _flush(self) -> None:
        known, writer = self._known, ExampleWriter()
        codes = array("i", [known.setdefault(row.labels, len(known)) for row in self._fresh])
        self._train.update(
            code for code, row in zip(codes, self._fresh, strict=True) if row.example.split == "train"
        )
        for row in self._fresh:
            writer.append(row.example)
        self._done.append((writer.table(), codes, pa.array([row.where for row in self._fresh], pa.string())))
        self._fresh = []

    def written(self) -> list[tuple[str | int, ...]]:
        """Every distinct set of labels, once."""
        self._flush()
        return list(self._known)

    def label_words(self) -> set[str | int]:
        """The labels of the train rows; of all rows where train has none. Empty ones do not count."""
        written = self.written()
        train = {label for code in self._train for label in written[code] if label != ""}
        return train or {label for labels in written for label in labels}

    def train_words(self) -> set[str | int]:
        """The labels of the train rows."""
        written = self.written()
        return {label for code in self._train for label in written[code] if label != ""}

    def chunks(self) -> Iterator[tuple[pa.Table, Sequence[int], pa.Array]]:
        """(examples without labels, positions of their labels in `written`, `where` of each); every chunk once."""
        while self._done:
            yield self._done.pop(0)


def label_rows(context: ScanContext, rows: Rows, mode: str, classes: list[str] | None) -> Scan:
    """Turn written labels into indices, add the rows to the scan and finish it.

    classes: the known names in label order, or None: the sorted unique names of the train rows. mode: `name`,
    `index`, or `auto`, which takes indices where every train label is a whole number. Raises UserError, which asks
    for a mode, where `auto` cannot decide: some labels are numbers and some are not, or class names are numbers.
    """
    if _by_index(context, mode, rows.label_words(), classes):
        names = classes if classes is not None else [str(index) for index in range(context.task.num_classes)]
        indices: dict[str, int] | None = None
    else:
        names = classes if classes is not None else sorted(map(str, rows.train_words()))
        indices = {name: index for index, name in enumerate(names)}
    label_sets = [_indices(labels, indices) for labels in rows.written()]
    for table, codes, wheres in rows.chunks():
        usable = []
        for row, (path, code) in enumerate(zip(table.column("path").to_pylist(), codes, strict=True)):
            labels = label_sets[code]
            if isinstance(labels, str):
                context.skip("label", wheres[row].as_py(), labels)
            elif context.usable(path, wheres, row):
                usable.append(row)
        labelled = pa.array([label_sets[codes[row]] for row in usable], SCHEMA.field("labels").type)
        column = SCHEMA.get_field_index("labels")
        context.examples.extend(table.take(pa.array(usable, pa.int64())).set_column(column, "labels", labelled))
    return context.finish(names)


def _by_index(context: ScanContext, mode: str, labels: set[str | int], classes: list[str] | None) -> bool:
    key = f"tasks.{context.name}.options.labels"
    if mode not in LABEL_MODES:
        raise UserError(f"{key}={mode!r}: allowed are {', '.join(map(repr, LABEL_MODES))}")
    if mode != "auto":
        return mode == "index"
    words = sorted(label for label in labels if isinstance(label, str) and not _WHOLE.fullmatch(label))
    if words and len(words) < len(labels) and classes is None:
        raise UserError(
            f"some labels are numbers and some are not, such as {words[0]!r}; set {key} to 'name' or 'index'"
        )
    if words or not labels:
        return False
    misplaced = [name for index, name in enumerate(classes or ()) if name.isdecimal() and int(name) != index]
    if misplaced and any(isinstance(label, str) for label in labels):
        raise UserError(
            f"labels are numbers and so is class name {misplaced[0]!r}; set {key} to 'name' or 'index'"
        )
    return True


def _indices(labels: Sequence[str | int], indices: Mapping[str, int] | None) -> tuple[int, ...] | str:
    """Labels as sorted indices without repetition; where one is wrong, a text that says why."""
    result = set()
    for label in labels:
        whole = indices is None and _WHOLE.fullmatch(str(label))
        if whole and len(str(label)) > LONGEST:
            return f"label {str(label)[:20]} is beyond any class"
        index = int(label) if whole else (indices or {}).get(str(label))
        if index is None:
            return unknown_label(str(label))
        if index < 0:
            return f"label {index} is below 0"
        result.add(index)
    return tuple(sorted(result)) or "empty label"
