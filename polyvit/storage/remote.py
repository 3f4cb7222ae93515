"""Data in an object store: listings, whole objects and ranges, patiently.

In: a URL that pyarrow or fsspec opens. Out: a `RemoteRoot`. What fails on the way is tried again, and when it
still fails, it is `StoreUnavailable`: a store that is gone says nothing about the files, so nothing is quarantined
for it.

Credentials come from the environment or the AWS / Google configuration, never from the URL (which MLflow shows).
In the query: `endpoint_override=host:port`, `scheme=http`, `anonymous=true` for a public bucket, S3's `region`;
S3's endpoint may be AWS_ENDPOINT_URL too.
"""

import hashlib
import io
import os
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
from pyarrow import fs

from polyvit.errors import UserError
from polyvit.storage.root import ABSENT, RECENT_NS, Folder, StoreUnavailable, open_root

T = TypeVar("T")
WAITS_S = (0.2, 1.0, 3.0)
"""Pauses before the second and later tries of a request, above the tries of the store's own client."""
CONNECT_S, REQUEST_S = 5.0, 20.0
"""Limits of one S3 request; the second is the time without a byte."""
OPEN_FILES = 64
"""Shards and tables of an object store whose size is remembered, so that a range costs one request and not two."""
READ_AHEAD = 1 << 18
"""Bytes asked for at a time where a remote file is walked, such as the headers of a tar file."""


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
        place = self.address.partition("?")[0].rstrip("/")
        return f"{place}/{path}" if path else place

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
        found = self._try(path, lambda: self.files.get_file_info(selector))
        infos, inside = [], set()
        for info in sorted(found, key=lambda info: info.path):
            name, below, _ = info.path.removeprefix(self._in(path) + "/").partition("/")
            if name.startswith("."):
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
        """Of size and time."""
        info = self._try(path, lambda: self.files.get_file_info(self._in(path)))
        return _remote_stamp(info) if info.type == fs.FileType.File else ABSENT

    def folder_stamp(self, path: str) -> str:
        """Lists it."""
        return self.folder(path).stamp

    def write(self, path: str, source: Path) -> None:
        """Upload a file; it is there whole or not at all."""

        def once() -> None:
            with source.open("rb") as file, self.files.open_output_stream(self._in(path)) as sink:
                shutil.copyfileobj(file, sink, 1 << 22)

        self._try(path, once, "written")
        self._open_file.cache_clear()

    def delete(self, path: str) -> None:
        """Delete a file, if it is there."""

        def once() -> None:
            if self.files.get_file_info(self._in(path)).type == fs.FileType.File:
                self.files.delete_file(self._in(path))

        self._try(path, once, "deleted")
        self._open_file.cache_clear()

    def _opened(self, path: str) -> pa.NativeFile:
        return self.files.open_input_file(self._in(path))

    def _try(self, path: str, call: Callable[[], T], what: str = "read") -> T:
        """Try again what may pass. Raises FileNotFoundError, or StoreUnavailable with what to do."""
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
        self._read, self._size, self._place = read, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        content = self._read(self._place, min(len(buffer), self._size - self._place))
        buffer[: len(content)] = content
        self._place += len(content)
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


def open_filesystem(address: str) -> tuple[fs.FileSystem, str]:
    """A URL as (file system, path in it). Raises UserError where no library knows it, or it holds a password."""
    parts = urlsplit(address)
    if parts.password or (parts.username and parts.scheme in ("s3", "gs", "gcs")):
        raise UserError(
            f"{parts.scheme}://...@{parts.hostname}: a URL with credentials in it would be shown in logs and in"
            " MLflow; put them into the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) or the store's"
            " own configuration"
        )
    try:
        if parts.scheme == "s3":
            return _s3(address)
        if parts.scheme in ("gs", "gcs"):
            return _gcs(address)
        return fs.FileSystem.from_uri(address)
    except UserError:
        raise
    except (OSError, ValueError, pa.ArrowException) as first:
        try:
            from fsspec.core import url_to_fs

            made, path = url_to_fs(address)
            return fs.PyFileSystem(fs.FSSpecHandler(made)), path.rstrip("/")
        except (ImportError, OSError, ValueError) as second:
            raise UserError(
                f"{address} cannot be opened: pyarrow says {first}; fsspec says {second}. Give a folder, s3://bucket/prefix,"
                " gs://bucket/prefix, or a URL whose fsspec package is installed"
            ) from None


def _of_a_bucket(address: str, keys: set[str]) -> tuple[str, dict[str, str]]:
    """Path with the bucket, and what the query says. Raises UserError for a query of other keys, or no bucket."""
    parts = urlsplit(address)
    query = dict(parse_qsl(parts.query))
    if unknown := set(query) - keys:
        raise UserError(f"{address}: unknown {', '.join(sorted(unknown))}; known are {', '.join(sorted(keys))}")
    if not parts.hostname:
        raise UserError(f"{address} names no bucket; give {parts.scheme}://bucket/prefix")
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/"), query


def _gcs(address: str) -> tuple[fs.FileSystem, str]:
    path, query = _of_a_bucket(address, {"scheme", "endpoint_override", "anonymous"})
    made = fs.GcsFileSystem(
        anonymous=query.get("anonymous", "").lower() == "true",
        scheme=query.get("scheme", "https"),
        endpoint_override=query.get("endpoint_override"),
        retry_time_limit=timedelta(seconds=REQUEST_S),  # its own limit is 15 minutes
    )
    return made, path


def _s3(address: str) -> tuple[fs.FileSystem, str]:
    path, query = _of_a_bucket(address, {"region", "scheme", "endpoint_override", "anonymous"})
    region = query.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    made = fs.S3FileSystem(
        anonymous=query.get("anonymous", "").lower() == "true",
        region=region,
        scheme=query.get("scheme"),
        endpoint_override=query.get("endpoint_override"),
        connect_timeout=CONNECT_S,
        request_timeout=REQUEST_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
    )
    return made, path


def upload(path: Path, address: str) -> None:
    """Put a file below a URL, under its own name. Raises StoreUnavailable."""
    _remote(address).write(path.name, path)


def delete(name: str, address: str) -> None:
    """Delete a file below a URL, if it is there. Raises StoreUnavailable."""
    _remote(address).delete(name)


def _remote(address: str) -> RemoteRoot:
    root = open_root(address)
    assert isinstance(root, RemoteRoot)
    return root
