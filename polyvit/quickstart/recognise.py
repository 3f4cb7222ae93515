"""What a user's folders hold: layout, modality, classes and splits, found by scanning them as training would.

In: a folder. Out: a `TaskGuess` for each data set in it, and a sentence for each folder that is none. A layout
is taken where its own scan finds examples; those with lists of their own come first, folders of classes last.
"""

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from polyvit.config import TaskConfig
from polyvit.config.formats import FORMATS
from polyvit.data.index import Scan
from polyvit.data.layouts import scan
from polyvit.errors import UserError
from polyvit.quickstart.tables import Table, read_tables

Kind = str
"""image, video or audio."""
LISTED: dict[str, Kind] = {
    "cifar10": "image", "cifar100": "image", "pets": "image", "imagenet": "image", "resisc45": "image",
    "kinetics": "video", "moments": "video", "ucf101": "video",
    "audioset": "audio", "vggsound": "audio", "esc50": "audio",
}  # fmt: skip
"""Layouts of known data sets, which have lists of their own, and what their files hold."""
MOST_FILES = 5000
"""Files that are looked at to see what a folder holds."""
MOST_CLASSES = 1_000_000
MOST_FOLDERS = 200
"""Folders in a folder that are looked at one by one."""
_TASK: TypeAdapter[TaskConfig] = TypeAdapter(TaskConfig)
_KIND_OF = {end: entry.holds for entry in reversed(FORMATS) for end in entry.extensions}


@dataclass(frozen=True)
class TaskGuess:
    """A data set as a task would read it.

    counts: examples by split. classes: names, in label order; fewer than `num_classes` where there are none.
    multi_label: whether an example has several classes. left_out: listed examples that cannot be used.
    """

    root: Path
    modality: Kind
    layout: str
    num_classes: int
    counts: dict[str, int]
    classes: tuple[str, ...]
    multi_label: bool
    left_out: int
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recognised:
    """Data sets, and what was not taken for one: a sentence each."""

    tasks: tuple[TaskGuess, ...]
    unknown: tuple[str, ...]


def recognise(folder: Path) -> Recognised:
    """The data sets of a folder: itself, or the folders in it. Raises UserError where there is no such folder."""
    folder = Path(folder)
    if not folder.is_dir():
        what = "a file; give the folder that it lies in" if folder.exists() else "not there; give a folder of data"
        raise UserError(f"{folder} is {what}")
    if guess := _listed(folder) or _stored(folder):
        return Recognised((guess,), ())
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    below = [_listed(path) or _stored(path) for path in inner[:MOST_FOLDERS]]
    if not any(below) and not any(map(_has_splits, inner[:MOST_FOLDERS])) and (whole := _of_classes(folder)):
        return Recognised((whole,), ())
    tasks, unknown = [], []
    for path, guess in zip(inner, below, strict=False):
        if guess := guess or _of_classes(path):
            tasks.append(guess)
        else:
            unknown.append(f"{path}: {_holds(path)}")
    if not tasks:
        return Recognised((), (f"{folder}: {_holds(folder)}",))
    return Recognised(tuple(tasks), tuple(unknown))


def _listed(folder: Path) -> TaskGuess | None:
    """A known data set, by its own lists."""
    for layout, kind in LISTED.items():
        if layout == "imagenet" and not any((folder / "train").glob("n" + 8 * "[0-9]")):
            continue  # without the WordNet ids of its classes it is a folder of classes
        if guess := _attempt(folder, layout, kind):
            return guess
    return None


def _stored(folder: Path) -> TaskGuess | None:
    """Shards, Parquet files, or tables of paths and labels."""
    names = {Path(name).suffix.lower() for name in itertools.islice(_files(folder), MOST_FILES)}
    stored = [layout for layout, end in (("webdataset", ".tar"), ("parquet", ".parquet")) if end in names]
    for layout in stored:
        for kind in ("image", "video", "audio"):
            if guess := _attempt(folder, layout, kind):
                return guess
    for table in read_tables(folder):
        if (held := _kind_of_cells(table)) and (guess := _attempt(folder, "csv", held, table.options)):
            return guess
    return None


def _of_classes(folder: Path) -> TaskGuess | None:
    """A folder for each class, with files of the kind that most of its files are."""
    for kind, _ in _kinds(itertools.islice(_files(folder), MOST_FILES)).most_common():
        if (guess := _attempt(folder, "imagefolder", kind)) and guess.num_classes > 1:
            return guess
    return None


def _has_splits(folder: Path) -> bool:
    """Whether a folder looks like a data set of its own: train and val beside each other."""
    names = {path.name.lower() for path in folder.iterdir() if path.is_dir()}
    return bool(names & {"train", "training"}) and bool(names & {"val", "valid", "validation", "test", "testing"})


def _attempt(folder: Path, layout: str, kind: Kind, options: Mapping[str, Any] | None = None) -> TaskGuess | None:
    """What a scan finds; None where the layout does not fit, or gives fewer than two examples."""
    # sigmoid: of one class an example the scan keeps no more than one, so several would not show.
    keys = {"modality": kind, "layout": layout, "num_classes": MOST_CLASSES, "loss": "sigmoid", "metric": "map"}
    task = _TASK.validate_python({**keys, "options": dict(options or {}), "steps": 1, "batch": 1})
    try:
        result = scan(task, folder.absolute(), folder.name)
    except (UserError, OSError):
        return None
    if len(result.examples) < 2 or len(result.examples) <= len(result.problems):
        return None
    return _guess(folder, kind, layout, result, dict(options or {}))


def _guess(folder: Path, kind: Kind, layout: str, result: Scan, options: dict[str, Any]) -> TaskGuess:
    labels = result.examples.label_counts(0)
    named = len(result.classes) < MOST_CLASSES
    first = [example.labels for example in itertools.islice(result.examples, 100_000)]
    return TaskGuess(
        folder, kind, layout, len(result.classes) if named else len(labels), result.counts(),
        tuple(result.classes) if named else (), any(len(each) > 1 for each in first), len(result.problems),
        options,
    )  # fmt: skip


def _files(folder: Path) -> Iterator[str]:
    """Paths of files under a folder, relative to it, folder by folder."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            yield os.path.relpath(os.path.join(place, name), folder)  # noqa: PTH118


def _kinds(names: Iterator[str] | Sequence[str]) -> Counter[Kind]:
    return Counter(kind for name in names if (kind := _KIND_OF.get(Path(name).suffix.lower())))


def _kind_of_cells(table: Table) -> Kind | None:
    kinds = _kinds(table.paths).most_common(1)
    return kinds[0][0] if kinds else None


def _holds(folder: Path) -> str:
    """What a folder that is no data set holds, and what could be done."""
    names = list(itertools.islice(_files(folder), MOST_FILES))
    if not names:
        return "no files; nothing to train on"
    kinds = _kinds(names)
    more = "at least " if len(names) == MOST_FILES else ""
    have = ", ".join(f"{more}{count} {kind} files" for kind, count in kinds.most_common())
    ends = Counter(Path(name).suffix.lower() or "no suffix" for name in names)
    have = have or f"no media that are read ({', '.join(f'{n} {end}' for end, n in ends.most_common(4))})"
    return (
        f"{have}, in no layout that is known. Arrange them as train/<class>/... and val/<class>/..., or write a"
        " table data.csv with the columns path, label and split (docs/data.md lists all layouts)"
    )
