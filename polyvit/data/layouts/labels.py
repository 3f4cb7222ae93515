"""Labels as people write them, in CSV cells, `.cls` files and Parquet columns: names or indices.

In: rows whose labels are text or whole numbers. Out: a `Scan` with label indices; whatever cannot be
understood is a `Problem` that names its row.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from polyvit.data.index import Example, Scan
from polyvit.data.layouts.common import Survey
from polyvit.errors import UserError

LABEL_MODES = ("auto", "name", "index")
_WHOLE = re.compile(r"-?[0-9]+")


@dataclass(frozen=True, slots=True)
class Row:
    """An example whose labels are still as written: class names, or indices as text or int.

    where: the place to name in a problem, such as `train.csv:17`.
    """

    example: Example
    labels: tuple[str | int, ...]
    where: str


def label_rows(survey: Survey, rows: Sequence[Row], mode: str, classes: list[str] | None) -> Scan:
    """Turn written labels into indices, add the rows, finish.

    classes: the known names in label order, or None: the sorted unique names of the train rows. mode: `name`,
    `index`, or `auto`, which takes indices where every train label is a whole number. What `auto` cannot
    decide (some labels are numbers and some are not; class names that are numbers) is a UserError that asks
    for a mode.
    """
    train = {label for row in rows if row.example.split == "train" for label in row.labels if label != ""}
    if _by_index(survey, mode, train or {label for row in rows for label in row.labels}, classes):
        names = classes if classes is not None else [str(index) for index in range(survey.task.num_classes)]
        indices: dict[str, int] | None = None
    else:
        names = classes if classes is not None else sorted(map(str, train))
        indices = {name: index for index, name in enumerate(names)}
    for row in rows:
        labels = _indices(survey, row, indices)
        if labels is not None:
            survey.add(replace(row.example, labels=labels), row.where)
    return survey.finish(names)


def _by_index(survey: Survey, mode: str, labels: set[str | int], classes: list[str] | None) -> bool:
    key = f"tasks.{survey.name}.options.labels"
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


def _indices(survey: Survey, row: Row, indices: Mapping[str, int] | None) -> tuple[int, ...] | None:
    """The row's labels as sorted indices without repetition; None, and a problem, where one is no good."""
    found = set()
    for label in row.labels:
        if indices is None and _WHOLE.fullmatch(str(label)):
            index: int | None = int(label)
        else:
            index = survey.label(str(label), indices or {}, row.where)
        if index is None:
            return None
        if index < 0:
            survey.skip("label", row.where, f"label {index} is below 0")
            return None
        found.add(index)
    if not found:
        survey.skip("label", row.where, "empty label")
        return None
    return tuple(sorted(found))
