"""The index: one Arrow schema for an example's address, labels and split, and what a scan found wrong.

In: a task's folder, read by one of `polyvit.data.layouts`. Out: a `Scan`, sorted by key, and from it a small
Parquet file (`write_index`), the same on every machine. Nothing here decodes media.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from polyvit.errors import UserError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Example:
    """Where one example's bytes lie, and what it is.

    container: `file` (the whole file), `tar` (`length` bytes at `offset`), `parquet` (row `row` of
        the column whose number in the table is `offset`) or `cifar` (row `row` of a python batch).
    path: relative to the task's root, with '/' separators.
    start, end: seconds inside the recording or video; end < 0 means up to its end.
    """

    key: str
    path: str
    labels: tuple[int, ...]
    split: Split
    container: Literal["file", "tar", "parquet", "cifar"] = "file"
    offset: int = 0
    length: int = -1
    row: int = -1
    start: float = 0.0
    end: float = -1.0


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that a scan left out, and why. `where` is a file, or file:line.

    kind: `missing` (listed, not on disk), `label` (unknown or malformed), `broken` (cannot be read),
        `duplicate` (the same key again).
    """

    kind: Literal["missing", "label", "broken", "duplicate"]
    where: str
    reason: str


@dataclass(frozen=True)
class Scan:
    """What a layout found: examples, class names in label order, and what was left out."""

    examples: list[Example]
    classes: list[str]
    problems: list[Problem] = field(default_factory=list)

    def split(self, name: Split) -> list[Example]:
        """The examples of one split, in key order."""
        return [example for example in self.examples if example.split == name]

    def counts(self) -> dict[str, int]:
        """Examples per split, every split named."""
        found = Counter(example.split for example in self.examples)
        return {name: found[name] for name in SPLITS}


SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("path", pa.string()),
        ("labels", pa.list_(pa.int32())),
        ("split", pa.string()),
        ("container", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("row", pa.int64()),
        ("start", pa.float64()),
        ("end", pa.float64()),
    ]
)

_METADATA = {"polyvit.classes", "polyvit.problems", "polyvit.hash"}


def finish_scan(examples: Iterable[Example], classes: Sequence[str], problems: Sequence[Problem]) -> Scan:
    """Sort by key; the first of several equal keys stays, the others become problems."""
    kept: dict[str, Example] = {}
    duplicates = []
    for example in examples:
        if example.key in kept:
            reason = f"key {example.key!r} occurs again; the first is kept"
            duplicates.append(Problem("duplicate", example.path, reason))
        else:
            kept[example.key] = example
    ordered = [kept[key] for key in sorted(kept)]
    return Scan(ordered, list(classes), [*problems, *duplicates])


def key_fraction(key: str) -> float:
    """A number in [0, 1) from the key alone: the carve-out of a validation split compares it.

    The first 8 bytes of SHA-256 of the key: the same on every machine and in every run.
    """
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def write_index(scan: Scan, path: Path) -> str:
    """Write the Parquet index; returns its content hash (SHA-256 of rows and classes, hex)."""
    table = _table(scan)
    digest = _digest(table, scan.classes)
    metadata = {
        "polyvit.classes": json.dumps(scan.classes),
        "polyvit.problems": json.dumps([asdict(problem) for problem in scan.problems]),
        "polyvit.hash": digest,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".writing")
    pq.write_table(table.replace_schema_metadata(metadata), beside, compression="zstd")
    beside.replace(path)
    return digest


def read_index(path: Path) -> Scan:
    """Read back what `write_index` wrote. Raises UserError where the file is not such an index."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not a readable index ({error}); run `polyvit index` again") from None
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if not table.schema.equals(SCHEMA) or _METADATA - metadata.keys():
        raise UserError(f"{path} is not an index of this version; run `polyvit index` again")
    columns = {name: table.column(name).combine_chunks() for name in SCHEMA.names}
    values = {name: _values(column) for name, column in columns.items() if name != "labels"}
    flat, ends = (
        columns["labels"].flatten().to_pylist(),
        columns["labels"].value_lengths().to_numpy().cumsum(),
    )
    starts = [0, *ends.tolist()]
    values["labels"] = [tuple(flat[a:b]) for a, b in itertools.pairwise(starts)]
    examples = list(map(Example, *(values[field.name] for field in fields(Example))))
    problems = [Problem(**problem) for problem in json.loads(metadata["polyvit.problems"])]
    return Scan(examples, json.loads(metadata["polyvit.classes"]), problems)


def index_classes(path: Path) -> list[str]:
    """Class names in label order of what `write_index` wrote. Raises UserError where the file is no such index."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        return json.loads(metadata[b"polyvit.classes"])
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UserError(f"{path} is not a readable index ({error}); run `polyvit index` again") from None


def index_hash(scan: Scan) -> str:
    """SHA-256 over every example in order and the class names: equal means the same plan."""
    return _digest(_table(scan), scan.classes)


def _table(scan: Scan) -> pa.Table:
    columns = {field.name: list(map(attrgetter(field.name), scan.examples)) for field in fields(Example)}
    return pa.table(columns, schema=SCHEMA)


def _values(column: pa.Array) -> list[Any]:
    """A column as Python values; a word that many rows share (split, container) is one object."""
    if column.type != pa.string():
        return column.to_numpy(zero_copy_only=False).tolist()
    encoded = column.dictionary_encode()
    words = encoded.dictionary.to_pylist()
    return [words[code] for code in encoded.indices.to_numpy().tolist()]


def _text_bytes(column: pa.Array) -> memoryview:
    """The UTF-8 of all texts of a column, one after the other."""
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, "i4", len(column) + 1, 4 * column.offset) if len(column) else [0, 0]
    return memoryview(data or b"")[bounds[0] : bounds[-1]]


def _digest(table: pa.Table, classes: Sequence[str]) -> str:
    """Hash of plain little-endian columns, so that it depends on no Arrow or Parquet version."""
    digest = hashlib.sha256(json.dumps([list(classes), table.num_rows]).encode())
    for name in SCHEMA.names:
        column = table.column(name).combine_chunks()
        if pa.types.is_list(column.type):
            digest.update(column.value_lengths().to_numpy().astype("<i8").tobytes())
            column = column.flatten()
        if pa.types.is_string(column.type):
            digest.update(pc.binary_length(column).to_numpy().astype("<i8").tobytes())
            digest.update(_text_bytes(column))
        else:
            order = "<f8" if pa.types.is_floating(column.type) else "<i8"
            digest.update(column.to_numpy(zero_copy_only=False).astype(order).tobytes())
    return digest.hexdigest()
