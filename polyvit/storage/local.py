"""A folder of a file system as a `Root`: plain file calls, no retries.

In: paths below the folder. Out: listings, bytes and stamps.
"""

import errno
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from polyvit.errors import UserError
from polyvit.storage.root import ABSENT, DANGLING, RECENT_NS, Folder, is_hidden


@dataclass(frozen=True)
class LocalRoot:
    """A folder of a file system."""

    directory: Path

    @property
    def remote(self) -> bool:
        """False for a network file system too: it is read without retries."""
        return False

    def at(self, path: str) -> str:
        """The absolute path."""
        return str(self.directory / path)

    def state(self) -> str:
        """What is there."""
        return "folder" if self.directory.is_dir() else "file" if self.directory.exists() else ""

    def folder(self, path: str) -> Folder:
        """One `os.scandir`, sorted. Raises UserError where the folder may not be read."""
        files, folders, links = {}, [], False
        full = self.directory / path
        try:
            stamp = _local_stamp(full)
            with os.scandir(full) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if is_hidden(entry.name):
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
        return (self.directory / path).read_bytes()

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """One seek, one read."""
        with (self.directory / path).open("rb", buffering=0) as file:
            file.seek(offset)
            length = min(length, os.fstat(file.fileno()).st_size - offset)  # a forged one would be allocated
            content = file.read(length) if length > 0 else b""
            while content and len(content) < length and (more := file.read(length - len(content))):
                content += more
        return content

    def open(self, path: str, ahead: int = 0) -> BinaryIO:
        """The file."""
        return (self.directory / path).open("rb")

    def real(self, path: str) -> str:
        """The path with links resolved."""
        return os.path.realpath(self.directory / path)

    def file_stamp(self, path: str) -> str:
        """Made of its inode, size and times."""
        try:
            return _local_stamp(self.directory / path)
        except (FileNotFoundError, NotADirectoryError):
            return ABSENT

    folder_stamp = file_stamp

    def write(self, path: str, source: Path) -> None:
        """Rename a file of the same file system to its name here."""
        source.replace(self.directory / path)

    def delete(self, path: str) -> None:
        """Delete a file, if it is there."""
        (self.directory / path).unlink(missing_ok=True)


def _local_stamp(path: Path) -> str:
    """A folder's entries cannot change without its times; those of a link's target can, so links have no stamp."""
    status = path.stat()
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < RECENT_NS:
        return ""
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
