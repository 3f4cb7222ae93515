"""What the layouts share: the scan in progress, folder listings, options, splits.

Reading lists is in `tables.py`, labels as people write them in `labels.py`.

In: one task and its folder, as a `ScanContext`. Out: the examples and problems added to it, as a `Scan`.
Each folder is listed once and every file that a list names is looked up in that listing, so a million rows do not
cost a million `stat` calls or requests. Listings are sorted: the result never depends on the order in which a file
system names its entries.
"""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from polyvit.config import TaskConfig
from polyvit.data.index import (
    Example,
    ExampleWriter,
    Problem,
    ProblemKind,
    Scan,
    Split,
    finish_scan,
    key_fraction,
)
from polyvit.data.layouts.scanning.spreading import Spread
from polyvit.errors import UserError
from polyvit.storage import DANGLING, Folder, Root, StoreUnavailable, pool

SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validate": "validation", "validation": "validation",
    "dev": "validation", "eval": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
"""How people call the splits, in folder names, file names and CSV cells (lower case)."""

_ODD = re.compile(r"/[/.]|\0")
LONGEST_LINK = 1024
"""Bytes of a file that may be a link in words."""
DEEPEST, MOST_LINKS = 100, 100
"""How many folders deep a walk goes, and how often it follows links to the same folder."""
OUTSIDE = "path leaves the root"
EMPTY = "empty file"


@dataclass(frozen=True)
class Layout:
    """How data lie on disk: the function that scans them, and what it expects in the folder, in words."""

    scan: "Callable[[ScanContext], Scan]"
    expects: str


