"""What the layouts share: the scan in progress, folder listings, options, splits.

Reading lists is in `tables.py`, labels as people write them in `labels.py`.

In: one task and its folder, as a `Survey`. Out: examples and problems gathered on it, then `Survey.finish`.
Each folder is listed once (`os.scandir`) and every listed file is a dictionary look-up in that listing, so a
million rows cost no million `stat` calls from here. Listings are sorted: the result never depends on the
order in which a file system names its entries.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from polyvit.config import Modality
from polyvit.data.index import Example, Problem, Scan, Split, finish_scan, key_fraction
from polyvit.errors import UserError
from polyvit.task_config import TaskConfig

_VIDEO = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp")
EXTENSIONS: dict[Modality, tuple[str, ...]] = {
    "image": (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
    "video": _VIDEO,
    # A video container is a recording too: its sound track is what an audio task reads.
    "audio": (".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".aac", ".aiff", ".aif", *_VIDEO),
}
"""File extensions that count as media of a modality, best first where one stem has several."""

SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validate": "validation", "validation": "validation",
    "dev": "validation", "eval": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
"""How people call the splits, in folder names, file names and CSV cells (lower case)."""

DANGLING = -1
"""Size of a link that leads nowhere."""

OUTSIDE = "path leaves the root"
EMPTY = "empty file"


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder as listed: bytes by file name, and subfolders, both sorted; hidden entries left out."""

    files: dict[str, int]
    folders: tuple[str, ...]


class Survey:
    """One scan in progress: the task, its folder, and what was found there so far.

    classes: the names in `task.classes`, or None where the layout's own list counts.
    """

    def __init__(self, name: str, task: TaskConfig, root: Path, classes: list[str] | None = None) -> None:
        self.name, self.task, self.root, self.classes = name, task, root, classes
        self.examples: list[Example] = []
        self.problems: list[Problem] = []
        self._folders: dict[str, Folder] = {}

    def skip(self, kind: Literal["missing", "label", "broken", "duplicate"], where: str, reason: str) -> None:
        """Leave one thing out, by name."""
        self.problems.append(Problem(kind, where, reason))

    def folder(self, path: str) -> Folder:
        """The listing of a folder, '' for the root; empty where there is no such folder."""
        if path not in self._folders:
            self._folders[path] = _list_folder(self.root / path)
        return self._folders[path]

    def size(self, path: str) -> int | None:
        """Bytes of a file by its folder's listing; None where it is not there, DANGLING for a dead link."""
        folder, _, name = path.rpartition("/")
        return self.folder(folder).files.get(name)

    def add(self, example: Example, listed: str = "") -> None:
        """Keep an example if its file is there and holds bytes; else leave it out by name.

        listed: the list and line that names the file, such as `val.csv:3`; '' where the folder itself does.
        """
        size = self.size(example.path)
        if size is None:
            self.skip("missing", example.path, f"listed in {listed}, not on disk" if listed else "not on disk")
        elif size == DANGLING:
            self.skip("missing", example.path, "a link to a file that is not there")
        elif size == 0:
            self.skip("broken", example.path, EMPTY)
        else:
            self.examples.append(example)

    def label(self, name: str, indices: Mapping[str, int], where: str) -> int | None:
        """The index of a class name; None, and a problem, where it is empty or unknown."""
        if (index := indices.get(name)) is None:
            self.skip("label", where, f"unknown label {name!r}" if name else "empty label")
        return index

    def names(self, found: Iterable[str]) -> list[str]:
        """Class names in label order: `task.classes`, else the sorted unique names `found` in train."""
        return self.classes if self.classes is not None else sorted({name for name in found if name})

    def by_stem(self, folder: str) -> dict[str, str]:
        """Media files of one folder as {name without extension: path}; the best extension of several."""
        order = {extension: rank for rank, extension in enumerate(EXTENSIONS[self.task.modality])}
        best: dict[str, tuple[int, str]] = {}
        for name in self.folder(folder).files:
            stem, _, extension = name.rpartition(".")
            rank = order.get("." + extension.lower())
            if rank is not None and (stem not in best or (rank, name) < best[stem]):
                best[stem] = (rank, name)
        prefix = f"{folder}/" if folder else ""
        return {stem: prefix + name for stem, (_, name) in best.items()}

    def media(self, folder: str) -> list[str]:
        """Media files under a folder, at any depth, as sorted paths; other files become problems."""
        found = []
        for path in self.files(folder):
            if path.lower().endswith(EXTENSIONS[self.task.modality]):
                found.append(path)
            else:
                self.skip("broken", path, f"not a file of modality {self.task.modality} by its extension")
        return found

    def files(self, folder: str) -> list[str]:
        """Every file under a folder, at any depth, as sorted paths."""
        return sorted(self._walk(folder, ()))

    def finish(self, classes: Sequence[str]) -> Scan:
        """The scan, sorted by key."""
        return finish_scan(self.examples, classes, self.problems)

    def _walk(self, folder: str, above: tuple[str, ...]) -> Iterator[str]:
        real = os.path.realpath(self.root / folder)
        if any(f"{upper}/".startswith(f"{real}/") for upper in above):
            return  # a link to a folder that holds it: walking it would not end
        prefix = f"{folder}/" if folder else ""
        listing = self.folder(folder)
        yield from (prefix + name for name in listing.files)
        for name in listing.folders:
            yield from self._walk(prefix + name, (*above, real))


