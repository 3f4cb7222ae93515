"""Layout `parquet`: tables as on the Hugging Face hub, `data/train-00000-of-00002.parquet` and so on.

The media column is a struct {bytes, path} or plain binary; only label columns are read here, never media bytes (of
videos with sound `stream_check.py` reads them). The split is in the file's name or its folder's (`train-...`,
`train/0000.parquet`). Where no file says so, the hash of the key carves the splits; where files say train and none
validation, it carves these two. Labels are whole numbers (floats such as 1.0 and truth values too), names, or
lists of either. Class names: `task.classes`, else the ClassLabel names in the file's `huggingface` metadata, else
sorted unique names of train, or the numbers themselves. Reading one row later costs its whole row group, so small
row groups (100 rows, the hub's own size) train faster.

Options: media_column = "" (image, img, audio, video ... by modality), label_column = "" (label or labels),
labels = "auto" ("name" or "index": see layout `csv`), validation_fraction = 0.1, test_fraction = 0.1.
"""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from polyvit.config import Modality
from polyvit.data.index import Example, Scan, Split
from polyvit.data.layouts.scanning import (
    EMPTY,
    Layout,
    Row,
    Rows,
    ScanContext,
    carve,
    carve_fractions,
    label_rows,
    read_options,
    split_of,
    with_validation,
)
from polyvit.errors import UserError
from polyvit.storage import StoreUnavailable

EXPECTS = "data/train-00000-of-00001.parquet and so on, with a media and a label column"
OPTIONS: dict[str, Any] = {
    "media_column": "", "label_column": "", "labels": "auto",
    "validation_fraction": 0.1, "test_fraction": 0.1,
}  # fmt: skip
MEDIA_COLUMNS: dict[Modality, tuple[str, ...]] = {
    "image": ("image", "img", "jpg", "png", "pixel_values"),
    "video": ("video", "clip", "mp4", "avi"),
    "audio": ("audio", "sound", "wav", "flac", "mp3"),
    "audiovisual": ("video", "clip", "mp4", "avi", "audio", "sound", "wav", "flac", "mp3"),
}
"""Of a modality of `plugins` the column is called as it is."""
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


def scan_parquet(context: ScanContext) -> Scan:
    """Examples of every file. Raises UserError where there is no file, or a column is missing."""
    options = read_options(context, OPTIONS)
    below = carve_fractions(context, options)
    files = [path for path in context.files("") if path.endswith(".parquet")]
    if not files:
        raise UserError(f"tasks.{context.name}: no Parquet file under {context.at()}; expected: {EXPECTS}")
    named = {path: _split(path) for path in files}
    for path in [path for path in files if named[path] is None and any(named.values())]:
        context.skip("label", path, "no split in the file's name, which other files have")
        del named[path]
    splits, below = with_validation(named, below)
    rows = Rows()
    names: list[str] | None = None
    for path in splits:
        file_names = _read(context, path, splits[path], options, below, rows)
        if file_names is not None and names is not None and file_names != names:
            raise UserError(
                f"tasks.{context.name}: {context.at(path)} has other class names than the files before it"
            )
        names = names if file_names is None else file_names
    return label_rows(context, rows, options["labels"], context.classes if context.classes is not None else names)


def _split(path: str) -> Split | None:
    """The split that the file's name contains, else the name of the nearest folder that contains one."""
    return next((split for part in reversed(path.split("/")) if (split := split_of(part))), None)


def _read(
    context: ScanContext,
    path: str,
    split: Split | None,
    options: dict[str, Any],
    below: tuple[float, float],
    rows: Rows,
) -> list[str] | None:
    """Add the rows of one file to `rows`; returns its class names. A damaged file becomes a problem.

    path: the file. split: from its name, None to carve by `below` (thresholds of train and validation). options:
    of the layout.
    """
    try:
        with context.open(path) as opened, pq.ParquetFile(opened) as file:
            schema = file.schema_arrow
            usual = MEDIA_COLUMNS.get(context.task.modality, (context.task.modality,))
            media = _column(context, path, schema, options, "media_column", usual)
            label = _column(context, path, schema, options, "label_column", LABEL_COLUMNS)
            labels = file.read(columns=[label]).column(0).to_pylist()
    except StoreUnavailable:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = f"not a readable Parquet file ({type(error).__name__})"
        context.skip("broken", path, EMPTY if context.size(path) == 0 else reason)
        return None
    stem, column = path.removesuffix(".parquet"), schema.get_field_index(media)
    for row, value in enumerate(labels):
        key = f"{stem}/{row:05d}"
        example = Example(key, path, (), split or carve(key, *below), "parquet", offset=column, row=row)
        rows.append(Row(example, _labels(value), f"{path}:{row}"))
    return _class_names(schema, label)


def _column(
    context: ScanContext, path: str, schema: pa.Schema, options: dict[str, Any], key: str, usual: tuple[str, ...]
) -> str:
    """The column that an option names, else the first usual one.

    path, schema: the file. options, key: the option's value. usual: names to try without it. Raises UserError
    where the file has none of them.
    """
    candidates = (options[key],) if options[key] else usual
    column = next((name for name in candidates if name in schema.names), None)
    if column is None:
        raise UserError(
            f"tasks.{context.name}: {context.at(path)} has columns {', '.join(schema.names)}, none of"
            f" {', '.join(candidates)}; set tasks.{context.name}.options.{key}"
        )
    kind = schema.field(column).type
    if key == "media_column" and not (_is_binary(kind) or _is_media_struct(kind)):
        raise UserError(f"{context.at(path)}: column {column} is {kind}; bytes or a struct with bytes is expected")
    return column


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_media_struct(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)


def _labels(value: Any) -> tuple[str | int, ...]:
    values = value if isinstance(value, list) else [value]
    labels = [_label(item) for item in values]
    return tuple(label for label in labels if label != "")


def _label(value: Any) -> str | int:
    """A whole number, also one that is stored as a float or a truth value; else text, '' for an empty cell."""
    if value is None or value != value:
        return ""
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    return str(value).strip()


def _class_names(schema: pa.Schema, label: str) -> list[str] | None:
    """ClassLabel names of the label column in the `huggingface` metadata; None where there are none."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
        while "names" not in feature:  # a sequence of ClassLabel: a list of one, or {"feature": ...}
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        return [str(name) for name in feature["names"]]
    except (KeyError, IndexError, TypeError, ValueError):
        return None


LAYOUT = Layout(scan_parquet, EXPECTS)
