"""Layout `resisc45`: `NWPU-RESISC45/<class>/<class>_<nnn>.jpg`, and split files where the user has them.

`resisc45-{train,val,test}.txt` list file names, one a line; the class is the name before its last '_'.
RESISC45 has no official split: without these files the hash of the key gives 60 % train, 20 % validation, 20
% test. Label index: sorted class names of train (of the folders, without split files). No options.
"""

from polyvit.data.index import Example, Scan, Split
from polyvit.data.layouts.scanning import OUTSIDE, Layout, ScanContext, carve, inside, read_lines, read_options
from polyvit.errors import UserError

FOLDER = "NWPU-RESISC45"
EXPECTS = f"{FOLDER}/<class>/<class>_<nnn>.jpg, and resisc45-{{train,val,test}}.txt or none of these"
LISTS: dict[str, Split] = {
    "resisc45-train.txt": "train",
    "resisc45-val.txt": "validation",
    "resisc45-test.txt": "test",
}
TRAIN_BELOW, VALIDATION_BELOW = 0.6, 0.8
"""The 60/20/20 of the common third-party split files (Neumann et al. 2019, arXiv:1911.06667)."""


def scan_resisc45(context: ScanContext) -> Scan:
    """Train, validation and test. Raises UserError where the folder or one of the split files is missing."""
    read_options(context, {})
    if FOLDER not in context.folder("").folders:
        raise UserError(f"tasks.{context.name}: {context.at(FOLDER)} is not there; expected: {EXPECTS}")
    if any(context.size(name) is not None for name in LISTS):
        return _from_lists(context)
    folders, paths = context.class_folders(FOLDER), context.media(FOLDER)
    held = {path.split("/")[1] for path in paths}
    names = context.names(name for name in folders if name in held)
    indices = {name: index for index, name in enumerate(names)}
    for path in paths:
        parts = path.split("/")
        index = context.label(parts[1] if len(parts) > 2 else "", indices, path)
        if index is not None:
            context.add(Example(path, path, (index,), carve(path, TRAIN_BELOW, VALIDATION_BELOW)))
    return context.finish(names)


def _from_lists(context: ScanContext) -> Scan:
    rows = []
    for path, split in LISTS.items():
        for number, line in read_lines(context, path):
            file = line.strip()
            rows.append((f"{path}:{number}", file, file.rpartition("/")[2].rpartition("_")[0], split))
    names = context.names(name for _, _, name, split in rows if split == "train")
    indices = {name: index for index, name in enumerate(names)}
    for where, file, name, split in rows:
        if inside(file) is None:
            context.skip("broken", where, OUTSIDE)
            continue
        index = context.label(name, indices, where)
        if index is not None:
            full = f"{FOLDER}/{name}/{file.rpartition('/')[2]}"
            context.add(Example(full, full, (index,), split), where)
    return context.finish(names)


LAYOUT = Layout(scan_resisc45, EXPECTS)
