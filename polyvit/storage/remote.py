"""A prefix of an object store as a `Root`: every request has a time limit and is tried again.

In: a URL that `filesystems` opens. Out: a `RemoteRoot`. A request that fails is tried again; when it fails every
time, that is `StoreUnavailable`: a store that does not answer says nothing about the files, so no example is
quarantined for it. Data sets, shards and checkpoints all go through here.
"""

import contextlib
import hashlib
import io
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, TypeVar

import pyarrow as pa
from pyarrow import fs

from polyvit.storage.filesystems import open_filesystem
from polyvit.storage.root import ABSENT, RECENT_NS, Folder, StoreUnavailable, is_hidden

T = TypeVar("T")
WAITS_S = (0.2, 1.0, 3.0)
"""Pauses before the second and later tries of a request; the store's own client tries several times in each."""
CONCURRENCY = 32
"""Requests to object stores at a time."""
BLOCK = 1 << 22
"""Bytes copied at a time in an upload, and asked for by one request of a download."""
OPEN_FILES = 64
"""Shards and tables of an object store whose size is remembered, so that a range costs one request and not two."""
READ_AHEAD = 1 << 18
"""Bytes fetched at a time where a remote file is read step by step, such as the headers of a tar file."""


class RemoteRoot:
    """A prefix of an object store."""

    @property
    def remote(self) -> bool:
        """Every read is a request."""
        return True

    def __init__(self, address: str) -> None:
        self.address = address
        self.files, self.prefix = open_filesystem(address)
        self._open_file = lru_cache(OPEN_FILES)(self._opened)

    def at(self, path: str) -> str:
        """The URL of a file, without the query."""
        prefix = self.address.partition("?")[0].rstrip("/")
        return f"{prefix}/{path}" if path else prefix

    def _in(self, path: str) -> str:
        return f"{self.prefix}/{path}" if path else self.prefix

    def state(self) -> str:
        """What is there."""
        kind = self._try("", lambda: self.files.get_file_info(self._in(""))).type
        return {fs.FileType.Directory: "folder", fs.FileType.File: "file"}.get(kind, "")

    def folder(self, path: str) -> Folder:
        """The keys below a prefix, up to the next '/'."""
        # Of Google's store pyarrow lists no folder that has no object of its own, and hardly any has: list all.
        deep = self.files.type_name == "gcs"
        selector = fs.FileSelector(self._in(path), allow_not_found=True, recursive=deep)
        entries = self._try(path, lambda: self.files.get_file_info(selector))
        infos, inside = [], set()
        for info in sorted(entries, key=lambda info: info.path):
            name, below, _ = info.path.removeprefix(self._in(path) + "/").partition("/")
            if is_hidden(name):
                continue
            if below or info.type == fs.FileType.Directory:
                inside.add(name)
            else:
                infos.append(info)
        files = {info.base_name: info.size or 0 for info in infos if info.type == fs.FileType.File}
        folders = tuple(sorted(inside))
        stamps = [_remote_stamp(info) for info in infos if info.type == fs.FileType.File]
        text = "\n".join([*folders, *(f"{name}:{stamp}" for name, stamp in zip(files, stamps, strict=True))])
        stamp = hashlib.sha256(text.encode()).hexdigest() if all(stamps) else ""
        return Folder(files, folders, stamp if infos else ABSENT)

    def read(self, path: str) -> bytes:
        """A whole object."""

        def once() -> bytes:
            with self.files.open_input_file(self._in(path)) as file:
                return file.read_at(file.size(), 0)

        return self._try(path, once)

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """One request, once the object is known."""
        if length <= 0:
            return b""
        return self._try(path, lambda: _range(self._open_file(path), offset, length))

    def open(self, path: str, ahead: int = 0) -> BinaryIO:
        """The object as a file; every read is a request, or one of `ahead` bytes."""
        file: pa.NativeFile = self._try(path, lambda: self.files.open_input_file(self._in(path)))

        def read(offset: int, length: int) -> bytes:
            return self._try(path, lambda: _range(file, offset, length))

        return io.BufferedReader(_Raw(read, file.size()), ahead or READ_AHEAD)

    def real(self, path: str) -> str:
        """An object store has no links."""
        return self._in(path)

    def file_stamp(self, path: str) -> str:
        """Made of its size and its time of change."""
        info = self._try(path, lambda: self.files.get_file_info(self._in(path)))
        return _remote_stamp(info) if info.type == fs.FileType.File else ABSENT

    def folder_stamp(self, path: str) -> str:
        """Costs a listing."""
        return self.folder(path).stamp

    def walk(self, path: str) -> list[str]:
        """Every object below a prefix, at any depth: sorted paths relative to the root; [] where there is none."""
        selector = fs.FileSelector(self._in(path), allow_not_found=True, recursive=True)
        entries = self._try(path, lambda: self.files.get_file_info(selector))
        files = (info.path for info in entries if info.type == fs.FileType.File)
        return sorted(file.removeprefix(f"{self.prefix}/") for file in files)

    def download(self, path: str, target: Path) -> None:
        """Copy an object to a local file, block by block; each block is a request that is tried again."""
        with self.open(path, ahead=BLOCK) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, BLOCK)

    def write(self, path: str, source: Path) -> None:
        """Upload a file; readers see all of it or nothing."""

        def once() -> None:
            with source.open("rb") as file, self.files.open_output_stream(self._in(path)) as sink:
                shutil.copyfileobj(file, sink, BLOCK)

        self._try(path, once, "written")
        self._open_file.cache_clear()

    def delete(self, path: str) -> None:
        """Delete a file, if it is there."""

        def once() -> None:
            if self.files.get_file_info(self._in(path)).type == fs.FileType.File:
                self.files.delete_file(self._in(path))

        self._try(path, once, "deleted")
        self._open_file.cache_clear()

    def delete_folder(self, path: str) -> None:
        """Delete every object below a prefix, if there is one."""

        def once() -> None:
            with contextlib.suppress(FileNotFoundError):  # an earlier try may have deleted all of it
                self.files.delete_dir(self._in(path))

        self._try(path, once, "deleted")
        self._open_file.cache_clear()

    def _opened(self, path: str) -> pa.NativeFile:
        return self.files.open_input_file(self._in(path))

    def _try(self, path: str, call: Callable[[], T], what: str = "read") -> T:
        """Call, again after an error that may pass. Raises FileNotFoundError, or StoreUnavailable with a hint.

        path: what is asked for, for the message. what: the verb of that message, as in "cannot be read".
        """
        for wait_s in (*WAITS_S, None):
            try:
                return call()
            except FileNotFoundError:
                raise
            except Exception as error:  # every fsspec backend has exceptions of its own
                if isinstance(error, MemoryError):
                    raise
                hint = _hint(str(error))
                if wait_s is None or hint:
                    first = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
                    raise StoreUnavailable(f"{self.at(path)} cannot be {what}: {hint or first}") from error
            self._open_file.cache_clear()
            time.sleep(wait_s)
        raise AssertionError("unreachable")


