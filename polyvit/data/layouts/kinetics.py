"""Layout `kinetics`: `{train,val,test}.csv` with a header, clips `<split>/<label>/<id>_<start>_<end>.mp4`.

Columns: label, youtube_id, time_start, time_end (seconds); others are ignored. Start and end have six digits
in the file's name. Real copies differ: `<split>/<file>` with no label folder, '_' for ' ' in the label's
folder, other video extensions, `validate.csv` for `val.csv`; all are found. A clip in another label's folder
is not: it counts as missing. Label index: sorted unique labels of `train.csv` (of rows, on disk or not, so
that a copy with holes has the same indices), or `task.classes`. `val` is validation, `test` is test. No
options.
"""

import re
from collections.abc import Mapping

from polyvit.data.index import Example, Scan, Split
from polyvit.data.layouts.scanning import Layout, ScanContext, name_problem, need_columns, read_options, read_table
from polyvit.errors import UserError

EXPECTS = "train.csv, val.csv (and test.csv), and clips at <split>/<label>/<id>_<start>_<end>.mp4"
COLUMNS = ("label", "youtube_id", "time_start", "time_end")
LISTS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("val", "validate", "validation"),
    "test": ("test",),
}
_Row = dict[str, str]


def scan_kinetics(context: ScanContext, others: bool = False) -> Scan:
    """Train, validation and test from the lists.

    others: rows of other classes than `task.classes` are expected, and no problems. Raises UserError where
    `train.csv` is missing and `task.classes` is not given: an index made from another list would be a wrong one.
    """
    read_options(context, {})
    rows = {split: _read(context, split) for split in LISTS}
    if not rows["train"] and context.classes is None:
        raise UserError(
            f"tasks.{context.name}: {context.at('train.csv')} is missing or empty, and the class indices"
            f" come from it; put it there, or set tasks.{context.name}.classes to a text file of class names"
        )
    names = context.names(row["label"] for _, row in rows["train"])
    indices = {name: index for index, name in enumerate(names)}
    for split, split_rows in rows.items():
        clips = _clips(context, split)
        for where, row in split_rows:
            if others and row["label"] and row["label"] not in indices:
                continue
            _add(context, split, row, where, indices, clips)
    return context.finish(names)


def _read(context: ScanContext, split: Split) -> list[tuple[str, _Row]]:
    """Rows of one split's list; a missing validation list is a problem, a missing test list is usual."""
    file = next((f"{name}.csv" for name in LISTS[split] if context.size(f"{name}.csv") is not None), None)
    if file is None:
        if split != "test":
            context.skip("missing", f"{LISTS[split][0]}.csv", "list is not there; its split is empty")
        return []
    header, rows = read_table(context, file)
    if split == "test" and "label" not in header:
        context.skip("label", file, "no column 'label'; its split is left out")
        return []
    need_columns(context, file, header, COLUMNS)
    return list(rows)


def _folder_form(label: str) -> str:
    """A label as folders may spell it: lower case, every run of other signs one '_'."""
    return re.sub(r"[\W_]+", "_", label.lower()).strip("_")


def _clips(context: ScanContext, split: Split) -> dict[tuple[str, str], str]:
    """{(label folder in its common form, '' for none; stem): path}."""
    clips: dict[tuple[str, str], str] = {}
    for top in LISTS[split]:
        context.expect(f"{top}/{folder}" for folder in context.folder(top).folders)
        for folder in context.folder(top).folders:
            for stem, path in context.by_stem(f"{top}/{folder}").items():
                clips.setdefault((_folder_form(folder), stem), path)
        for stem, path in context.by_stem(top).items():
            clips.setdefault(("", stem), path)
    return clips


def _add(
    context: ScanContext,
    split: Split,
    row: _Row,
    where: str,
    indices: Mapping[str, int],
    clips: Mapping[tuple[str, str], str],
) -> None:
    """Add one row of a list, or a problem.

    split: of the list. row: its cells. where: file:line. indices: label index by name. clips: as `_clips` gives
    them.
    """
    index = context.label(row["label"], indices, where)
    if index is None:
        return
    try:
        times = [round(float(row[column])) for column in ("time_start", "time_end")]
    except (ValueError, OverflowError):
        context.skip("label", where, f"malformed times {row['time_start']!r}, {row['time_end']!r}")
        return
    stem = f"{row['youtube_id']}_{times[0]:06d}_{times[1]:06d}"
    usual = f"{LISTS[split][0]}/{row['label']}/{stem}.mp4"
    if reason := name_problem(row["youtube_id"]):
        context.skip("broken", where, reason)
        return
    path = clips.get((_folder_form(row["label"]), stem)) or clips.get(("", stem)) or usual
    context.add(Example(f"{LISTS[split][0]}/{stem}", path, (index,), split), where)


LAYOUT = Layout(scan_kinetics, EXPECTS)
