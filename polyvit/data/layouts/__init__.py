"""Scan a dataset's folder into examples: one file per on-disk layout, chosen by `task.layout`.

In: a task and its folder. Out: a `Scan`, sorted by key, whose labels are within the task's classes. The
layouts, their rules and their options are in the docstrings of the files beside this one.
"""

from collections.abc import Callable
from pathlib import Path

from polyvit.data.index import Scan
from polyvit.data.layouts import (
    audioset,
    cifar,
    csvfile,
    imagefolder,
    imagenet,
    kinetics,
    moments,
    parquet,
    pets,
    resisc45,
    vggsound,
    webdataset,
)
from polyvit.data.layouts.common import Survey
from polyvit.errors import UserError
from polyvit.task_config import TaskConfig

LAYOUTS: dict[str, tuple[Callable[[Survey], Scan], str]] = {
    "imagenet": (imagenet.scan_imagenet, imagenet.EXPECTS),
    "cifar10": (cifar.scan_cifar10, cifar.EXPECTS10),
    "cifar100": (cifar.scan_cifar100, cifar.EXPECTS100),
    "pets": (pets.scan_pets, pets.EXPECTS),
    "resisc45": (resisc45.scan_resisc45, resisc45.EXPECTS),
    "kinetics": (kinetics.scan_kinetics, kinetics.EXPECTS),
    "moments": (moments.scan_moments, moments.EXPECTS),
    "audioset": (audioset.scan_audioset, audioset.EXPECTS),
    "vggsound": (vggsound.scan_vggsound, vggsound.EXPECTS),
    "imagefolder": (imagefolder.scan_imagefolder, imagefolder.EXPECTS),
    "csv": (csvfile.scan_csv, csvfile.EXPECTS),
    "webdataset": (webdataset.scan_webdataset, webdataset.EXPECTS),
    "parquet": (parquet.scan_parquet, parquet.EXPECTS),
}
"""{layout: (its scan, what it expects in the folder)}; `polyvit.config.Layout` has the same names."""

SHOWN_PROBLEMS = 10
"""Problems that the message of an empty scan shows."""


def scan(task: TaskConfig, root: Path, name: str = "<name>") -> Scan:
    """Scan `root`, the folder of task `name`, into examples, class names and named problems.

    Raises UserError where the folder is not there or holds no usable example, where its lists cannot be read,
    where an option is unknown, and where classes or labels exceed `task.num_classes`. Fewer classes are a
    subset, allowed.
    """
    function, expects = LAYOUTS[task.layout]
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "is not there"
        raise UserError(
            f"tasks.{name}: {root} {state}; layout {task.layout} expects in it: {expects}. Put the data"
            f" there, or set tasks.{name}.root (or data.root, the folder that holds {name}/)"
        )
    found = function(Survey(name, task, root, read_classes(task, root, name)))
    _check(found, task, root, name, expects)
    return found


def read_classes(task: TaskConfig, root: Path, name: str = "<name>") -> list[str] | None:
    """Class names in `task.classes`, one a line; None where the key is null.

    A relative path is looked for in the task's folder, then in the current one. Raises UserError where it is
    in neither, is not UTF-8 text, or has an empty or a repeated name.
    """
    if task.classes is None:
        return None
    places = [root / task.classes, Path(task.classes)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(
            f"tasks.{name}.classes: {task.classes} is neither in {root} nor in {Path.cwd()}; it is a"
            " text file of class names, one a line, in index order"
        )
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n")]
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


def _check(found: Scan, task: TaskConfig, root: Path, name: str, expects: str) -> None:
    key = f"tasks.{name}.num_classes"
    if len(found.classes) > task.num_classes:
        raise UserError(
            f"{root} has {len(found.classes)} classes, {key} is {task.num_classes}; set {key} to at least"
            f" {len(found.classes)}, or tasks.{name}.classes to the classes that count"
        )
    highest = max(found.examples, key=lambda example: max(example.labels), default=None)
    if highest is None:
        reasons = [f"{problem.where}: {problem.reason}" for problem in found.problems[:SHOWN_PROBLEMS]]
        raise UserError(
            f"tasks.{name}: no usable example in {root} ({len(found.problems)} left out); layout"
            f" {task.layout} expects in it: {expects}",
            reasons,
        )
    allowed = len(found.classes)
    if max(highest.labels) >= allowed:
        raise UserError(
            f"{root}: {highest.key} has label {max(highest.labels)}; allowed are 0..{allowed - 1} (labels"
            f" count from 0). Correct the labels, {key} or the class names"
        )
