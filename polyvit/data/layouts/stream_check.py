"""Leave out of a scan what lacks a stream that its task reads: videos without a sound track, sound without
pictures.

In: a scan and its root. Out: the scan without those files, each a problem of kind `stream`, so that they are
counted where all problems are, and a run meets none of them. Only headers are read, several files at a time; the
members of tar shards too, in place. A row of a Parquet file can only be read whole, with its row group: its media
column is read once, one row group after the other, several files at a time.
"""

import io
import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polyvit.config import NO_STREAM, TaskConfig
from polyvit.data.index import Example, Examples, Problem, Scan
from polyvit.data.layouts.scanning import Spread, spread_over
from polyvit.errors import BadMedia
from polyvit.storage import Root, StoreUnavailable

logger = logging.getLogger(__name__)
MANY = 4096
"""Headers that take a machine some seconds."""
_CHECKED = ("file", "tar", "parquet")


class _Place(NamedTuple):
    """Where the file of an example lies, as its index row says; row: -1 but in a Parquet file."""

    path: str
    container: str
    offset: int
    length: int
    row: int

    def __str__(self) -> str:
        if self.row >= 0:
            return f"{self.path}:{self.row}"
        return self.path if self.length < 0 else f"{self.path} at {self.offset}"


def with_streams(scan: Scan, task: TaskConfig, root: Root, name: str, spread: Spread | None = None) -> Scan:
    """The scan, without files that lack one of `task.needed_streams` or whose header cannot be read.

    name: of the task, for the log. spread: reads the headers of MANY files and more.
    Raises StoreUnavailable where an object store does not answer.
    """
    if not task.needed_streams:
        return scan
    places = [_place(example) for example in scan.examples]
    asked = sorted({place for place in places if place is not None})
    # A job is one file, one member, or all rows of one Parquet file.
    jobs = [tuple(group) for _, group in itertools.groupby(asked, lambda p: p.path if p.row >= 0 else p)]
    answers = spread_over(spread, partial(_missing, root, task.needed_streams), jobs, MANY, root.remote)
    told = itertools.chain.from_iterable(answers)
    reasons = {place: reason for place, reason in zip(asked, told, strict=True) if reason}
    if not reasons:
        return scan
    rows = [row for row, place in enumerate(places) if place not in reasons]
    problems = [
        Problem("stream" if reason in NO_STREAM.values() else "broken", str(place), reason)
        for place, reason in reasons.items()
    ]
    counts = ", ".join(f"{count} {reason}" for reason, count in Counter(reasons.values()).most_common(3))
    logger.info("tasks.%s: %d of %d files left out: %s", name, len(reasons), len(asked), counts)
    kept = Examples(scan.examples.table().take(np.array(rows, np.int64)).combine_chunks())
    return Scan(kept, scan.classes, [*scan.problems, *problems])


def _place(example: Example) -> _Place | None:
    """Where the file of an example lies; None where it is not looked at."""
    if example.container not in _CHECKED:
        return None
    row = example.row if example.container == "parquet" else -1
    return _Place(example.path, example.container, example.offset, example.length, row)


def _missing(root: Root, needed: frozenset[str], job: Sequence[_Place]) -> list[str]:
    """What each file of a job lacks, or why its header cannot be read; '' where it has all."""
    if job[0].container == "parquet":
        return [reason for group in _groups(root, job) for reason in _missing_in_group(needed, *group)]
    return [_lacks(needed, partial(_opened, root, place)) for place in job]


@contextmanager
def _opened(root: Root, place: _Place) -> Iterator[BinaryIO]:
    with root.open(place.path) as file:
        window = file if place.length < 0 else io.BufferedReader(_Window(file, place.offset, place.length))
        yield window  # type: ignore[misc]


def _lacks(needed: frozenset[str], opened: Callable[[], AbstractContextManager[BinaryIO]]) -> str:
    """What the file lacks that `opened` opens, or why its header cannot be read; '' where it has all."""
    from polyvit.data.decode import bad_media, streams_of  # start-up: PyAV, where a task asks for headers only

    away: StoreUnavailable | None = None
    try:
        with bad_media("header"):
            try:
                with opened() as file:
                    held = streams_of(file)
            except StoreUnavailable as error:
                away = error
    except BadMedia as error:
        return error.reason
    if away:
        raise away
    return next((NO_STREAM[stream] for stream in sorted(needed) if stream not in held), "")


def _groups(root: Root, job: Sequence[_Place]) -> Iterator[tuple[int, pa.ChunkedArray | None]]:
    """Rows of a Parquet file, a row group at a time: how many, and their media; None where it is damaged."""
    with root.open(job[0].path) as opened:
        file, first = pq.ParquetFile(opened, pre_buffer=root.remote), 0
        name = file.schema_arrow.names[job[0].offset]
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            rows = [place.row - first for place in job if first <= place.row < end]
            first = end
            if rows:
                try:
                    yield len(rows), file.read_row_group(group, columns=[name]).column(name).take(pa.array(rows))
                except StoreUnavailable:
                    raise
                except (pa.ArrowException, OSError):
                    yield len(rows), None


def _missing_in_group(needed: frozenset[str], count: int, media: pa.ChunkedArray | None) -> Iterator[str]:
    if media is None:
        yield from itertools.repeat("Parquet file is damaged", count)
        return
    for value in media:
        cell = value.as_py()
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if isinstance(content, bytes):
            yield _lacks(needed, partial(io.BytesIO, content))
        else:
            yield "row holds no bytes"


class _Window(io.RawIOBase):
    """A member of a tar file as a file of its own."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        self.file, self.offset, self.length, self.at = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.length}[whence]
        self.at = max(0, base + offset)
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        self.file.seek(self.offset + self.at)
        content = self.file.read(max(0, min(len(buffer), self.length - self.at)))
        buffer[: len(content)] = content
        self.at += len(content)
        return len(content)
