"""Layout `moments` (Moments in Time): `moments_categories.txt`, `trainingSet.csv`, `validationSet.csv`.

Categories are `name,index`; the two lists have no header and rows `class/file.mp4,label,agree,disagree`;
clips lie under `training/` and `validation/`. Label index: the one in `moments_categories.txt`, or the
position of the label in `task.classes`. No options.
"""

from polyvit.data.index import Example, Scan, Split
from polyvit.data.layouts.scanning import (
    OUTSIDE,
    Layout,
    ScanContext,
    ordered_names,
    read_lines,
    read_options,
    read_rows,
)

CATEGORIES = "moments_categories.txt"
EXPECTS = f"{CATEGORIES}, trainingSet.csv, validationSet.csv, training/ and validation/"
LISTS: tuple[tuple[str, str, Split], ...] = (
    ("trainingSet.csv", "training", "train"),
    ("validationSet.csv", "validation", "validation"),
)
FIELDS = 4


def scan_moments(context: ScanContext) -> Scan:
    """Train and validation from the two lists. Raises UserError for a missing list or an index hole."""
    read_options(context, {})
    names = context.classes
    if names is None:
        numbered = []
        for number, line in read_lines(context, CATEGORIES):
            name, _, index = line.rpartition(",")
            numbered.append((f"{CATEGORIES}:{number}", index.strip(), name.strip()))
        names = ordered_names(context, CATEGORIES, numbered)
    indices = {name: index for index, name in enumerate(names)}
    for file, folder, split in LISTS:
        for where, (clip, label, *_) in read_rows(context, file, FIELDS):
            class_index = context.label(label, indices, where)
            if class_index is None:
                continue
            if (path := context.inside(clip)) is None:
                context.skip("broken", where, OUTSIDE)
                continue
            full = f"{folder}/{path}"
            context.add(Example(full, full, (class_index,), split), where)
    return context.finish(names)


LAYOUT = Layout(scan_moments, EXPECTS)
