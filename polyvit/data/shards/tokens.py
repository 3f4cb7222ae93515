"""Write a task's examples decoded and unaugmented: Parquet files of tensors that layout `tokens` reads.

In: the requests of some examples of one split. Out, below a folder or URL: `train-000000.parquet` and so on, with
columns `key`, `labels`, and for each named array of the modality a fixed-shape tensor column [views, ...]: every
evaluation view, to the bit what an evaluation of the originals decodes. A file is written whole or not at all.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polyvit.config import InputSection, TaskConfig
from polyvit.data.index import SPLITS, Example, Scan, index_hash
from polyvit.data.layouts import TOKENS_METADATA
from polyvit.data.loading import Arrays, Decoder, Request, example_bytes
from polyvit.storage import Location, StoreUnavailable, is_url, open_root

FILE_BYTES = 256 * 2**20
"""Of a file's arrays, about; also the most that one decoding process works on before anything is kept."""
GROUP_BYTES = 2**18
"""Of a row group: the smallest piece that a reader in random order can take."""
AT_ONCE = 16
"""Examples that are decoded and held together."""


@dataclass(frozen=True)
class TokenSpec:
    """One file to write: its name, split and examples; made_of: hash of all that decides what is in it."""

    name: str
    split: str
    examples: Sequence[Example]
    made_of: str


@dataclass(frozen=True)
class TokenReport:
    """The result of writing a file.

    written: False where it was there already, whole and of the same. bad: {key, path, reason} of each example that
    could not be decoded, which is not in it.
    """

    name: str
    examples: int
    bytes: int
    written: bool
    bad: tuple[dict[str, str], ...] = ()


def token_specs(scan: Scan, task: TaskConfig, spec: InputSection, per_file: int | None = None) -> list[TokenSpec]:
    """Every file of a task: its splits in key order, some FILE_BYTES each, or `per_file` examples."""
    views = task.eval_views
    step = per_file or max(1, FILE_BYTES // (views * example_bytes(spec)))
    digest, specs = index_hash(scan), []
    keys = {"modality", "augment", "eval_clips", "eval_crops"}
    how = {"task": task.model_dump(mode="json", include=keys), "input": spec.model_dump(mode="json")}
    for split in SPLITS:
        examples = scan.split(split)
        for number, first in enumerate(range(0, len(examples), step)):
            inputs = json.dumps([digest, split, first, step, how], sort_keys=True)
            made_of = hashlib.sha256(inputs.encode()).hexdigest()
            specs.append(TokenSpec(f"{split}-{number:06d}", split, examples[first : first + step], made_of))
    return specs


def write_tokens(
    spec: TokenSpec, task: str, decoder: Decoder, out: Location, careful: bool = False
) -> TokenReport:
    """Write one file, unless it is there and made of the same.

    spec: what belongs in it. task, decoder: how its examples are decoded. out: the folder or URL. careful: whether
    an example may end the process that decodes it (see `Decoder.decode`). Raises OSError, StoreUnavailable.
    """
    root, name = open_root(out), spec.name + ".parquet"
    if (report := _whole(spec, out)) is not None:
        return report
    bad: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory(prefix=".polyvit-tokens-", dir=None if is_url(out) else out) as scratch:
        path, rows = Path(scratch) / name, 0
        writer: pq.ParquetWriter | None = None
        schema = _schema(decoder.inputs[task], decoder.tasks[task].eval_views)
        for keys, labels, arrays in _decoded(spec, task, decoder, careful, bad):
            writer = writer or pq.ParquetWriter(path, schema, compression="lz4")
            group = max(1, GROUP_BYTES // max(1, sum(array[0].nbytes for array in arrays.values())))
            writer.write_table(_table(schema, keys, labels, arrays), row_group_size=group)
            rows += len(keys)
        writer = writer or pq.ParquetWriter(path, schema, compression="lz4")
        about = {"split": spec.split, "made_of": spec.made_of, "rows": rows, "bad": bad}
        writer.add_key_value_metadata({TOKENS_METADATA.decode(): json.dumps(about)})
        writer.close()
        size = path.stat().st_size
        root.write(name, path)
    return TokenReport(spec.name, rows, size, True, tuple(bad))


def _decoded(
    spec: TokenSpec, task: str, decoder: Decoder, careful: bool, bad: list[dict[str, str]]
) -> Iterator[tuple[tuple[str, ...], list[tuple[int, ...]], Arrays]]:
    """(keys, labels, arrays [n, views, ...]) of the examples, some at a time; adds to `bad`."""
    for first in range(0, len(spec.examples), AT_ONCE):
        some = list(spec.examples[first : first + AT_ONCE])
        minibatch = decoder.decode(Request(0, task, some), careful=careful)
        bad += [{"key": each.key, "path": each.path, "reason": each.reason} for each in minibatch.bad]
        if kept := len(minibatch.keys):
            by_key = {example.key: example.labels for example in some}
            arrays = {name: array.reshape(kept, -1, *array.shape[1:]) for name, array in minibatch.inputs.items()}
            yield minibatch.keys, [by_key[key] for key in minibatch.keys], arrays


def _schema(spec: InputSection, views: int) -> pa.Schema:
    tensors = [
        (name, pa.fixed_shape_tensor(pa.from_numpy_dtype(each.dtype), (views, *each.shape)))
        for name, each in spec.arrays.items()
    ]
    return pa.schema([("key", pa.string()), ("labels", pa.list_(pa.int32())), *tensors])


def _table(schema: pa.Schema, keys: Sequence[str], labels: Sequence[Sequence[int]], arrays: Arrays) -> pa.Table:
    columns = [pa.array(keys, pa.string()), pa.array(labels, pa.list_(pa.int32()))]
    columns += [
        pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(array)) for array in arrays.values()
    ]
    return pa.table(columns, schema=schema)


def _whole(spec: TokenSpec, out: Location) -> TokenReport | None:
    """The report of a file that is whole already; None where it must be written."""
    root, name = open_root(out), spec.name + ".parquet"
    try:
        with root.open(name) as opened, pq.ParquetFile(opened) as file:
            about: dict[str, Any] = json.loads((file.metadata.metadata or {})[TOKENS_METADATA])
            size = opened.seek(0, 2)
    except StoreUnavailable:
        raise
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None
    if about.get("made_of") != spec.made_of:
        return None
    return TokenReport(spec.name, about["rows"], size, False, tuple(about["bad"]))
