"""The bytes of one example, from where its index row says: file, tar shard, Parquet row, CIFAR batch, tokens.

In: an `Example` and the place of its task's data, a folder or a URL. Out: encoded bytes; for CIFAR the pixels,
uint8 [32, 32, 3]; for tokens named arrays [views, ...] that are decoded already. What cannot be read is `BadMedia`
with a short reason that names no path of this machine, so that it is the same anywhere.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polyvit.data.index import Example, whole
from polyvit.data.layouts import pixels_NHWC
from polyvit.data.layouts.scanning import EMPTY, OUTSIDE, BadPickle, inside, load_plain
from polyvit.errors import BadMedia
from polyvit.storage import LFS_POINTER, Location, Root, StoreUnavailable, is_lfs_pointer, open_root, pool

Media = bytes | np.ndarray
Loaded = Media | dict[str, np.ndarray]
DECODED = "its media are decoded already (layout tokens); give the originals"
AHEAD = 32
"""Examples that are read from an object store before they are asked for; what they hold is in memory."""
CIFAR_BATCHES = 6
"""Batches kept in a process, as rows come in random order: all of CIFAR-10 is six, 184 MB."""
ROW_GROUPS = 4
"""Parquet row groups kept in a process; a group is the smallest piece that can be read."""


def load(example: Example, place: Location | Root) -> Media:
    """The bytes of an example; uint8 [32, 32, 3] for a CIFAR row.

    Raises BadMedia where they are missing, empty, shorter than the index says or unreadable, and where the
    path leaves the root (judged by its letters: links are followed, datasets are often links to a shared
    disk). Raises StoreUnavailable where an object store does not answer: that is no fault of the example.
    """
    media = load_for_decoding(example, place)
    if isinstance(media, dict):
        raise BadMedia(DECODED)
    return media


def load_for_decoding(example: Example, place: Location | Root) -> Loaded:
    """As `load`; of layout `tokens` named arrays [views, ...] that are decoded already."""
    root = open_root(place)
    if root.remote and (ahead := _AHEAD.get()) is not None and ahead.root is root:
        media = ahead.take(example)
        if isinstance(media, BadMedia):
            raise media
        return media
    return _load(example, root)


def _load(example: Example, root: Root) -> Loaded:
    path = inside(example.path)
    if path is None:
        raise BadMedia(OUTSIDE)
    try:
        if example.container == "cifar":
            return _cifar_HWC(root, path, example.row)
        if example.container == "tokens":
            return _tokens(root, path, example.row)
        if example.container == "parquet":
            content = _parquet(root, path, example.offset, example.row)
        elif example.container == "tar":
            content = root.read_range(path, example.offset, example.length)
            if len(content) < example.length:
                raise BadMedia("shard is shorter than its index says")
        else:
            content = root.read(path)
    except StoreUnavailable:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise BadMedia("file is missing") from None
    except OSError as error:
        raise BadMedia(f"file cannot be read: {os.strerror(error.errno) if error.errno else 'damaged'}") from None
    if not content:
        raise BadMedia(EMPTY)
    if is_lfs_pointer(content):
        raise BadMedia(LFS_POINTER)
    return content


def load_many(examples: Sequence[Example], place: Location | Root) -> Iterator[Media | BadMedia]:
    """What `load` gives for each example, in order; its BadMedia is given, not raised. Read ahead as there."""
    ahead = _Ahead(examples, open_root(place))
    try:
        for example in examples:
            media = ahead.take(example)
            yield BadMedia(DECODED) if isinstance(media, dict) else media
    finally:
        ahead.close()


@contextmanager
def reading_ahead(examples: Sequence[Example], place: Location | Root) -> Iterator[None]:
    """Inside the block, `load` of these examples in their order finds them on their way.

    From a folder, each is read when it is asked for. From an object store AHEAD of them are on their way at any
    time, so that its latency is waited for once and not once an example.
    """
    root = open_root(place)
    if not root.remote:
        yield
        return
    ahead = _Ahead(examples, root)
    token = _AHEAD.set(ahead)
    try:
        yield
    finally:
        _AHEAD.reset(token)
        ahead.close()


class _Ahead:
    """Examples of an object store, read by threads a little before they are asked for."""

    def __init__(self, examples: Sequence[Example], root: Root) -> None:
        self.root = root
        self._left = iter(examples if root.remote else ())
        self._coming: dict[Example, Future[Loaded | BadMedia]] = {}
        self._fill()

    def _fill(self) -> None:
        while len(self._coming) < AHEAD and (example := next(self._left, None)) is not None:
            if example not in self._coming:
                self._coming[example] = pool().submit(_load_or_bad, example, self.root)

    def take(self, example: Example) -> Loaded | BadMedia:
        coming = self._coming.pop(example, None)
        self._fill()
        return coming.result() if coming else _load_or_bad(example, self.root)

    def close(self) -> None:
        for waiting in self._coming.values():
            waiting.cancel()


_AHEAD: ContextVar[_Ahead | None] = ContextVar("polyvit_reading_ahead", default=None)


def _load_or_bad(example: Example, root: Root) -> Loaded | BadMedia:
    try:
        return _load(example, root)
    except BadMedia as error:
        return error


def _cifar_HWC(root: Root, path: str, row: int) -> np.ndarray:
    try:
        pixels = _cifar_batch_NHWC(root, path)
    except BadPickle:
        raise BadMedia("CIFAR batch is damaged") from None
    if not 0 <= row < len(pixels):
        raise BadMedia("batch has fewer rows than its index says")
    return np.ascontiguousarray(pixels[row])


@lru_cache(maxsize=CIFAR_BATCHES)
def _cifar_batch_NHWC(root: Root, path: str) -> np.ndarray:
    return pixels_NHWC(load_plain(root.read(path)))


def _parquet(root: Root, path: str, column: int, row: int) -> bytes:
    try:
        group, place = _place(root, path, row)
        value = _row_group(root, path, group, column)[place].as_py()
    except (pa.ArrowException, IndexError, UnicodeDecodeError):
        raise BadMedia("Parquet file is damaged") from None
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise BadMedia("row holds no bytes")
    return content


def _place(root: Root, path: str, row: int) -> tuple[int, int]:
    """The row group that a row lies in, and which of its rows it is."""
    _, starts = _parquet_groups(root, path)
    if not 0 <= row < starts[-1]:
        raise BadMedia("table has fewer rows than its index says")
    group = int(np.searchsorted(starts, row, side="right")) - 1
    return group, row - int(starts[group])


def _tokens(root: Root, path: str, row: int) -> dict[str, np.ndarray]:
    """Named arrays [views, ...] of one row of what `polyvit tokenize` wrote; its row groups are a row or few."""
    try:
        group, place = _place(root, path, row)
        with root.open(path) as opened:
            file = pq.ParquetFile(opened, metadata=_parquet_groups(root, path)[0], pre_buffer=root.remote)
            names = [field.name for field in file.schema_arrow if isinstance(field.type, pa.FixedShapeTensorType)]
            table = file.read_row_group(group, columns=names)
        columns = {name: whole(table.column(name)).slice(place, 1) for name in names}
        return {name: column.to_numpy_ndarray()[0] for name, column in columns.items()}
    except (pa.ArrowException, IndexError, KeyError, TypeError):
        raise BadMedia("file of tokens is damaged") from None


@lru_cache(maxsize=256)
def _parquet_groups(root: Root, path: str) -> tuple[pq.FileMetaData, np.ndarray]:
    """A file's metadata, and the first row of each row group with the number of rows at the end."""
    with root.open(path) as file:
        metadata = pq.read_metadata(file)
    sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    return metadata, np.cumsum([0, *sizes])


@lru_cache(maxsize=ROW_GROUPS)
def _row_group(root: Root, path: str, group: int, column: int) -> pa.ChunkedArray:
    with root.open(path) as opened:
        file = pq.ParquetFile(opened, metadata=_parquet_groups(root, path)[0], pre_buffer=root.remote)
        name = file.schema_arrow.names[column]
        return file.read_row_group(group, columns=[name]).column(name)
