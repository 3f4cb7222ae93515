"""Decoded examples as `polyvit tokenize` writes them: Parquet files of tensors, read without a decoder.

    TASK/classes.txt                 class names in label order
    TASK/train-000000.parquet        columns `key`, `labels`, and a tensor column for each of the modality's arrays
    TASK/validation-000000.parquet

In a file's metadata, under `polyvit`, are its split and what it was made of. Keys are those of the originals, so a
schedule plans the same examples. Options: none.
"""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from polyvit.data.index import SPLITS, Example, Scan
from polyvit.data.layouts.scanning import Layout, Row, Rows, ScanContext, label_rows, read_lines, read_options
from polyvit.errors import UserError
from polyvit.storage import StoreUnavailable

EXPECTS = "classes.txt and train-000000.parquet and so on, as `polyvit tokenize` writes them"
TOKENS_METADATA = b"polyvit"
"""The key of the files' metadata: a JSON object with `split` and `made_of`."""
NOT_OURS = "not written by `polyvit tokenize`"


def scan_tokens(context: ScanContext) -> Scan:
    """Every row of every file. Raises UserError where there is no file; a damaged one becomes a problem."""
    read_options(context, {})
    files = [path for path in context.files("") if path.endswith(".parquet")]
    if not files:
        raise UserError(f"tasks.{context.name}: no Parquet file under {context.at()}; expected: {EXPECTS}")
    classes = context.classes
    if classes is None:
        classes = [name for _, name in read_lines(context, "classes.txt")]
    rows = Rows()
    for path in files:
        try:
            with context.open(path) as opened, pq.ParquetFile(opened) as file:
                about = json.loads((file.metadata.metadata or {})[TOKENS_METADATA])
                table = file.read(columns=["key", "labels"])
        except StoreUnavailable:
            raise
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            reason = NOT_OURS if isinstance(error, KeyError) else f"not readable ({type(error).__name__})"
            context.skip("broken", path, reason)
            continue
        if about.get("split") not in SPLITS:
            context.skip("broken", path, NOT_OURS)
            continue
        for row, (key, labels) in enumerate(zip(*map(pa.ChunkedArray.to_pylist, table.columns), strict=True)):
            example = Example(key, path, (), about["split"], "tokens", row=row)
            rows.append(Row(example, tuple(labels), f"{path}:{row}"))
    return label_rows(context, rows, "index", classes)


LAYOUT = Layout(scan_tokens, EXPECTS)
