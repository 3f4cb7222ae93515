"""What walking a tar shard found, kept for the next scan: one new shard must not cost the reading of all others.

In: a shard without an index beside it, and what reads it. Out: its rows, from the cache where the shard's stamp
is the one that it had. Shards with an index need none of this.
"""

import contextlib
import gzip
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from polyvit.data.index import Example, Problem, beside_name
from polyvit.data.layouts.scanning.context import Survey
from polyvit.data.layouts.scanning.labels import Row


def kept_rows(part: Survey, shard: str, given: list[Any], read: Callable[[], Iterable[Row]]) -> Iterable[Row]:
    """The rows of a shard, and its problems on `part`, a survey of this shard alone.

    given: what else the rows depend on. read: walks the shard, adding problems to `part`.
    """
    stamp = part.root.file_stamp(shard)
    if part.parts is None or not stamp:
        return read()
    asked = json.dumps([part.at(shard), stamp, part.task.modality, *given])
    path = part.parts / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.json.gz"
    try:
        document = json.loads(gzip.decompress(path.read_bytes()))
        rows = [_row(shard, entry) for entry in document["rows"]]
        problems = [Problem(**entry) for entry in document["problems"]]
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        rows = list(read())
        document = {"rows": [_entry(row) for row in rows], "problems": [asdict(p) for p in part.problems]}
        with contextlib.suppress(OSError):  # a cache that cannot be written costs the next scan a walk
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = beside_name(path)
            beside.write_bytes(gzip.compress(json.dumps(document).encode(), 1, mtime=0))
            beside.replace(path)
        return rows
    part.read[shard] = stamp
    part.problems += problems
    return rows


def _entry(row: Row) -> list[Any]:
    example = row.example
    return [
        example.key, example.split, example.offset, example.length, example.start, example.end, list(row.labels),
        row.where,
    ]  # fmt: skip


def _row(shard: str, entry: list[Any]) -> Row:
    key, split, offset, length, start, end, labels, where = entry
    return Row(Example(key, shard, (), split, "tar", offset, length, start=start, end=end), tuple(labels), where)
