"""The store of a run's checkpoints: a folder, or a bucket of an object store. Only whole checkpoints count.

In: a scratch folder with the files of a checkpoint. Out: the steps that are whole, and their files.

A checkpoint is a folder `step_00000500` with a `manifest.json` that names every other file with its size and
SHA-256. It is complete when the manifest is there: locally the folder is written beside and renamed, on an object
store the manifest is uploaded last.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from polyvit.errors import UserError
from polyvit.storage import as_location, open_remote

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"
_WRITING = ".writing-"
_PLAIN_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
"""Names of a checkpoint's files: no folder, no way up."""
_FOLDER_NAME = re.compile(r"step_(\d{8,})")
"""Anything else beside the checkpoints is not ours, such as a copy `step_00000500.bak`."""


def folder_name(step: int) -> str:
    """`step_00000500`."""
    return f"step_{step:08d}"


def write_manifest(folder: Path, metadata: Mapping[str, Any], names: Sequence[str] = ()) -> None:
    """Name every file of `folder` (or these) with its size and checksum, beside `metadata` such as the step."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
        if (path.name in names if names else path.name != MANIFEST)
    }
    (folder / MANIFEST).write_text(json.dumps({**metadata, "files": files}, indent=1) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `write_manifest` wrote. Raises OSError or ValueError."""
    return _manifest((folder / MANIFEST).read_text())


def _manifest(text: str) -> dict[str, Any]:
    """Raises ValueError for text that is no manifest, and where a name leads out of the checkpoint's folder."""
    document = json.loads(text)
    if not isinstance(document, dict) or not isinstance(document.get("files"), dict):
        raise ValueError("it names no files")
    for name in document["files"]:
        if not _PLAIN_NAME.fullmatch(name):
            raise ValueError(f"it names {name!r}, which is no file of a checkpoint")
    return document


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, in words; None where every byte is as the manifest says."""
    try:
        files = read_manifest(folder)["files"]
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size:,} bytes instead of {expected['bytes']:,}"
            if _sha256(path) != expected["sha256"]:
                return f"{name} is not what was written (its SHA-256 differs)"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Store(Protocol):
    """The checkpoints of one run. Every method may raise OSError: a full disk, a server that does not answer."""

    address: str

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""

    def manifest(self, step: int) -> dict[str, Any]:
        """A checkpoint's manifest."""

    def text(self, step: int, name: str) -> str:
        """One file of a checkpoint, such as its `state.json`, without the others."""

    def scratch(self) -> contextlib.AbstractContextManager[Path]:
        """An empty folder to write a checkpoint in; deleted after the block."""

    def commit(self, folder: Path, step: int) -> None:
        """Make the scratch folder the checkpoint of `step`, replacing one that is there."""

    def fetched(self, step: int) -> contextlib.AbstractContextManager[Path]:
        """The checkpoint as a local folder, for as long as the block lasts."""

    def remove(self, step: int) -> None:
        """Delete a checkpoint."""


class LocalStore:
    """Checkpoints in a folder of a (shared) file system."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, str(folder)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return _steps(path.parent.name for path in self.folder.glob(f"step_*/{MANIFEST}"))

    def manifest(self, step: int) -> dict[str, Any]:
        """A checkpoint's manifest."""
        return read_manifest(self.folder / folder_name(step))

    def text(self, step: int, name: str) -> str:
        """One file of a checkpoint."""
        return (self.folder / folder_name(step) / name).read_text()

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder beside the checkpoints, so that a rename commits it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{_WRITING}{os.getpid()}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def commit(self, folder: Path, step: int) -> None:
        """Flush to the disk, then rename."""
        for path in [*folder.iterdir(), folder]:
            _sync(path)
        target = self.folder / folder_name(step)
        if target.exists():
            target.rename(folder / "replaced")
        folder.rename(target)
        shutil.rmtree(target / "replaced", ignore_errors=True)
        _sync(self.folder)

    @contextlib.contextmanager
    def fetched(self, step: int) -> Iterator[Path]:
        """The folder itself."""
        yield self.folder / folder_name(step)

    def remove(self, step: int) -> None:
        """Rename first, so that a half-deleted folder is never taken for a checkpoint; then delete."""
        path = self.folder / folder_name(step)
        renamed = self.folder / f"{_WRITING}removed-{path.name}"
        path.rename(renamed)
        shutil.rmtree(renamed)

    def sweep(self) -> None:
        """Delete what a killed writer left."""
        for path in self.folder.glob(f"{_WRITING}*"):
            shutil.rmtree(path, ignore_errors=True)


