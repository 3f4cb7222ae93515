"""Scan a dataset's folder into examples: one file per on-disk layout, chosen by `task.layout`.

In: a task and its folder. Out: a `Scan`, sorted by key, whose labels are within the task's classes. The
layouts, their rules and their options are in the docstrings of the files beside this one.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polyvit.config import LAYOUTS, TaskConfig, load_attribute
from polyvit.data.index import Scan
from polyvit.data.layouts.scanning import Layout, ScanContext, Spread
from polyvit.data.layouts.stream_check import with_streams
from polyvit.errors import UserError
from polyvit.storage import Location, Root, StoreUnavailable, open_root

Stamps = dict[str, dict[str, str]]
"""{"folders": {path: stamp}, "files": {path: stamp}}: equal stamps mean an equal scan."""
SHOWN_PROBLEMS = 10
"""Problems that the message of an empty scan shows."""


def load_layout(name: str) -> Layout:
    """The layout of a name in `polyvit.config.LAYOUTS`; its file is imported on first use."""
    layout = load_attribute(LAYOUTS[name])
    if not isinstance(layout, Layout):
        raise UserError(f"layout {name}: {LAYOUTS[name]} is not a polyvit.data.layouts.Layout")
    return layout


def scan(task: TaskConfig, location: Location | Root, name: str = "<name>") -> Scan:
    """Scan the folder or URL of task `name` into examples, class names and named problems.

    Raises UserError where the folder is not there or holds no usable example, where its lists cannot be read,
    where an option is unknown, and where classes or labels exceed `task.num_classes`. Fewer classes are a
    subset, allowed.
    """
    return scan_with_stamps(task, location, name)[0]


def scan_with_stamps(
    task: TaskConfig,
    location: Location | Root,
    name: str = "<name>",
    shard_cache: Path | None = None,
    spread: Spread | None = None,
) -> tuple[Scan, Stamps | None]:
    """As `scan`, with the stamps of all that was read, None where they cannot be trusted yet.

    task: what to scan. location: its folder or URL. name: of the task, for messages. shard_cache: a folder where
    the rows of single shards are kept for the next scan. spread: does what is many times the same elsewhere.
    """
    root = open_root(location)
    layout = load_layout(task.layout)
    try:
        state = root.state()
    except StoreUnavailable as error:
        raise UserError(f"tasks.{name}: {error}") from None
    if state != "folder":
        raise UserError(
            f"tasks.{name}: {root.at('')} is not {'a folder' if state else 'there'}; layout {task.layout} expects"
            f" in it: {layout.expects}. Put the data there, or set tasks.{name}.root (or data.root, the folder"
            f" that holds {name}/)"
        )
    context = ScanContext(name, task, root, read_classes(task, root, name), shard_cache, spread)
    try:
        with _no_collections():
            result = with_streams(layout.scan(context), task, root, name, spread)
    except StoreUnavailable as error:
        raise UserError(f"tasks.{name}: {error}") from None
    _check(result, task, root, name, layout.expects)
    return result, context.stamps()


@contextmanager
def _no_collections() -> Iterator[None]:
    """A scan creates millions of objects and no cycles; the search for cycles took a fifth of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_classes(task: TaskConfig, root: Root, name: str = "<name>") -> list[str] | None:
    """Class names in `task.classes`, one a line; None where the key is null.

    A relative path is looked for in the task's folder, then in the current one. Raises UserError where it is
    in neither, is not UTF-8 text, or has an empty or a repeated name.
    """
    if task.classes is None:
        return None
    path = root.at(task.classes)
    try:
        try:
            content = root.read(task.classes)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            path = task.classes
            content = Path(path).read_bytes()
        names = [line.strip() for line in content.decode("utf-8-sig").rstrip().split("\n")]
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(
            f"tasks.{name}.classes: {task.classes} is neither in {root.at('')} nor in {Path.cwd()}; it is a"
            " text file of class names, one a line, in index order"
        ) from None
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"tasks.{name}.classes: {path} cannot be read as UTF-8 text ({error})") from None
    lines: dict[str, int] = {}
    for number, text in enumerate(names, 1):
        if not text or text in lines:
            what = f"repeats line {lines[text]}, {text!r}" if text else "is empty"
            raise UserError(
                f"tasks.{name}.classes: line {number} of {path} {what}; every class needs its own name"
            )
        lines[text] = number
    return names


def _check(result: Scan, task: TaskConfig, root: Root, name: str, expects: str) -> None:
    key = f"tasks.{name}.num_classes"
    if len(result.classes) > task.num_classes:
        raise UserError(
            f"{root.at('')} has {len(result.classes)} classes, {key} is {task.num_classes}; set {key} to at least"
            f" {len(result.classes)}, or tasks.{name}.classes to the classes that count"
        )
    highest = result.examples.most_labelled()
    if highest is None:
        reasons = [f"{problem.where}: {problem.reason}" for problem in result.problems[:SHOWN_PROBLEMS]]
        raise UserError(
            f"tasks.{name}: no usable example in {root.at('')} ({len(result.problems)} left out); layout"
            f" {task.layout} expects in it: {expects}",
            reasons,
        )
    allowed = len(result.classes)
    if max(highest.labels) >= allowed:
        raise UserError(
            f"{root.at('')}: {highest.key} has label {max(highest.labels)}; allowed are 0..{allowed - 1} (labels"
            f" count from 0). Correct the labels, {key} or the class names"
        )
