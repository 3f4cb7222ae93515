"""Features of a frozen encoder for one split of one task, and the Parquet file that keeps them.

In: class-token features [B, D], labels [B, K], keys, what could not be decoded. Out: the same, from a file that
is whole or refused. Legend: B examples, D width, K classes.
"""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polyvit.config import InputSection, TaskConfig
from polyvit.data.loading import Minibatch, Quarantined, multi_hot

FORMAT = 1
"""Counts up when the same inputs give other features, so that no older file is taken for them."""
_ROW_GROUP = 65_536


@dataclass(frozen=True)
class Features:
    """features [B, D] float32, labels [B, K] 0/1 uint8, keys [B]; `bad` were left out as undecodable."""

    features: np.ndarray
    labels: np.ndarray
    keys: tuple[str, ...]
    bad: tuple[Quarantined, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, rows: np.ndarray) -> "Features":
        """Some of the examples, by position."""
        return Features(
            self.features[rows], self.labels[rows], tuple(self.keys[i] for i in rows.tolist()), self.bad
        )


class DamagedFeatures(Exception):
    """A features file that is damaged, or holds other features than those asked for."""


def features_key(
    model_digest: str,
    index_digest: str,
    root: Path | str,
    split: str,
    task: TaskConfig,
    spec: InputSection,
    precision: str,
) -> str:
    """SHA-256 of all that the features of a split depend on: encoder, examples, decoding and views.

    model_digest: hash of the encoder's parameters. index_digest: hash of the task's index. root: where its data
    lie. split: train, validation or test. task: its config. spec: the input section of its modality. precision: of
    the encoder's arithmetic. The bytes of the media do not count: after a file was replaced in place, delete the
    cache.
    """
    evaluation = {
        name: value
        for name, value in task.model_dump(mode="json").items()
        if name in ("modality", "augment")
        or (name.startswith("eval_") and name not in ("eval_split", "eval_average"))
    }
    dependencies = [
        FORMAT, model_digest, index_digest, str(root), split, evaluation, spec.model_dump(mode="json"), precision,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()


def gather_features(parts: Sequence[tuple[np.ndarray, Minibatch]], width: int, num_classes: int) -> Features:
    """Minibatches of one split with their features [n, D] float32, in order, joined to one `Features`.

    width: D. num_classes: K.
    """
    empty = (np.zeros((0, width), np.float32), np.zeros((0, num_classes), np.uint8))
    return Features(
        np.concatenate([empty[0], *(features for features, _ in parts)]),
        np.concatenate([empty[1], *(minibatch.labels for _, minibatch in parts)]),
        tuple(key for _, minibatch in parts for key in minibatch.keys),
        tuple(entry for _, minibatch in parts for entry in minibatch.bad),
    )


def write_features(features: Features, path: Path, key: str) -> None:
    """Write to a temporary name, then rename: a reader sees the whole file or none."""
    rows, classes = np.nonzero(features.labels)
    ends = np.cumsum(np.bincount(rows, minlength=len(features)))
    width = features.features.shape[1]
    flat = pa.array(np.ascontiguousarray(features.features, dtype=np.float32).reshape(-1))
    table = pa.table(
        {
            "key": pa.array(features.keys, pa.string()),
            "labels": pa.ListArray.from_arrays(
                pa.array(np.concatenate([[0], ends]), pa.int32()), pa.array(classes, pa.int32())
            ),
            "features": pa.FixedSizeListArray.from_arrays(flat, width),
        }
    )
    bad = json.dumps([asdict(entry) for entry in features.bad])
    table = table.replace_schema_metadata({"polyvit.features": key, "polyvit.bad": bad})
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: two probes may write the same features at once.
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f"{path.name}.", suffix=".writing", delete=False
    ) as at:
        beside = Path(at.name)
    try:
        pq.write_table(
            table,
            beside,
            compression="none",
            use_dictionary=False,
            write_page_checksum=True,
            row_group_size=_ROW_GROUP,
        )
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_features(path: Path, key: str, examples: int, num_classes: int) -> Features:
    """Read back what `write_features` wrote for `key`, for a split of so many `examples` and K = `num_classes`.

    Raises FileNotFoundError where there is no file, DamagedFeatures where it is damaged or of another key.
    """
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        metadata: dict[bytes, bytes] = table.schema.metadata or {}
        if metadata.get(b"polyvit.features") != key.encode():
            raise DamagedFeatures("it holds other features")
        bad = tuple(Quarantined(**entry) for entry in json.loads(metadata[b"polyvit.bad"]))
        features = _from_table(table, bad, num_classes)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError, IndexError) as error:
        raise DamagedFeatures(str(error).split("\n")[0]) from None
    if len(features) + len(bad) != examples:
        raise DamagedFeatures(f"it holds {len(features) + len(bad)} examples, the split has {examples}")
    if not np.isfinite(features.features).all():
        raise DamagedFeatures("it holds features that are not finite")
    return features


def _from_table(table: pa.Table, bad: tuple[Quarantined, ...], num_classes: int) -> Features:
    column: Any = table.column("features").combine_chunks()
    features = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), column.type.list_size)
    labels = multi_hot(table.column("labels").to_pylist(), num_classes)
    return Features(features.copy(), labels, tuple(table.column("key").to_pylist()), bad)