class RemoteStore:
    """Checkpoints under a prefix of an object store, with the retries and time limits of `polyvit.storage`."""

    def __init__(self, address: str) -> None:
        self.address = address
        try:
            self.root = open_remote(address)
        except UserError as error:
            raise UserError(f"train.checkpoint_dir: {error.message}", error.problems) from None

    def steps(self) -> list[int]:
        """Steps with a manifest, ascending."""
        end = f"/{MANIFEST}"
        return _steps(path.removesuffix(end) for path in self.root.walk("") if path.endswith(end))

    def manifest(self, step: int) -> dict[str, Any]:
        """A checkpoint's manifest."""
        return _manifest(self.text(step, MANIFEST))

    def text(self, step: int, name: str) -> str:
        """One file of a checkpoint."""
        return self.root.read(f"{folder_name(step)}/{name}").decode()

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A temporary folder of this machine."""
        with tempfile.TemporaryDirectory(prefix="polyvit-checkpoint-") as folder:
            yield Path(folder)

    def commit(self, folder: Path, step: int) -> None:
        """Upload; the manifest last, and the one of a checkpoint that is replaced is deleted first."""
        self.root.delete(f"{folder_name(step)}/{MANIFEST}")
        names = [path.name for path in folder.iterdir() if path.name != MANIFEST]
        for name in [*sorted(names), MANIFEST]:
            self.root.write(f"{folder_name(step)}/{name}", folder / name)

    @contextlib.contextmanager
    def fetched(self, step: int) -> Iterator[Path]:
        """A copy in a temporary folder."""
        with self.scratch() as folder:
            for name in [*self.manifest(step)["files"], MANIFEST]:
                self.root.download(f"{folder_name(step)}/{name}", folder / name)
            yield folder

    def remove(self, step: int) -> None:
        """The manifest first."""
        self.root.delete(f"{folder_name(step)}/{MANIFEST}")
        self.root.delete_folder(folder_name(step))

    def sweep(self) -> None:
        """Nothing: what lacks a manifest is overwritten when its step comes again."""


def open_store(address: str | Path) -> LocalStore | RemoteStore:
    """A folder's store, or an object store's by its URL (s3://bucket/prefix, gs://...). Raises UserError."""
    location = as_location(str(address))
    return LocalStore(location) if isinstance(location, Path) else RemoteStore(location)


def newest_whole(store: Store) -> tuple[int | None, list[str]]:
    """The newest checkpoint whose every byte is right, and a line for each newer one that was passed over."""
    damaged: list[str] = []
    for step in reversed(store.steps()):
        if (problem := _damage_in(store, step)) is None:
            return step, damaged
        damaged.append(f"checkpoint {folder_name(step)} in {store.address} is damaged: {problem}")
    return None, damaged


def _damage_in(store: Store, step: int) -> str | None:
    try:
        with store.fetched(step) as folder:
            return damage(folder)
    except FileNotFoundError as error:  # a store that does not answer raises another error: that is no damage
        return str(error)
    except ValueError as error:
        return f"{MANIFEST} cannot be read ({error})"


def prune(store: Store, keep_last: int, keep_best: int, metric: str) -> None:
    """Delete all but the newest `keep_last` and the best `keep_best` by `metric` of their evaluation."""
    steps = store.steps()
    scores: dict[int, float] = {}
    for step in steps if keep_best else []:
        if (score := _score(store, step, metric)) is not None:
            scores[step] = score
    best = sorted(scores, key=lambda step: (scores[step], step), reverse=True)[:keep_best]
    for step in set(steps[:-keep_last]) - set(best):
        store.remove(step)


def best_step(store: Store, metric: str) -> int | None:
    """The step of the best kept checkpoint by `metric`; None where none was evaluated."""
    scores = {step: _score(store, step, metric) for step in store.steps()}
    known = {step: score for step, score in scores.items() if score is not None}
    return max(known, key=lambda step: (known[step], step)) if known else None


def _score(store: Store, step: int, metric: str) -> float | None:
    """A checkpoint's result; None where it was not evaluated, or its manifest is damaged."""
    try:
        score = store.manifest(step)["metrics"][metric]
    except (ValueError, KeyError, TypeError):
        return None
    return float(score) if isinstance(score, int | float) and math.isfinite(score) else None


def _steps(folders: Iterable[str]) -> list[int]:
    """The steps of those folder names that are a checkpoint's, ascending."""
    matches = map(_FOLDER_NAME.fullmatch, folders)
    return sorted(int(match[1]) for match in matches if match and folder_name(int(match[1])) == match[0])


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
