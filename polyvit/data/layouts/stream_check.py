"""Leave out of a scan what lacks a stream that its task reads: videos without a sound track, sound without
pictures.

In: a scan and its root. Out: the scan without those files, each a problem of kind `stream`, so that they are
counted where all problems are, and a run meets none of them. Only headers are read, several files at a time; the
members of tar shards too, in place. Rows of Parquet files are not looked at: a run puts those in quarantine.
"""

import io
import logging
import os
from collections import Counter
from functools import partial
from typing import BinaryIO

import numpy as np

from polyvit.config import NO_STREAM, TaskConfig
from polyvit.data.index import Example, Examples, Problem, Scan
from polyvit.data.layouts.scanning import Spread, spread_over
from polyvit.errors import BadMedia
from polyvit.storage import Root, StoreUnavailable

logger = logging.getLogger(__name__)
MANY = 4096
"""Headers that take a machine some seconds."""
_CHECKED = ("file", "tar")
_Place = tuple[str, int, int]


def with_streams(scan: Scan, task: TaskConfig, root: Root, name: str, spread: Spread | None = None) -> Scan:
    """The scan, without files that lack one of `task.needed_streams` or whose header cannot be read.

    name: of the task, for the log. spread: reads the headers of MANY files and more.
    Raises StoreUnavailable where an object store does not answer.
    """
    if not task.needed_streams:
        return scan
    places = [_place(example) for example in scan.examples]
    asked = sorted({place for place in places if place is not None})
    look = partial(_missing, root, task.needed_streams)
    answers = spread_over(spread, look, asked, MANY, root.remote)
    reasons = {place: reason for place, reason in zip(asked, answers, strict=True) if reason}
    if not reasons:
        return scan
    rows = [row for row, place in enumerate(places) if place not in reasons]
    problems = [
        Problem("stream" if reason in NO_STREAM.values() else "broken", _where(place), reason)
        for place, reason in reasons.items()
    ]
    counts = ", ".join(f"{count} {reason}" for reason, count in Counter(reasons.values()).most_common(3))
    logger.info("tasks.%s: %d of %d files left out: %s", name, len(reasons), len(asked), counts)
    kept = Examples(scan.examples.table().take(np.array(rows, np.int64)).combine_chunks())
    return Scan(kept, scan.classes, [*scan.problems, *problems])


def _place(example: Example) -> _Place | None:
    """Where the file of an example lies; None where it is not looked at."""
    return (example.path, example.offset, example.length) if example.container in _CHECKED else None


def _where(place: _Place) -> str:
    path, offset, length = place
    return path if length < 0 else f"{path} at {offset}"


def _missing(root: Root, needed: frozenset[str], place: _Place) -> str:
    """What a file lacks, or why its header cannot be read; '' where it has all."""
    from polyvit.data.decode import bad_media, streams_of  # start-up: PyAV, where a task asks for headers only

    path, offset, length = place
    away: StoreUnavailable | None = None
    try:
        with bad_media("header"):
            try:
                with root.open(path) as file:
                    window = file if length < 0 else io.BufferedReader(_Window(file, offset, length))
                    held = streams_of(window)  # type: ignore[arg-type]
            except StoreUnavailable as error:
                away = error
    except BadMedia as error:
        return error.reason
    if away:
        raise away
    return next((NO_STREAM[stream] for stream in sorted(needed) if stream not in held), "")


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
