"""The bytes of one example, from where its index row says: file, tar shard, Parquet row, CIFAR batch.

In: an `Example` and the folder of its task. Out: encoded bytes, or for CIFAR the pixels, uint8 [32, 32, 3].
What cannot be read is `BadMedia` with a short reason that names no path of this machine, so that it is the
same anywhere.
"""

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polyvit.data.index import Example
from polyvit.data.layouts.cifar import pixels_NHWC
from polyvit.data.layouts.cifar_pickle import BadPickle, load_plain
from polyvit.data.layouts.common import EMPTY, OUTSIDE, inside
from polyvit.errors import BadMedia

CIFAR_BATCHES = 6
"""Batches kept in a process, as rows come in random order: all of CIFAR-10 is six, 184 MB."""
ROW_GROUPS = 4
"""Parquet row groups kept in a process; a group is the smallest piece that can be read."""


def load(example: Example, root: Path) -> bytes | np.ndarray:
    """The bytes of an example; uint8 [32, 32, 3] for a CIFAR row.

    Raises BadMedia where they are missing, empty, shorter than the index says or unreadable, and where the
    path leaves the root (judged by its letters: links are followed, datasets are often links to a shared
    disk).
    """
    path = inside(example.path)
    if path is None:
        raise BadMedia(OUTSIDE)
    full = root / path
    try:
        if example.container == "cifar":
            return _cifar_HWC(full, example.row)
        if example.container == "parquet":
            content = _parquet(full, example.offset, example.row)
        elif example.container == "tar":
            content = _range(full, example.offset, example.length)
        else:
            content = full.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BadMedia("file is missing") from None
    except OSError as error:
        raise BadMedia(f"file cannot be read: {os.strerror(error.errno) if error.errno else 'damaged'}") from None
    if not content:
        raise BadMedia(EMPTY)
    return content


def _range(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read(length)
    if len(content) < length:
        raise BadMedia("shard is shorter than its index says")
    return content


def _cifar_HWC(path: Path, row: int) -> np.ndarray:
    try:
        pixels = _cifar_batch_NHWC(path)
    except BadPickle:
        raise BadMedia("CIFAR batch is damaged") from None
    if not 0 <= row < len(pixels):
        raise BadMedia("batch has fewer rows than its index says")
    return np.ascontiguousarray(pixels[row])


@lru_cache(maxsize=CIFAR_BATCHES)
def _cifar_batch_NHWC(path: Path) -> np.ndarray:
    return pixels_NHWC(load_plain(path))


def _parquet(path: Path, column: int, row: int) -> bytes:
    try:
        _, starts = _parquet_groups(path)
        if not 0 <= row < starts[-1]:
            raise BadMedia("table has fewer rows than its index says")
        group = int(np.searchsorted(starts, row, side="right")) - 1
        values = _row_group(path, group, column)
    except (pa.ArrowException, IndexError):
        raise BadMedia("Parquet file is damaged") from None
    value = values[row - int(starts[group])].as_py()
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise BadMedia("row holds no bytes")
    return content


@lru_cache(maxsize=256)
def _parquet_groups(path: Path) -> tuple[pq.FileMetaData, np.ndarray]:
    """A file's metadata, and the first row of each row group with the number of rows at the end."""
    metadata = pq.read_metadata(path)
    sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    return metadata, np.cumsum([0, *sizes])


@lru_cache(maxsize=ROW_GROUPS)
def _row_group(path: Path, group: int, column: int) -> pa.ChunkedArray:
    file = pq.ParquetFile(path, metadata=_parquet_groups(path)[0])
    name = file.schema_arrow.names[column]
    return file.read_row_group(group, columns=[name]).column(name)
