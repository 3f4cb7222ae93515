"""Layouts `cifar10` and `cifar100`: the python batches, in `cifar-10-batches-py/` or `cifar-100-python/`.

The folder may also be the task's root itself. cifar10: `data_batch_1` .. `data_batch_5`, `test_batch`,
`batches.meta`; cifar100: `train`, `test`, `meta`, with fine labels. Train is carved by the hash of its key
(`data_batch_1/00017`), 98 % train and 2 % validation. No options.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from polyvit.data.index import Example, Scan
from polyvit.data.layouts.scanning import BadPickle, Layout, ScanContext, carve, load_plain, read_options
from polyvit.errors import UserError

TRAIN_BELOW = 0.98
"""scenic's `train[:98%]` / `train[98%:]` of the CIFAR tasks, by key hash in place of file order."""
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Files:
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    names_key: str
    labels_key: str
    num_classes: int


_CIFAR10 = _Files(
    "cifar-10-batches-py", tuple(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta",
    "label_names", "labels", 10,
)  # fmt: skip
_CIFAR100 = _Files("cifar-100-python", ("train",), "test", "meta", "fine_label_names", "fine_labels", 100)
EXPECTS10 = "cifar-10-batches-py/{data_batch_1..5,test_batch,batches.meta}"
EXPECTS100 = "cifar-100-python/{train,test,meta}"


def scan_cifar10(context: ScanContext) -> Scan:
    """CIFAR-10. Raises UserError, naming the file, where a batch is missing, damaged or not as documented."""
    return _scan(context, _CIFAR10)


def scan_cifar100(context: ScanContext) -> Scan:
    """CIFAR-100 with its fine labels. Raises UserError as `scan_cifar10`."""
    return _scan(context, _CIFAR100)


def pixels_NHWC(batch: dict[str, Any]) -> np.ndarray:
    """The pictures of a batch: uint8 [N, 32, 32, 3], from rows of 3072 bytes (1024 red, green, blue).

    Raises BadPickle where `data` is missing or has another shape or type.
    """
    data = batch.get("data")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (PIXELS,):
        actual = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise BadPickle(f"'data' must be uint8 [rows, {PIXELS}], found {actual}")
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def labels_of(batch: dict[str, Any], key: str, num_classes: int) -> list[int]:
    """The labels of a batch. Raises BadPickle where they are missing, too few, too many or out of range."""
    if key not in batch:
        raise BadPickle(f"has no {key!r}; it has {', '.join(sorted(batch))}")
    value = batch[key]
    labels = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise BadPickle(f"{key!r} is not a list of whole numbers")
    if len(labels) != (rows := len(pixels_NHWC(batch))):
        raise BadPickle(f"{len(labels)} labels, {rows} images")
    for row, label in enumerate(labels):
        if not 0 <= label < num_classes:
            raise BadPickle(f"label {label} at row {row}; classes are 0..{num_classes - 1}")
    return labels


def _scan(context: ScanContext, files: _Files) -> Scan:
    read_options(context, {})
    prefix = f"{files.folder}/" if files.folder in context.folder("").folders else ""
    names = context.classes
    if names is None:
        names = _names(context, prefix + files.meta, files)
    for file in (*files.train, files.test):
        path = prefix + file
        batch = _load(context, path)
        try:
            labels = labels_of(batch, files.labels_key, files.num_classes)
        except BadPickle as error:
            raise UserError(f"{context.at(path)}: {error}; fetch this file again") from None
        for row, label in enumerate(labels):
            key = f"{file}/{row:05d}"
            split = "test" if file == files.test else carve(key, TRAIN_BELOW)
            context.examples.append(Example(key, path, (label,), split, "cifar", row=row))
    return context.finish(names)


def _names(context: ScanContext, path: str, files: _Files) -> list[str]:
    names = _load(context, path).get(files.names_key)
    if not isinstance(names, list) or len(names) != files.num_classes:
        raise UserError(f"{context.at(path)}: {files.names_key!r} must list {files.num_classes} class names")
    return [name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names]


def _load(context: ScanContext, path: str) -> dict[str, Any]:
    full = context.at(path)
    try:
        return load_plain(context.content(path))
    except BadPickle as error:
        raise UserError(f"{full}: {error}; fetch this file again") from None
    except OSError as error:
        raise UserError(
            f"tasks.{context.name}: {full} cannot be read ({error.strerror or error}); layout"
            f" {context.task.layout} needs it"
        ) from None


CIFAR10 = Layout(scan_cifar10, EXPECTS10)
CIFAR100 = Layout(scan_cifar100, EXPECTS100)
