"""The index: one Arrow schema for the address, labels and split of examples, and the problems of a scan.

In: a task's folder, read by one of `polyvit.data.layouts`. Out: a `Scan`, sorted by key, and from it a small
Parquet file (`write_index`), the same on every machine. Nothing here decodes media. Millions of rows stay in
columns (`polyvit.data.index.examples`).
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from polyvit.data.index.examples import SCHEMA, SPLITS, Example, Examples, ExampleWriter, Split, whole
from polyvit.data.index.validation import row_problem
from polyvit.errors import UserError

__all__ = [
    "SCHEMA",
    "SPLITS",
    "Example",
    "Examples",
    "Problem",
    "ProblemKind",
    "Scan",
    "Split",
    "beside_name",
    "finish_scan",
    "index_classes",
    "index_hash",
    "key_fraction",
    "parse_index",
    "read_index",
    "read_metadata",
    "write_index",
]  # fmt: skip


ProblemKind = Literal["missing", "label", "broken", "duplicate", "stream"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One file or row that a scan left out, and why. `where` is a file, or file:line.

    kind: `missing` (listed, not on disk), `label` (unknown or malformed), `broken` (cannot be read),
        `duplicate` (the same key again), `stream` (without the sound track or the pictures that the task reads).
    """

    kind: ProblemKind
    where: str
    reason: str


@dataclass(frozen=True)
class Scan:
    """The result of a layout's scan: examples, class names in label order, and what was left out."""

    examples: Examples
    classes: list[str]
    problems: list[Problem] = field(default_factory=list)

    def __init__(
        self, examples: Iterable[Example], classes: Sequence[str], problems: Sequence[Problem] = ()
    ) -> None:
        """`examples` may be any sequence of them."""
        object.__setattr__(self, "examples", Examples.of(examples))
        object.__setattr__(self, "classes", list(classes))
        object.__setattr__(self, "problems", list(problems))

    def split(self, name: Split) -> Examples:
        """The examples of one split, in key order."""
        return self.examples.split(name)

    def counts(self) -> dict[str, int]:
        """Examples per split, every split named."""
        return self.examples.counts()


SMALL_INDEX, MAX_ROW_BYTES = 1 << 20, 1 << 14
"""An index of a shard unpacks to no more than so many bytes, and so many more for each row."""
_METADATA = {"polyvit.classes", "polyvit.problems", "polyvit.hash"}
_WRITER_METADATA = "polyvit.facts"


def finish_scan(
    examples: "Iterable[Example] | ExampleWriter", classes: Sequence[str], problems: Sequence[Problem]
) -> Scan:
    """Sort by key; the first of several equal keys stays, the others become problems."""
    table = examples.table() if isinstance(examples, ExampleWriter) else Examples.of(examples).table()
    keys = whole(table.column("key"))
    order = pc.sort_indices(keys).to_numpy()  # stable, and UTF-8 sorts as Python's text does
    ordered = keys.take(pa.array(order))
    again = np.flatnonzero(pc.equal(ordered[1:], ordered[:-1]).to_numpy(zero_copy_only=False)) + 1
    duplicates = []
    for row in sorted(order[again].tolist()):
        key, path = table.column("key")[row].as_py(), table.column("path")[row].as_py()
        duplicates.append(Problem("duplicate", path, f"key {key!r} occurs again; the first is kept"))
    order = np.delete(order, again)
    if not np.array_equal(order, np.arange(table.num_rows)):
        table = table.take(pa.array(order))
    return Scan(Examples(table.combine_chunks()), list(classes), [*problems, *duplicates])


