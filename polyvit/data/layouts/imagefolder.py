"""Layout `imagefolder`: `{train,val,test}/<class>/...`, or just `<class>/...`; images, videos or recordings.

The files that count are those with an extension of the task's modality, at any depth below the class folder.
Split folders may be called train/training, val/valid/validation/dev/eval, test/testing. Without split folders
the hash of the key carves all three; beside a train folder it carves validation only, and only where that has
no folder. Label index: sorted class folders of train, or `task.classes`.

Options: validation_fraction = 0.1 and test_fraction = 0.1, the shares that are carved.
"""

from polyvit.data.index import Example, Scan, Split
from polyvit.data.layouts.scanning import (
    SPLIT_NAMES,
    Layout,
    ScanContext,
    carve,
    carve_fractions,
    read_options,
)
from polyvit.errors import UserError

EXPECTS = "train/<class>/..., val/<class>/..., test/<class>/..., or just <class>/..."
OPTIONS = {"validation_fraction": 0.1, "test_fraction": 0.1}
_Below = tuple[float, float]


def scan_imagefolder(context: ScanContext) -> Scan:
    """One class a folder. Raises UserError for split folders with neither train nor `task.classes`."""
    below = carve_fractions(context, read_options(context, OPTIONS))
    tops = context.folder("").folders
    splits = {top: SPLIT_NAMES[top.lower()] for top in tops if top.lower() in SPLIT_NAMES}
    if not splits:
        names = context.names(tops)
        _add_classes(context, "", "train", names, below)
        return context.finish(names)
    if "train" not in splits.values() and context.classes is None:
        raise UserError(
            f"tasks.{context.name}: {context.at()} has {', '.join(splits)} but no folder 'train', which the"
            f" class indices come from; add one, or set tasks.{context.name}.classes to a file of class names"
        )
    train = [top for top in splits if splits[top] == "train"]
    names = context.names(name for top in train for name in context.folder(top).folders)
    test_share = 1 - below[1]
    below = (1.0, 1.0) if "validation" in splits.values() else (below[0] + test_share, 1.0)
    for top in tops:
        if top in splits:
            _add_classes(context, top, splits[top], names, below)
        else:
            context.skip("label", top, "folder beside the split folders; its files belong to no split")
    return context.finish(names)


def _add_classes(context: ScanContext, top: str, split: Split, names: list[str], below: _Below) -> None:
    """Add the class folders under `top`; files of train are carved by the thresholds `below`."""
    indices = {name: index for index, name in enumerate(names)}
    prefix = f"{top}/" if top else ""
    context.expect(prefix + name for name in context.folder(top).folders)
    for name in context.folder(top).folders:
        paths = context.media(prefix + name)
        if not paths:
            context.skip("missing", prefix + name, f"class folder without {context.task.modality} files")
        for path in paths:
            index = context.label(name, indices, path)
            if index is not None:
                row_split = carve(path, *below) if split == "train" else split
                context.add(Example(path, path, (index,), row_split))
    for name in context.folder(top).files:
        if name.lower().endswith(context.task.extensions):
            context.skip("label", prefix + name, "file outside a class folder")


LAYOUT = Layout(scan_imagefolder, EXPECTS)