class ScanContext:
    """One scan in progress: the task, its folder, the examples and the problems so far.

    classes: the names in `task.classes`, or None where the layout's own list counts.
    read: the stamp of every file that was read, as it was before.
    shard_cache: a folder where a layout may keep the rows of one shard for the next scan; None: nowhere.
    spread: does what is many times the same elsewhere, see `spread_over`.
    """

    def __init__(
        self,
        name: str,
        task: TaskConfig,
        root: Root,
        classes: list[str] | None = None,
        shard_cache: Path | None = None,
        spread: Spread | None = None,
    ) -> None:
        self.name, self.task, self.root, self.classes, self.shard_cache = name, task, root, classes, shard_cache
        self.spread = spread
        self.examples = ExampleWriter()
        self.problems: list[Problem] = []
        self.read: dict[str, str] = {}
        self._folders: dict[str, Folder] = {}
        self._coming: dict[str, Future[Folder]] = {}

    def skip(self, kind: ProblemKind, where: str, reason: str) -> None:
        """Leave one file or row out, and say which and why."""
        self.problems.append(Problem(kind, where, reason))

    def folder(self, path: str) -> Folder:
        """The listing of a folder, '' for the root; empty where there is no such folder."""
        if path not in self._folders:
            request = self._coming.pop(path, None)
            try:
                listing = request.result() if request else self.root.folder(path)
            except StoreUnavailable as error:
                raise UserError(f"tasks.{self.name}: {error}") from None
            self._folders[path] = self._readable(path, listing)
        return self._folders[path]

    def _readable(self, path: str, listing: Folder) -> Folder:
        """The listing without names that are not UTF-8; these become problems."""
        bad = {name for name in (*listing.files, *listing.folders) if not name.isascii() and not is_utf8(name)}
        if not bad:
            return listing
        for name in sorted(bad):
            self.skip("broken", ascii(f"{path}/{name}"), "its name is not UTF-8")
        files = {name: size for name, size in listing.files.items() if name not in bad}
        return Folder(files, tuple(name for name in listing.folders if name not in bad), listing.stamp)

    def class_folders(self, path: str = "") -> tuple[str, ...]:
        """The folders in a folder of classes or splits, '' for the root.

        Raises UserError for a dead link among them: without its class all later class indices would be others.
        """
        listing = self.folder(path)
        dead = [name for name, size in listing.files.items() if self._leads_nowhere(path, name, size)]
        if dead:
            link = self.at(f"{path}/{dead[0]}" if path else dead[0])
            raise UserError(
                f"tasks.{self.name}: {link} is a link to something that is not there, where class folders are"
                " expected: without it all later classes would get other indices. Mount what it leads to, or"
                " delete the link"
            )
        return listing.folders

    def _leads_nowhere(self, folder: str, name: str, size: int) -> bool:
        """Whether a file stands for a folder: a dead link, or a link that a copy or Git made a text file."""
        if self.is_media(name) or size == DANGLING:
            return size == DANGLING and not self.is_media(name)
        if "." in name or not 0 < size < LONGEST_LINK:
            return False
        content = self.root.read(f"{folder}/{name}" if folder else name)
        return b"\n" not in content and content.startswith((b"/", b"./", b"../"))

    def inside(self, path: str) -> str | None:
        """As the function `inside`, also for an absolute path or URL that lies in the root."""
        if not path.startswith("/") and "://" not in path:
            return inside(path)
        for root in dict.fromkeys((self.at(""), self.root.real(""))):
            if path.startswith(root.rstrip("/") + "/"):
                return inside(path[len(root.rstrip("/")) :].lstrip("/"))
        return None

    def is_media(self, name: str) -> bool:
        """Whether a file's name ends as those of the task's modality do."""
        return name.lower().endswith(self.task.extensions)

    def expect(self, folders: Iterable[str]) -> None:
        """Announce folders that will be listed soon, so that an object store is asked for all of them at once."""
        if self.root.remote:
            for path in folders:
                if path not in self._folders and path not in self._coming:
                    self._coming[path] = pool().submit(self.root.folder, path)

    def at(self, path: str = "") -> str:
        """Where a file lies, for messages."""
        return self.root.at(path)

    def open(self, path: str) -> BinaryIO:
        """A file to read parts of. Raises OSError."""
        self.read[path] = self.root.file_stamp(path)
        return self.root.open(path)

    def content(self, path: str) -> bytes:
        """A whole file. Raises OSError."""
        self.read[path] = self.root.file_stamp(path)
        return self.root.read(path)

    def fork(self) -> "ScanContext":
        """A context of the same root for one piece of the work, which another thread or process may do."""
        fork = ScanContext(self.name, self.task, self.root, self.classes, self.shard_cache)
        fork._folders = self._folders
        return fork

    def join(self, problems: Sequence[Problem], read: Mapping[str, str]) -> None:
        """Take over the problems of a fork, and the stamps of the files that it read."""
        self.problems += problems
        self.read |= read

    def stamps(self) -> dict[str, dict[str, str]] | None:
        """What the scan saw: stamps of every folder and file; None where one of them may still be changing."""
        folders = {path: folder.stamp for path, folder in self._folders.items()}
        sure = all(folders.values()) and all(self.read.values())
        return {"folders": folders, "files": self.read} if sure else None

    def size(self, path: str) -> int | None:
        """Bytes of a file by its folder's listing; None where it is not there, DANGLING for a dead link."""
        folder, _, name = path.rpartition("/")
        return self.folder(folder).files.get(name)

    def add(self, example: Example, named_in: str = "") -> None:
        """Keep an example if its file is there and holds bytes; otherwise it becomes a problem.

        named_in: the list and line that names the file, such as `val.csv:3`; '' where it comes from a listing.
        """
        if self.usable(example.path, named_in):
            self.examples.append(example)

    def usable(self, path: str, named_in: "str | pa.Array" = "", row: int = 0) -> bool:
        """Whether a file is there and holds bytes; a problem where not.

        named_in: as in `add`, or a column of them, of which row `row` counts.
        """
        if ("\0" in path or ".." in path) and inside(path) is None:
            self.skip("broken", path, OUTSIDE)
            return False
        size = self.size(path)
        if size is None:
            named_in = named_in if isinstance(named_in, str) else named_in[row].as_py()
            self.skip("missing", path, f"listed in {named_in}, not on disk" if named_in else "not on disk")
        elif size == DANGLING:
            self.skip("missing", path, "a link to a file that is not there")
        elif size == 0:
            self.skip("broken", path, EMPTY)
        else:
            return True
        return False

    def label(self, name: str, indices: Mapping[str, int], where: str) -> int | None:
        """The index of a class name; None, and a problem, where it is empty or unknown."""
        if (index := indices.get(name)) is None:
            self.skip("label", where, unknown_label(name))
        return index

    def names(self, train_names: Iterable[str]) -> list[str]:
        """Class names in label order: `task.classes`, else the sorted unique `train_names`."""
        return self.classes if self.classes is not None else sorted({name for name in train_names if name})

    def by_stem(self, folder: str) -> dict[str, str]:
        """Media files of one folder as {name without extension: path}; the best extension of several."""
        order = {extension: rank for rank, extension in enumerate(self.task.extensions)}
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
        paths = []
        for path in self.files(folder):
            if self.is_media(path):
                paths.append(path)
            else:
                self.skip("broken", path, f"not a file of modality {self.task.modality} by its extension")
        return paths

    def holds_media(self, folder: str) -> bool:
        """Whether any media file is under a folder; nothing is listed beyond the first."""
        return any(map(self.is_media, self._walk(folder, (), Counter(), quiet=True)))

    def files(self, folder: str) -> list[str]:
        """Every file under a folder, at any depth, as sorted paths."""
        return sorted(self._walk(folder, (), Counter()))

    def finish(self, classes: Sequence[str]) -> Scan:
        """The scan, sorted by key."""
        return finish_scan(self.examples, classes, self.problems)

    def _walk(
        self, folder: str, above: tuple[str, ...], visits: Counter[str], quiet: bool = False
    ) -> Iterator[str]:
        """above: the folders around it, links resolved. visits: of each folder so far. quiet: name no problems."""
        real = self.root.real(folder)
        if any(f"{upper}/".startswith(f"{real}/") for upper in above):
            return  # a link to a folder above it: following it would not end
        visits[real] += 1
        if len(above) >= DEEPEST or visits[real] > MOST_LINKS:
            if not quiet and (len(above) >= DEEPEST or visits[real] == MOST_LINKS + 1):
                deep = f"more than {DEEPEST} folders in each other; what is further down is left out"
                often = f"links lead to this folder more than {MOST_LINKS} times; further ones are left out"
                self.skip("broken", folder, deep if len(above) >= DEEPEST else often)
            return
        prefix = f"{folder}/" if folder else ""
        listing = self.folder(folder)
        self.expect(prefix + name for name in listing.folders)
        yield from (prefix + name for name in listing.files)
        for name in listing.folders:
            yield from self._walk(prefix + name, (*above, real), visits, quiet)


