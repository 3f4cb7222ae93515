"""Layout `esc50`: `meta/esc50.csv` and `audio/<fold>-<source>-<take>-<target>.wav`.

Columns: filename, fold (1 to 5), target (0 to 49), category; others are ignored. Label index: target, whose names
come from all folds. Clips of one recording lie in one fold. One fold is the validation split, the other four are
train: the result of the set is the mean over the five (`--over tasks.NAME.options.fold=1,2,3,4,5`).

Options: fold = 1, which one is held out.
"""

from polyvit.data.index import Example, Scan, Split
from polyvit.data.layouts.scanning import (
    Layout,
    ScanContext,
    name_problem,
    need_columns,
    ordered_names,
    read_options,
    read_table,
)
from polyvit.errors import UserError

LIST, FOLDER = "meta/esc50.csv", "audio"
COLUMNS = ("filename", "fold", "target", "category")
EXPECTS = f"{LIST} and {FOLDER}/<fold>-<source>-<take>-<target>.wav"
OPTIONS = {"fold": 1}


def scan_esc50(context: ScanContext) -> Scan:
    """Train and validation of one fold. Raises UserError where the list is missing or has no such fold."""
    fold = read_options(context, OPTIONS)["fold"]
    header, table = read_table(context, LIST)
    need_columns(context, LIST, header, COLUMNS)
    rows = [(where, row) for where, row in table if _usable(context, where, row)]
    folds = sorted({int(row["fold"]) for _, row in rows})
    if fold not in folds:
        have = ", ".join(map(str, folds)) or "none"
        raise UserError(f"tasks.{context.name}.options.fold={fold}; {context.at(LIST)} has the folds {have}")
    first = {row["target"]: (where, row["target"], row["category"]) for where, row in reversed(rows)}
    names = ordered_names(context, LIST, list(first.values()))
    chosen = context.classes if context.classes is not None else names
    indices = {name: index for index, name in enumerate(chosen)}
    for where, row in rows:
        if names[int(row["target"])] != row["category"]:
            context.skip("label", where, f"target {row['target']} is {names[int(row['target'])]} in a row before")
        elif (index := context.label(row["category"], indices, where)) is not None:
            split: Split = "validation" if int(row["fold"]) == fold else "train"
            name = row["filename"]
            context.add(Example(name, f"{FOLDER}/{name}", (index,), split), where)
    return context.finish(chosen)


def _usable(context: ScanContext, where: str, row: dict[str, str]) -> bool:
    if reason := name_problem(row["filename"]):
        context.skip("broken", where, reason)
    elif not all(row[column].isdecimal() and len(row[column]) < 9 for column in ("fold", "target")):
        context.skip("label", where, f"malformed fold {row['fold']!r} or target {row['target']!r}")
    else:
        return True
    return False


LAYOUT = Layout(scan_esc50, EXPECTS)
