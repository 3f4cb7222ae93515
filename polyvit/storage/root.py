"""The interface of storage: list, read by range, write and delete, the same for a folder and an object store.

In: relative paths with '/'. Out: listings, bytes, stamps. `local` and `remote` are the two kinds of `Root`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

DANGLING = -1
"""Size of a link that leads nowhere."""
ABSENT = "absent"
"""Stamp of a file or folder that does not exist."""
RECENT_NS = 2 * 10**9
"""A file changed less than this before it was read has no stamp: it may change again within the clock's tick."""

LEFT_BY_SYSTEMS = frozenset(
    {
        "__macosx", "lost+found", "@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "$recycle.bin",
        "recycler", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
    }
)  # fmt: skip
"""What zip programs, file systems and network disks leave beside the user's files (lower case): copies of names,
thumbnails, bins."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is never looked into: hidden, or left there by a system."""
    return name.startswith(".") or name.lower() in LEFT_BY_SYSTEMS


class StoreUnavailable(OSError):
    """An object store did not answer, or refused, after every try."""


@dataclass(frozen=True, slots=True)
class Folder:
    """The listing of one folder: bytes by file name, and subfolders, both sorted; those of `is_hidden` left out.

    stamp: equal stamps of two listings mean an equal folder; '' where that cannot be promised.
    """

    files: dict[str, int]
    folders: tuple[str, ...]
    stamp: str = ""


class Root(Protocol):
    """A folder or a prefix of an object store. Paths are relative to it, with '/'; '' is the root itself.

    Reading and writing raise OSError: FileNotFoundError for a missing file, StoreUnavailable for an object store
    that does not answer.
    """

    @property
    def remote(self) -> bool:
        """Whether every read is a request over a network."""

    def __hash__(self) -> int:
        """Roots are keys of caches."""

    def at(self, path: str) -> str:
        """Where a file lies, for messages."""

    def state(self) -> str:
        """`folder`, `file`, or '' where nothing is there."""

    def folder(self, path: str) -> Folder:
        """The listing of a folder; empty where there is none."""

    def read(self, path: str) -> bytes:
        """A whole file."""

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """`length` bytes of a file, fewer at its end."""

    def open(self, path: str, ahead: int = 0) -> BinaryIO:
        """A file to seek and read in; `ahead`: bytes to fetch at a time from an object store."""

    def real(self, path: str) -> str:
        """The path of a folder with links resolved."""

    def file_stamp(self, path: str) -> str:
        """Equal stamps mean an equal file; '' where that cannot be promised."""

    def folder_stamp(self, path: str) -> str:
        """The stamp that `folder` would give."""

    def write(self, path: str, source: Path) -> None:
        """Publish a local file: readers see all of it or nothing. A folder takes `source` over, by a rename."""

    def delete(self, path: str) -> None:
        """Delete a file, if it is there."""
