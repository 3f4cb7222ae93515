"""Writes datasets at toy size, in their true on-disk layouts, for a tiny model to learn.

In: a folder and a few numbers. Out: `<root>/<task>/...` as the real archives unpack, and a marker file. What is
written is decided in `layouts` and `av_layouts` (files, tables), `media` and `av_media` (what is drawn); here are
the arguments, the folder and the disk. The marker is written twice: first without counts (unfinished), at the end
with them. Nothing is ever deleted: a repeated call overwrites the files of an interrupted one, because the same
arguments give the same names. The command is `polyvit synth DIR`.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from polyvit.errors import UserError
from polyvit.synthetic import media
from polyvit.synthetic.av_layouts import AV_WRITERS
from polyvit.synthetic.layouts import AV_SPLITS, MAX_CLASSES, SPLITS, WRITERS, Job, Progress, csv_text, save

MARKER = ".polyvit-synthetic.json"
FORMAT = 1
"""Raised whenever the same arguments would give other files."""

Counts = dict[str, dict[str, int]]


def is_synthetic(folder: str | Path) -> bool:
    """Whether a task's folder lies in what `write_synthetic` wrote, as far as this machine can see it."""
    path = Path(folder).expanduser()
    return any((place / MARKER).is_file() for place in (path, path.parent))


def write_synthetic(
    root: Path,
    *,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    classes: int = 4,
    train: int = 48,
    evaluation: int = 16,
    side: int = 64,
    progress: Progress | None = None,
) -> Counts:
    """Write the datasets under `root`/<task> and return the examples per task and split.

    tasks: some of `SPLITS` and `AV_SPLITS`; None is the nine of `SPLITS`. classes: of each task, 2 to 8
    (CIFAR-100: twice as many fine classes). train, evaluation: examples of the training split and of each other
    split, over all classes. side: pixels of pictures (smaller side) and clips; CIFAR stays 32. progress: called as
    (task, done, total) after every example. Counts are keyed by the split names on disk (`SPLITS`); UCF-101's are
    of its first list, ESC-50's of its first fold. The same arguments give the same bytes on the same machine; a
    second call with them does nothing.

    Raises:
        UserError: arguments out of range, a folder with other things in it, or a disk that cannot be written.
    """
    chosen = _checked(seed, tasks, classes, train, evaluation, side)
    numbers = {"seed": seed, "classes": classes, "train": train, "evaluation": evaluation, "side": side}
    root = Path(root)
    with _disk_errors(root):
        if (known := _claim(root, {"tasks": chosen, **numbers}, chosen)) is not None:
            return known
        counts: Counts = {}
        for task in chosen:
            job = Job(task, root / task, **numbers, progress=progress)
            (WRITERS | AV_WRITERS)[task](job)
            counts[task] = job.counts()
        _mark(root, {"tasks": chosen, **numbers}, counts)
    return counts


def write_example_pair(root: Path, *, seed: int = 0) -> Counts:
    """Write the tutorial's two datasets of one's own: `root`/shapes (PNG folders) and `root`/sounds (a CSV).

    shapes/{train,val}/<class>/*.png, 24 and 12 pictures; sounds/data.csv with the columns path, label,
    split (train or validation) and sounds/clips/*.wav, paths relative to the CSV. Three classes each.
    Raises UserError as `write_synthetic` does.
    """
    root, counts = Path(root), {"shapes": {"train": 24, "val": 12}, "sounds": {"train": 24, "validation": 12}}
    rows: list[Sequence[Any]] = [("path", "label", "split")]
    with _disk_errors(root):
        if (known := _claim(root, {"pair": True, "seed": seed}, list(counts))) is not None:
            return known
        for index in range(36):
            kind, rng = index % 3, np.random.default_rng([seed, index])
            shape, sound, is_train = media.SHAPES[kind], media.SOUNDS[kind], index < 24
            picture = media.textured_shape(rng, (64, 64), shape, "plain", kind / 3)
            wave = media.mixture(rng, [sound], 1.5, 16_000)
            save(
                root / "shapes" / ("train" if is_train else "val") / shape / f"{shape}_{index:02d}.png",
                media.encode_image(picture, "PNG"),
            )
            name = f"clips/{sound}_{index:02d}.wav"
            save(root / "sounds" / name, media.encode_sound(wave, 16_000, "WAV"))
            rows.append((name, sound, "train" if is_train else "validation"))
        save(root / "sounds" / "data.csv", csv_text(rows))
        _mark(root, {"pair": True, "seed": seed}, counts)
    return counts


def _checked(
    seed: int, tasks: Sequence[str] | None, classes: int, train: int, evaluation: int, side: int
) -> list[str]:
    """The chosen tasks in the order of the tables. Raises UserError with every problem at once."""
    known = (*SPLITS, *AV_SPLITS)
    chosen = list(SPLITS) if tasks is None else [task for task in known if task in tasks]
    problems = [f"task {task!r} is not one of {', '.join(known)}" for task in tasks or () if task not in known]
    limits = {
        "seed": (seed, 0, 2**32),
        "classes": (classes, 2, MAX_CLASSES),
        # Every fine class of CIFAR-100 and every one of the five CIFAR-10 batches needs a row.
        "train": (train, max(5, 2 * classes), 100_000),
        "evaluation": (evaluation, 1, 100_000),
        "side": (side, 32, 512),
    }
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            problems.append(f"{name}={value} must be {low} to {high}")
    if side % 2:
        problems.append(f"side={side} must be even: H.264 has no odd sides")
    if tasks is not None and not tasks:
        problems.append("tasks is empty; give at least one, or None for all nine")
    if problems:
        raise UserError("the synthetic datasets cannot be written with these arguments", problems)
    return chosen


# ------------------------------------------------------------------------------------- the folder and disk


def _claim(root: Path, arguments: dict[str, Any], folders: Sequence[str]) -> Counts | None:
    """Counts if `root` holds these datasets already; else None, with `root` marked as being written."""
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; give a folder for the synthetic datasets")
    root.mkdir(parents=True, exist_ok=True)
    if any(root.iterdir()):
        marker = _read_marker(root)
        if marker is None:
            raise UserError(
                f"{root} is not empty and was not written by this command; give a new or empty folder,"
                " so that nothing of yours is mixed with made-up data"
            )
        if marker.get("arguments") != {"format": FORMAT, **arguments}:
            raise UserError(
                f"{root} holds synthetic data made with other arguments:"
                f" {json.dumps(marker.get('arguments'))};"
                " delete it, give another folder, or repeat with those arguments"
            )
        if marker.get("counts") and all((root / folder).is_dir() for folder in folders):
            counts: Counts = marker["counts"]
            return counts
    _mark(root, arguments, None)
    return None


def _read_marker(root: Path) -> dict[str, Any] | None:
    try:
        marker = json.loads((root / MARKER).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return marker if isinstance(marker, dict) else None


def _mark(root: Path, arguments: dict[str, Any], counts: Counts | None) -> None:
    text = json.dumps({"arguments": {"format": FORMAT, **arguments}, "counts": counts}, indent=1)
    beside = root / (MARKER + ".writing")
    beside.write_text(text + "\n")
    beside.replace(root / MARKER)


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or root
        raise UserError(
            f"cannot write the synthetic datasets: {where}: {error.strerror or error};"
            " free some space or give a folder that you may write to, then run the same command again"
        ) from error
