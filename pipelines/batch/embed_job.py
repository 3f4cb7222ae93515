"""Ray Data: embeddings of files, or of the splits of a config's tasks, as one Parquet file.

In: a trained model, and paths or a config. Out: rows of SCHEMA in the order of the input: `path`, `task`, `split`,
`index` and `label` (the classes of an example, numbers and names; null of plain files), `embedding`, `error`. An
example that cannot be used is a row without an embedding, with the reason in `error`.
"""

import hashlib
import pickle
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.batch.batch_predict import FILES_A_TASK, on_device, through_the_model
from pipelines.batch.extract_features import feature_splits, load_or_extract
from pipelines.index import Indexes, build_indexes
from pipelines.runtime import console
from polyvit.config import RunConfig
from polyvit.data.index import Split
from polyvit.deploy import Predictor, Prepared, pad_names
from polyvit.errors import UserError
from polyvit.evaluation import Features

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("task", pa.string()),
        ("split", pa.string()),
        ("index", pa.list_(pa.int32())),
        ("label", pa.list_(pa.string())),
        ("embedding", pa.list_(pa.float32())),  # a list of fixed size cannot be read back where some are null
        ("error", pa.string()),
    ]
)


@dataclass
class EmbeddingWriter:
    """Rows to a Parquet file, as they come. rows, failed: how many so far, and of them without an embedding."""

    file: pq.ParquetWriter
    rows: int = 0
    failed: int = 0

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Rows by column; a column that is left out is null."""
        if rows:
            whole = [{name: row.get(name) for name in SCHEMA.names} for row in rows]
            self.file.write_table(pa.Table.from_pylist(whole, SCHEMA))
            self.rows += len(rows)
            self.failed += sum(row.get("error") is not None for row in rows)


@contextmanager
def embedding_file(path: Path) -> Iterator[EmbeddingWriter]:
    """A file that is there once it is whole. Raises UserError where it cannot be written."""
    beside = path.with_name(path.name + ".writing")
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; give a file in it, such as {path / 'embeddings.parquet'}")
    try:
        file = pq.ParquetWriter(beside, SCHEMA)
    except OSError as error:
        raise UserError(f"--out {path} cannot be written ({error}); give another path") from None
    try:
        with file:
            yield EmbeddingWriter(file)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def file_rows(
    paths: Sequence[str], prepared: Sequence[Prepared | str], predictor: Predictor
) -> list[dict[str, Any]]:
    """Rows of files that were prepared; a reason in place of a prepared file becomes its `error`."""
    usable = [item for item in prepared if isinstance(item, Prepared)]
    features = iter(predictor.features(usable))
    return [
        {"path": path, "error": item}
        if isinstance(item, str)
        else {"path": path, "task": item.groups[0].tasks[0], "embedding": next(features).numpy()}
        for path, item in zip(paths, prepared, strict=True)
    ]


class Embedder:
    """The model, in an actor of its own."""

    def __init__(self, predictor: list[Any], device: str) -> None:
        self.predictor = on_device(predictor, device)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace `prepared` by the columns of an embedding."""
        prepared = [pickle.loads(value.as_py()) for value in table.column("prepared")]
        rows = file_rows(table.column("path").to_pylist(), prepared, self.predictor)
        return pa.table({"path": table.column("path"), "row": [pickle.dumps(row, protocol=5) for row in rows]})


def embed_files(
    predictor: Predictor, paths: Sequence[str], tasks: Sequence[str], seconds: float, writer: EmbeddingWriter
) -> None:
    """Embeddings of any number of files, by the processes of the cluster, in the order of `paths`.

    tasks: whose preparation is used; none: the first of the file's modality. seconds: for decoding one file.
    """
    asked = {
        "config": predictor.config.model_dump_json(),
        "tasks": tuple(tasks),
        "modality": None,
        "seconds": seconds,
    }
    blocks = max(1, min(len(paths) // FILES_A_TASK, 1000))
    table = pa.table({"path": pa.array(paths, pa.string())})
    size = -(-len(paths) // blocks)
    tables = [table.slice(i, size) for i in range(0, len(paths), size)]
    embedded = through_the_model(predictor, tables, asked, Embedder)
    embedded.context.execution_options.preserve_order = True
    batch: Any
    for batch in embedded.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
        writer.write([pickle.loads(row.as_py()) for row in batch.column("row")])


def embed_splits(
    predictor: Predictor, config: RunConfig, checkpoint: Path, splits: Sequence[Split], cache: Path,
    writer: EmbeddingWriter,
) -> None:  # fmt: skip
    """Embeddings of the examples of a config's tasks, in the order of their indexes.

    config: says which tasks, and has the model's own model section. checkpoint: the model's. splits: which; one
    without examples is left out. cache: folder of features, which a probe shares.
    """
    with (checkpoint / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with tempfile.TemporaryDirectory(prefix="index-", dir=cache) as folder:
        indexes = build_indexes(config, Path(folder), train=False)
    wanted = [split for split in feature_splits(config, indexes, digest, cache, splits) if len(split.examples)]
    features, _ = load_or_extract(predictor.model, config, indexes, wanted)
    for split in wanted:
        of_split = features[split.task, split.split]
        writer.write(list(_example_rows(of_split, split.task, split.split, indexes, config)))
        console.print(f"{split.task} ({split.split}): {len(of_split)} embeddings")


def _example_rows(
    features: Features, task: str, split: Split, indexes: Indexes, config: RunConfig
) -> Iterator[dict[str, Any]]:
    scan = indexes.scans[task]
    names = pad_names(scan.classes, config.tasks[task].num_classes)
    paths = {example.key: example.path for example in scan.split(split)}
    known = {"task": task, "split": split}
    for key, labels_K, embedding_D in zip(features.keys, features.labels, features.features, strict=True):
        index = np.flatnonzero(labels_K).tolist()
        label = [names[k] for k in index]
        yield {**known, "path": paths[key], "index": index, "label": label, "embedding": embedding_D}
    for bad in _once(features.bad):
        yield {**known, "path": bad.path, "error": bad.reason}


def _once(entries: Iterable[Any]) -> Iterable[Any]:
    return {entry.key: entry for entry in entries}.values()