def key_fraction(key: str) -> float:
    """A number in [0, 1) from the key alone: the carve-out of a validation split compares it.

    The first 8 bytes of SHA-256 of the key: the same on every machine and in every run.
    """
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def write_index(scan: Scan, path: Path, metadata: Mapping[str, Any] | None = None) -> str:
    """Write the Parquet index; returns its content hash (SHA-256 of rows and classes, hex).

    metadata: anything of the writer's own that JSON can hold, which `read_metadata` gives back.
    """
    digest = index_hash(scan)
    schema_metadata = {
        "polyvit.classes": json.dumps(scan.classes),
        "polyvit.problems": json.dumps([asdict(problem) for problem in scan.problems]),
        "polyvit.hash": digest,
        _WRITER_METADATA: json.dumps(metadata or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = beside_name(path)
    table = scan.examples.table().replace_schema_metadata(schema_metadata)
    pq.write_table(table, beside, compression="zstd", compression_level=1, write_page_checksum=True)
    beside.replace(path)
    return digest


def beside_name(path: Path) -> Path:
    """A temporary name in the same folder, unique to this thread: write there, then rename to `path`."""
    return path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.writing")


def read_index(path: Path) -> Scan:
    """Read back what `write_index` wrote. Raises UserError where the file is not such an index.

    The file's own page checksums say whether it is whole; its content hash is taken from it, not computed again.
    """
    return _read(path, str(path))[0]


def parse_index(content: bytes, where: str, most_rows: int) -> tuple[Scan, dict[str, Any]]:
    """A written index from its bytes, and the `metadata` of its writer. Raises UserError as `read_index`.

    most_rows: rows that it can have: a few forged bytes may claim gigabytes of them.
    """
    try:
        claimed = pq.read_metadata(pa.BufferReader(content))
        rows = [claimed.row_group(i) for i in range(claimed.num_row_groups)]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{where} is not a readable index ({error}); run `polyvit index` again") from None
    claimed_bytes = sum(group.total_byte_size for group in rows)
    if claimed.num_rows > most_rows or claimed_bytes > SMALL_INDEX + MAX_ROW_BYTES * claimed.num_rows:
        raise UserError(
            f"{where} claims {claimed.num_rows:,} rows of {claimed_bytes:,} bytes, more than there can be; run "
            "`polyvit shard` again"
        )
    return _read(pa.BufferReader(content), where)


def _read(source: Path | pa.NativeFile, path: str) -> tuple[Scan, dict[str, Any]]:
    try:
        table = pq.read_table(source, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not a readable index ({error}); run `polyvit index` again") from None
    try:
        stored = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if not table.schema.equals(SCHEMA) or _METADATA - stored.keys():
            raise UserError(f"{path} is not an index of this version; run `polyvit index` again")
        problems = [Problem(**problem) for problem in json.loads(stored["polyvit.problems"])]
        classes = [str(name) for name in json.loads(stored["polyvit.classes"])]
        metadata = dict(json.loads(stored.get(_WRITER_METADATA, "{}")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is a damaged index ({error}); run `polyvit index` again") from None
    if problem := row_problem(table, classes):
        raise UserError(f"{path} is a damaged index: {problem}; run `polyvit index` again")
    examples = Examples(table.replace_schema_metadata(None))
    examples.stored_hash = (classes, stored["polyvit.hash"])
    return Scan(examples, classes, problems), metadata


def read_metadata(path: Path) -> dict[str, Any]:
    """The writer's `metadata` of an index, without reading its rows; {} where it is none, or has none."""
    try:
        stored = pq.read_schema(path).metadata or {}
        return dict(json.loads(stored[_WRITER_METADATA.encode()]))
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return {}


def index_classes(path: Path) -> list[str]:
    """Class names in label order of what `write_index` wrote. Raises UserError where the file is no such index."""
    try:
        stored = pq.read_schema(path).metadata or {}
        return json.loads(stored[b"polyvit.classes"])
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a readable index ({error}); run `polyvit index` again") from None


def index_hash(scan: Scan) -> str:
    """SHA-256 over every example in order and the class names: equal means the same plan."""
    stored = scan.examples.stored_hash
    if stored is None or stored[0] != scan.classes:
        stored = (list(scan.classes), _digest(scan.examples.table(), scan.classes))
        scan.examples.stored_hash = stored
    return stored[1]


def _digest(table: pa.Table, classes: Sequence[str]) -> str:
    """Hash of plain little-endian columns, so that it depends on no Arrow or Parquet version."""
    digest = hashlib.sha256(json.dumps([list(classes), table.num_rows]).encode())
    for name in SCHEMA.names:
        column = whole(table.column(name))
        if pa.types.is_list(column.type):
            digest.update(column.value_lengths().to_numpy().astype("<i8").tobytes())
            column = column.flatten()
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            digest.update(pc.binary_length(column).to_numpy().astype("<i8").tobytes())
            digest.update(_text_bytes(column))
        else:
            order = "<f8" if pa.types.is_floating(column.type) else "<i8"
            digest.update(column.to_numpy(zero_copy_only=False).astype(order).tobytes())
    return digest.hexdigest()


def _text_bytes(column: pa.Array) -> memoryview:
    """The UTF-8 of all texts of a column, one after the other."""
    _, offsets, data = column.buffers()
    kind = np.dtype("i8" if pa.types.is_large_string(column.type) else "i4")
    bounds = (
        np.frombuffer(offsets, kind, len(column) + 1, kind.itemsize * column.offset) if len(column) else [0, 0]
    )
    return memoryview(data or b"")[bounds[0] : bounds[-1]]
