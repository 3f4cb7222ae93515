"""Indexes of earlier scans, used again as long as their data have not changed.

In: a task and its location. Out: its index as a file, scanned or taken from the cache. An index carries the stamps
of every folder and file that its scan read (inode, size and times of a local one, size and time of an object's);
it is used again only where all of them are the same. A folder's stamp covers its entries and not what is in a
media file. No index depends on that but those of tasks that need streams (`stream_check`): a file that is written
over in place, its sound gone, is met by the run, as one that was damaged since. A file that changed within two
seconds before it was read has no stamp, and then the scan is not used again.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import polyvit.data
from polyvit.config import TaskConfig
from polyvit.data.index import beside_name, read_metadata, write_index
from polyvit.data.layouts.scanner import Stamps, read_classes, scan_with_stamps
from polyvit.data.layouts.scanning import Spread
from polyvit.errors import UserError
from polyvit.storage import Location, Root, open_root, pool

KEPT = 100
"""Indexes that stay in the cache, the latest used."""
KEPT_PARTS = 20_000
"""Tar shards without an index whose rows stay in the cache, the latest read."""


def write_task_index(
    task: TaskConfig, location: Location, name: str, target: Path, cache: Path | None, spread: Spread | None = None
) -> bool:
    """Write the index of task `name` to `target`; True where it was taken from the cache.

    task: what to scan. location: its folder or URL. name: of the task. target: the file to write. cache: its
    folder, created where it is missing; None: always scan and keep nothing.
    spread: see `scan_with_stamps`. Several runs may share a cache at the same time: files are renamed into place.
    Raises UserError as `scan`.
    """
    root = open_root(location)
    target.parent.mkdir(parents=True, exist_ok=True)
    cached = None if cache is None else cache / f"{_key(task, root, name)}.parquet"
    if cached is not None and cached.is_file() and _unchanged(root, read_metadata(cached).get("stamps")):
        with contextlib.suppress(OSError):  # deleted meanwhile, or a full disk: then scan
            _share(cached, target)
            os.utime(cached)
            return True
    shard_cache = None if cache is None else cache / f"parts-{_code_digest()[:12]}"
    scan, stamps = scan_with_stamps(task, location, name, shard_cache, spread)
    write_index(scan, target, {"stamps": stamps})
    if cached is not None and stamps is not None:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs the next run a scan
            cached.parent.mkdir(parents=True, exist_ok=True)
            _share(target, cached)
            _prune(cached.parent, "*.parquet", KEPT)
    if shard_cache is not None and shard_cache.is_dir():
        _prune(shard_cache, "*.gz", KEPT_PARTS)
    return False


def scan_task(
    task: TaskConfig, location: Location, name: str, target: Path, cache: Path | None, spread: Spread | None = None
) -> tuple[bool, str]:
    """As `write_task_index`, with the message of a UserError or OSError ('' for none) in place of raising it."""
    try:
        return write_task_index(task, location, name, target, cache, spread), ""
    except UserError as error:
        return False, f"{'' if f'tasks.{name}' in error.message else f'tasks.{name}: '}{error}"
    except OSError as error:
        return False, f"tasks.{name}: {type(error).__name__}: {error}"


def index_settings(task: TaskConfig) -> list[Any]:
    """What of a task's config its index depends on, besides where the data and `classes` lie."""
    return [
        task.layout, task.modality, task.num_classes, task.options, task.extensions, sorted(task.needed_streams)
    ]  # fmt: skip


def _key(task: TaskConfig, root: Root, name: str) -> str:
    """The name of a task's index, a hash of all that a scan depends on, its code included, but not of the data."""
    dependencies = [root.at(""), *index_settings(task), read_classes(task, root, name), _code_digest()]
    digest = hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()
    return f"{name}-{digest[:24]}"


def _code_digest() -> str:
    folder = Path(polyvit.data.__file__).parent
    files = [*sorted((folder / "layouts").rglob("*.py")), *sorted((folder / "index").glob("*.py"))]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def _unchanged(root: Root, stamps: Stamps | None) -> bool:
    if not stamps:
        return False
    questions = [(root.folder_stamp, path, stamp) for path, stamp in stamps["folders"].items()]
    questions += [(root.file_stamp, path, stamp) for path, stamp in stamps["files"].items()]
    answers = (pool().map if root.remote else map)(
        lambda question: question[0](question[1]) == question[2], questions
    )
    return all(answers)


def _share(source: Path, target: Path) -> None:
    """The same file under another name: a hard link where possible, since an index is never overwritten."""
    beside = beside_name(target)
    beside.unlink(missing_ok=True)
    try:
        beside.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, beside)
    beside.replace(target)
    beside.unlink(missing_ok=True)  # renaming one link onto another of the same file leaves both


def _prune(folder: Path, pattern: str, most: int) -> None:
    with contextlib.suppress(OSError):  # another run may delete the same files
        for path in sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)[most:]:
            path.unlink(missing_ok=True)