def _list_folder(path: Path) -> Folder:
    files, folders = {}, []
    try:
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.is_file():
                    files[entry.name] = entry.stat().st_size
                elif entry.is_symlink():
                    files[entry.name] = DANGLING
    except (FileNotFoundError, NotADirectoryError):
        return Folder({}, ())
    except OSError as error:
        raise UserError(f"{path} cannot be listed: {error.strerror}; check its permissions") from None
    return Folder(files, tuple(folders))


def inside(path: str) -> str | None:
    """`path` without './' and doubled '/'; None where it is empty, absolute or climbs with '..'.

    By its letters only: links are followed, because a dataset's folder is often a link to a shared disk.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or "\0" in path or not parts or ".." in parts:
        return None
    return "/".join(parts)


def name_problem(name: str) -> str | None:
    """Why an id cannot be part of a file's name; None where it can."""
    if not name:
        return "empty name"
    return OUTSIDE if "/" in name or inside(name) is None else None


def carve(key: str, train: float, validation: float = 1.0) -> Split:
    """The split of a key by its hash: train below `train`, validation below `validation`, else test."""
    fraction = key_fraction(key)
    return "train" if fraction < train else "validation" if fraction < validation else "test"


def split_of(name: str) -> Split | None:
    """The split that a file's or a folder's name speaks of, where exactly one does.

    A word counts where no letter touches it: `imagenet-train-0001.tar` and `val_00.parquet`, but not
    `latest`.
    """
    words = re.findall(r"[a-z]+", name.lower())
    splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return splits.pop() if len(splits) == 1 else None


def read_options(survey: Survey, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`task.options` over `defaults`; null keeps the default.

    Raises UserError for an unknown key (with the nearest known one) and for a value of another type.
    """
    problems, values = [], dict(defaults)
    for key, value in survey.task.options.items():
        where = f"tasks.{survey.name}.options.{key}"
        if not defaults:
            problems.append(f"{where}: layout {survey.task.layout} takes no options")
        elif key not in defaults:
            nearest = difflib.get_close_matches(key, defaults, n=1, cutoff=0)[0]
            problems.append(f"{where}: no such option; nearest is {nearest!r}, known are {', '.join(defaults)}")
        elif value is not None:
            kind = type(defaults[key])
            good = isinstance(value, int | float) if kind is float else isinstance(value, kind)
            if not good or (isinstance(value, bool) and kind is not bool):
                problems.append(f"{where}: {value!r} given, a {kind.__name__} is expected")
            values[key] = value
    if problems:
        raise UserError(f"tasks.{survey.name}.options cannot be used", problems)
    return values


def carve_fractions(survey: Survey, options: Mapping[str, Any]) -> tuple[float, float]:
    """Options `validation_fraction` and `test_fraction` as thresholds (train below, validation below).

    Raises UserError where they are negative or leave nothing for train.
    """
    validation, test = float(options["validation_fraction"]), float(options["test_fraction"])
    if validation < 0 or test < 0 or validation + test >= 1:
        raise UserError(
            f"tasks.{survey.name}.options: validation_fraction={validation:g} and test_fraction={test:g} must"
            " be at least 0 and together below 1"
        )
    return 1 - validation - test, 1 - test