def unknown_label(name: str) -> str:
    """The reason of a problem with a class name."""
    return f"unknown label {name!r}" if name else "empty label"


def is_utf8(name: str) -> bool:
    """Whether it can be written as text: bytes of another encoding come from the file system as surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def inside(path: str) -> str | None:
    """`path` without './' and doubled '/'; None where it is empty, absolute or climbs with '..'.

    By its letters only: links are followed, because a dataset's folder is often a link to a shared disk.
    """
    if path and path[0] not in "/." and path[-1] != "/" and not _ODD.search(path):
        return path
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
    """The split that the name of a file or folder contains, if it contains exactly one.

    A word counts where no letter touches it: `imagenet-train-0001.tar` and `val_00.parquet`, but not
    `latest`.
    """
    words = re.findall(r"[a-z]+", name.lower())
    splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return splits.pop() if len(splits) == 1 else None


def media_folder(context: ScanContext) -> str:
    """`audio`, or for a task on videos `video` where there is such a folder."""
    return "video" if context.task.modality != "audio" and "video" in context.folder("").folders else "audio"


def read_options(context: ScanContext, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`task.options` over `defaults`; null keeps the default.

    Raises UserError for an unknown key (with the nearest known one) and for a value of another type.
    """
    problems, values = [], dict(defaults)
    for key, value in context.task.options.items():
        where = f"tasks.{context.name}.options.{key}"
        if not defaults:
            problems.append(f"{where}: layout {context.task.layout} takes no options")
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
        raise UserError(f"tasks.{context.name}.options cannot be used", problems)
    return values


def carve_fractions(context: ScanContext, options: Mapping[str, Any]) -> tuple[float, float]:
    """Options `validation_fraction` and `test_fraction` as thresholds (train below, validation below).

    Raises UserError where they are negative or leave nothing for train.
    """
    validation, test = float(options["validation_fraction"]), float(options["test_fraction"])
    if validation < 0 or test < 0 or validation + test >= 1:
        raise UserError(
            f"tasks.{context.name}.options: validation_fraction={validation:g} and test_fraction={test:g} must"
            " be at least 0 and together below 1"
        )
    return 1 - validation - test, 1 - test


def with_validation(
    splits: Mapping[str, Split | None], below: tuple[float, float]
) -> tuple[dict[str, Split | None], tuple[float, float]]:
    """Where files are train and none is validation, train is carved into the two: its files' split is then None.

    splits: of each file, from its name. below: thresholds of `carve_fractions`; what is returned leaves no test.
    """
    named = set(splits.values())
    if "train" not in named or "validation" in named:
        return dict(splits), below
    return {file: None if split == "train" else split for file, split in splits.items()}, (
        below[0] + 1 - below[1],
        1.0,
    )
