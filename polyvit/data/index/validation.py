"""Checks the rows of an index: a forged index must not reach a decoder or a loss.

In: a table of the index's schema. Out: what is wrong with it, in words.

Whole columns at a time: two million rows take a tenth of a second. Paths, and offsets beyond the end of a file,
are checked where files are read (`layouts.scanning.inside`, `loading.reader`).
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

SPLITS = ("train", "validation", "test")
CONTAINERS = ("file", "tar", "parquet", "cifar", "tokens")


def row_problem(table: pa.Table, classes: Sequence[str]) -> str | None:
    """What is wrong with the rows, in words; None where nothing is. `table` has the index's schema."""
    try:
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        return str(error).splitlines()[0][:160]
    if empty := [name for name in table.column_names if table.column(name).null_count]:
        return f"column {empty[0]} has empty cells"
    for name, allowed in (("split", SPLITS), ("container", CONTAINERS)):
        if unknown := set(pc.unique(table.column(name)).to_pylist()) - set(allowed):
            return f"{name} {min(unknown)!r}; allowed are {', '.join(allowed)}"
    labels = pc.list_flatten(table.column("labels"))
    if len(labels) and (labels.null_count or pc.min(labels).as_py() < 0 or pc.max(labels).as_py() >= len(classes)):
        return f"a label outside 0..{len(classes) - 1}"
    container = table.column("container")
    in_tar = pc.equal(container, "tar")
    needed = {
        "offset": pc.or_(in_tar, pc.equal(container, "parquet")),
        "length": in_tar,
        "row": pc.is_in(container, pa.array(["parquet", "cifar", "tokens"])),
    }
    for name, rows in needed.items():
        if pc.any(pc.and_(rows, pc.less(table.column(name), 0))).as_py():
            return f"{name} below 0"
    finite = pc.and_(pc.is_finite(table.column("start")), pc.is_finite(table.column("end")))
    if pc.all(pc.and_(finite, pc.greater_equal(table.column("start"), 0))).as_py() is False:
        return "a start or end that is no time"
    return None
