"""Where a task's data lie: a folder, or a prefix of an object store (s3://, gs://, any URL of pyarrow or fsspec).

In: a place: a `Path`, or a URL as text. Out: a `Root` that lists and reads it. A folder is read with plain file
calls; `polyvit.storage.remote` asks an object store by range.
"""

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import urlsplit

from polyvit.errors import UserError

DANGLING = -1
"""Size of a link that leads nowhere."""
ABSENT = "absent"
"""Stamp of what is not there."""
CONCURRENCY = 32
"""Requests to an object store at a time."""
RECENT_NS = 2 * 10**9
"""What was changed less than this before it was read may change again within the clock's tick: it has no stamp."""


class StoreUnavailable(OSError):
    """An object store did not answer, or refused, after every try."""


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder as listed: bytes by file name, and subfolders, both sorted; hidden entries left out.

    stamp: equal stamps of two listings mean an equal folder; '' where that cannot be promised.
    """

    files: dict[str, int]
    folders: tuple[str, ...]
    stamp: str = ""


class Root(Protocol):
    """A task's data. Paths are relative, with '/'; '' is the root. Reading raises OSError."""

    @property
    def remote(self) -> bool:
        """Whether every read is a request over a network."""

    def __hash__(self) -> int:
        """Caches are keyed by roots."""

    def at(self, path: str) -> str:
        """Where a file lies, for messages."""

    def state(self) -> str:
        """`folder`, `file` or `` where nothing is there."""

    def folder(self, path: str) -> Folder:
        """The listing of a folder; empty where there is none."""

    def read(self, path: str) -> bytes:
        """A whole file."""

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """`length` bytes of a file, fewer at its end."""

    def open(self, path: str, ahead: int = 0) -> BinaryIO:
        """A file to seek and read in; `ahead`: bytes to fetch at a time from an object store."""

    def real(self, path: str) -> str:
        """A folder's true place, links resolved."""

    def file_stamp(self, path: str) -> str:
        """Equal stamps mean an equal file; '' where that cannot be promised."""

    def folder_stamp(self, path: str) -> str:
        """The stamp that `folder` would give."""


Place = Path | str
"""A folder, or a URL: what a run keeps of a root, the same on every machine."""


@dataclass(frozen=True)
class LocalRoot:
    """A folder of a file system."""

    place: Path

    @property
    def remote(self) -> bool:
        """A folder, even one of a network file system, is read as it comes."""
        return False

    def at(self, path: str) -> str:
        """The absolute path."""
        return str(self.place / path)

    def state(self) -> str:
        """What is there."""
        return "folder" if self.place.is_dir() else "file" if self.place.exists() else ""

    def folder(self, path: str) -> Folder:
        """One `os.scandir`, sorted. Raises UserError where the folder may not be read."""
        files, folders, links = {}, [], False
        full = self.place / path
        try:
            stamp = _local_stamp(full)
            with os.scandir(full) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.name.startswith("."):
                        continue
                    links = links or entry.is_symlink()
                    if entry.is_dir():
                        folders.append(entry.name)
                    elif entry.is_file():
                        files[entry.name] = entry.stat().st_size
                    elif entry.is_symlink():
                        files[entry.name] = DANGLING
        except (FileNotFoundError, NotADirectoryError):
            return Folder({}, (), ABSENT)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # a list may name anything
                return Folder({}, (), ABSENT)
            raise UserError(f"{full} cannot be listed: {error.strerror}; check its permissions") from None
        return Folder(files, tuple(folders), "" if links else stamp)

    def read(self, path: str) -> bytes:
        """A whole file."""
        return (self.place / path).read_bytes()

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """One seek, one read."""
        with (self.place / path).open("rb", buffering=0) as file:
            file.seek(offset)
            length = min(length, os.fstat(file.fileno()).st_size - offset)  # a forged one would be allocated
            content = file.read(length) if length > 0 else b""
            while content and len(content) < length and (more := file.read(length - len(content))):
                content += more
        return content

    def open(self, path: str, ahead: int = 0) -> BinaryIO:
        """The file."""
        return (self.place / path).open("rb")

    def real(self, path: str) -> str:
        """The path with links resolved."""
        return os.path.realpath(self.place / path)

    def file_stamp(self, path: str) -> str:
        """Of inode, size and times."""
        try:
            return _local_stamp(self.place / path)
        except (FileNotFoundError, NotADirectoryError):
            return ABSENT

    folder_stamp = file_stamp


def _local_stamp(path: Path) -> str:
    """A folder's entries cannot change without its times; those of a link's target can, so links have no stamp."""
    found = path.stat()
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < RECENT_NS:
        return ""
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def is_url(place: Place | str) -> bool:
    """Whether it is an address of an object store and not a folder."""
    return isinstance(place, str) and "://" in place


def as_place(given: str) -> Place:
    """What a user gave, made the same everywhere: a URL as it is, a folder as an absolute path."""
    if given.startswith("file://"):
        return Path(urlsplit(given).path)
    return given if is_url(given) else Path(given).expanduser().absolute()


def open_root(place: "Place | Root") -> Root:
    """The root at a place. Raises UserError for a URL that cannot be opened."""
    if isinstance(place, Path):
        return LocalRoot(place)
    if isinstance(place, str):
        return _remote(place) if is_url(place) else LocalRoot(Path(place))
    return place


@lru_cache(maxsize=64)
def _remote(address: str) -> Root:
    from polyvit.storage.remote import RemoteRoot

    return RemoteRoot(address)


@lru_cache(maxsize=1)
def pool() -> ThreadPoolExecutor:
    """Threads that wait for object stores: one set for the process, so that its requests have one bound."""
    return ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="polyvit-store")
