"""The rows of tar shards, kept for the next scan: after one new shard the others are not read again.

In: a shard without an index beside it, and a function that reads it. Out: its rows, from the cache where the
shard's stamp is the same as then. A shard with an index does not need this.
"""

import contextlib
import gzip
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from polyvit.data.index import Example, Problem, beside_name
from polyvit.data.layouts.scanning.context import ScanContext
from polyvit.data.layouts.scanning.labels import Row


def cached_rows(
    context: ScanContext, shard: str, settings: list[Any], read: Callable[[], Iterable[Row]]
) -> Iterable[Row]:
    """The rows of a shard; its problems are added to `context`.

    context: of this shard alone. settings: what else the rows depend on. read: reads the shard and adds
    problems to `context`.
    """
    stamp = context.root.file_stamp(shard)
    if context.shard_cache is None or not stamp:
        return read()
    question = json.dumps([context.at(shard), stamp, context.task.modality, *settings])
    path = context.shard_cache / f"{hashlib.sha256(question.encode()).hexdigest()[:32]}.json.gz"
    try:
        document = json.loads(gzip.decompress(path.read_bytes()))
        rows = [_row(shard, entry) for entry in document["rows"]]
        problems = [Problem(**entry) for entry in document["problems"]]
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        rows = list(read())
        document = {"rows": [_entry(row) for row in rows], "problems": [asdict(p) for p in context.problems]}
        with contextlib.suppress(OSError):  # a cache that cannot be written costs the next scan a walk
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = beside_name(path)
            beside.write_bytes(gzip.compress(json.dumps(document).encode(), 1, mtime=0))
            beside.replace(path)
        return rows
    context.read[shard] = stamp
    context.problems += problems
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
