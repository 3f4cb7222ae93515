"""Layout `imagefolder`: `{train,val,test}/<class>/...`, or just `<class>/...`; images, videos or recordings.

The files that count are those with an extension of the task's modality, at any depth below the class folder.
Split folders may be called train/training, val/valid/validation/dev/eval, test/testing, or have such a word in
their name (`training_set`, `seg_train`); they are also found one folder further in (`shapes/train/<class>`,
`seg_train/seg_train/<class>`), as a ZIP leaves them. Without split folders the hash of the key carves all three;
beside a train folder it carves validation only, and only where that has no folder. Label index: sorted class
folders of train that hold such files, or `task.classes`. What looks like no classes at all (`images/` beside
`labels/`, the same folders inside of every top folder) is refused, unless `task.classes` names the folders.

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
    split_of,
)
from polyvit.errors import UserError

EXPECTS = "train/<class>/..., val/<class>/..., test/<class>/..., or just <class>/..."
OPTIONS = {"validation_fraction": 0.1, "test_fraction": 0.1}
KINDS_OF_FILES = frozenset(
    {
        "image", "images", "img", "imgs", "jpegimages", "picture", "pictures", "photo", "photos", "frames",
        "video", "videos", "clips", "audio", "audios", "sound", "sounds", "wav", "wavs", "label", "labels",
        "annotation", "annotations", "mask", "masks", "data", "dataset",
    }
)  # fmt: skip
"""Folders of these names (lower case) say what kind of files they hold, not what the files show."""
DEEPEST = 3
"""Folders that may lie around the splits or classes."""
_Below = tuple[float, float]


def scan_imagefolder(context: ScanContext) -> Scan:
    """One class a folder. Raises UserError for split folders with neither train nor `task.classes`, for folders
    that are no classes, and for class folders that are dead links.
    """
    below = carve_fractions(context, read_options(context, OPTIONS))
    top = _unwrapped(context)
    tops = context.class_folders(top)
    splits = _splits(context, top)
    if not splits:
        media = _media(context, top)
        names = context.names(name for name, paths in media.items() if paths)
        _refuse_what_is_no_class(context, top, names)
        _add_classes(context, top, "train", names, media, below)
        return context.finish(names)
    if "train" not in splits.values() and context.classes is None:
        raise UserError(
            f"tasks.{context.name}: {context.at(top)} has {', '.join(splits)} but no folder 'train', which the"
            f" class indices come from; add one, or set tasks.{context.name}.classes to a file of class names"
        )
    inner = {name: _doubled(context, _join(top, name)) for name in splits}
    held = {name: _media(context, inner[name]) for name in splits}
    train = [name for name in splits if splits[name] == "train"]
    names = context.names(label for name in train for label, paths in held[name].items() if paths)
    test_share = 1 - below[1]
    below = (1.0, 1.0) if "validation" in splits.values() else (below[0] + test_share, 1.0)
    for name in tops:
        if name in splits:
            _add_classes(context, inner[name], splits[name], names, held[name], below)
        else:
            reason = "folder beside the split folders; its files belong to no split"
            context.skip("label", _join(top, name), reason)
    return context.finish(names)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _unwrapped(context: ScanContext) -> str:
    """The folder that holds the splits or the classes: the root, or a single folder in it that is no class."""
    top = ""
    for _ in range(DEEPEST):
        folders = [name for name in context.class_folders(top) if context.holds_media(_join(top, name))]
        if len(folders) != 1 or context.classes is not None or _splits(context, top):
            break
        inner = _join(top, folders[0])
        only_folders = context.folder(inner).folders and not _has_files(context, inner)
        if not only_folders or not (_splits(context, inner) or context.task.num_classes > 1):
            break
        top = inner
    return top


def _doubled(context: ScanContext, split: str) -> str:
    """The folder of a split's classes: itself, or the one of its own name in it (`seg_train/seg_train`)."""
    same = split.rpartition("/")[2]
    inside = context.class_folders(split)
    return f"{split}/{same}" if inside == (same,) and not _has_files(context, split) else split


def _has_files(context: ScanContext, folder: str) -> bool:
    """Whether media lie in a folder itself."""
    return any(context.is_media(name) for name in context.folder(folder).files)


def _splits(context: ScanContext, top: str) -> dict[str, Split]:
    """{folder: split} of the split folders in `top`; empty where its folders are classes.

    A class may be called `train` too, or have such a word in its name: a split holds folders, and names that only
    contain a word count where there are two splits, or nothing else.
    """
    tops = context.class_folders(top)
    context.expect(_join(top, name) for name in tops)
    exact = {name: SPLIT_NAMES[name.lower()] for name in tops if name.lower() in SPLIT_NAMES}
    others = [name for name in tops if name not in exact and context.holds_media(_join(top, name))]
    if any(context.folder(_join(top, name)).folders for name in exact) or (exact and not others):
        return exact
    if len(set(exact.values())) > 1:
        return exact
    near = {name: split for name in tops if (split := split_of(name)) and name not in exact}
    nested = [name for name in near if context.folder(_join(top, name)).folders]
    alone = not set(others) - set(near)
    return near if nested and not exact and (alone or len(set(near.values())) > 1) else {}


def _refuse_what_is_no_class(context: ScanContext, top: str, names: list[str]) -> None:
    """Raise UserError where the folders `names` in `top` are kinds of files, splits, or hold the classes."""
    if context.classes is not None or not names or context.task.num_classes == 1:
        return
    nested = {
        name: context.folder(_join(top, name)).folders
        for name in names
        if not _has_files(context, _join(top, name))
    }
    inner = next(iter(nested.values()), ())
    why = ""
    if all(name.lower() in KINDS_OF_FILES for name in names):
        why = "which say what the files are, not what they show"
    elif near := [name for name in nested if split_of(name)]:
        why = f"of which {near[0]} looks like a split"
    elif (
        len(nested) == len(names) > 1
        and len(set(nested.values())) == 1 < len(inner)
        and not all(name.isdecimal() for name in inner)
    ):
        why = f"each with the same folders in it ({', '.join(inner[:5])}), which look like the classes"
    if why:
        raise UserError(
            f"tasks.{context.name}: {context.at(top)} has the folders {', '.join(names[:10])}, {why}; layout"
            f" imagefolder expects: {EXPECTS}. Arrange the folders so; or, if these are the classes, set"
            f" tasks.{context.name}.classes to a file with their names, one a line"
        )


def _media(context: ScanContext, top: str) -> dict[str, list[str]]:
    """{class folder: its media files}; a folder without any is a problem, and no class of its own."""
    folders = context.class_folders(top)
    context.expect(_join(top, name) for name in folders)
    media = {name: context.media(_join(top, name)) for name in folders}
    for name, paths in media.items():
        if not paths:
            reason = f"class folder without {context.task.modality} files"
            context.skip("missing", _join(top, name), reason)
    return media


def _add_classes(
    context: ScanContext, top: str, split: Split, names: list[str], media: dict[str, list[str]], below: _Below
) -> None:
    """Add the files `media` of the class folders under `top`; those of train are carved by the thresholds."""
    indices = {name: index for index, name in enumerate(names)}
    for name, paths in media.items():
        for path in paths:
            index = context.label(name, indices, path)
            if index is not None:
                row_split = carve(path, *below) if split == "train" else split
                context.add(Example(path, path, (index,), row_split))
    for name in context.folder(top).files:
        if context.is_media(name):
            context.skip("label", _join(top, name), "file outside a class folder")


LAYOUT = Layout(scan_imagefolder, EXPECTS)