class _Raw(io.RawIOBase):
    """A remote file as Python's io wants it; a buffer goes around it."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read, self._size, self._position = read, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        content = self._read(self._position, min(len(buffer), self._size - self._position))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def _range(file: pa.NativeFile, offset: int, length: int) -> bytes:
    return file.read_at(min(length, max(0, file.size() - offset)), offset) if offset < file.size() else b""


def _remote_stamp(info: fs.FileInfo) -> str:
    if info.mtime_ns is None or time.time_ns() - info.mtime_ns < RECENT_NS:
        return ""
    return f"{info.size}:{info.mtime_ns}"


_HINTS = {
    ("ACCESS_DENIED", "AccessDenied", "Forbidden", "HTTP response code 403", "403 Forbidden"): (
        "access is denied; give credentials that may list and read it (AWS_ACCESS_KEY_ID and"
        " AWS_SECRET_ACCESS_KEY, a profile of ~/.aws, or ?anonymous=true for a public bucket)"
    ),
    ("NO_SUCH_BUCKET", "NoSuchBucket"): "there is no such bucket; check its name, the region and the endpoint",
    ("INVALID_ACCESS_KEY_ID", "InvalidAccessKeyId", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN_ID"): (
        "the store does not know these credentials; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    ),
    ("EXPIRED_TOKEN", "ExpiredToken"): "the credentials have expired; renew them",
}


def _hint(message: str) -> str:
    """What to do about an error that trying again does not help; '' for any other."""
    return next((hint for words, hint in _HINTS.items() if any(word in message for word in words)), "")


@lru_cache(maxsize=1)
def pool() -> ThreadPoolExecutor:
    """Threads that wait for object stores: one set for the process, so that its requests have one bound."""
    return ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="polyvit-store")
