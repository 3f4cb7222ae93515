"""Layout `imagenet`: `{train,val}/<wnid>/*.JPEG`, and `LOC_synset_mapping.txt` where the user has it.

Label index: the line of the wnid in `LOC_synset_mapping.txt` (1000 lines, `n01440764 tench, Tinca tinca`) or
in `task.classes` (lines that start with a wnid, or are folder names); with neither, the sorted folder names
of train. Splits: train is carved by the hash of its key, 99 % train and 1 % validation, as the official `val`
is the test set of the paper's table. No options.
"""

import re

from polyvit.data.index import Example, Scan
from polyvit.data.layouts.scanning import Layout, ScanContext, carve, read_lines, read_options
from polyvit.errors import UserError

EXPECTS = "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, with LOC_synset_mapping.txt where all 1000 classes count"
MAPPING = "LOC_synset_mapping.txt"
TRAIN_BELOW = 0.99
"""scenic big_transfer's `train[:99%]` / `train[99%:]`, by key hash in place of file order."""
_WNID = re.compile(r"(n\d{8})\b\s*(.*)")


def scan_imagenet(context: ScanContext) -> Scan:
    """Train, validation and test from the folders by synset. Raises UserError where `train/` is missing."""
    read_options(context, {})
    if "train" not in context.folder("").folders:
        raise UserError(f"tasks.{context.name}: {context.at('train')} is not there; expected: {EXPECTS}")
    lines = context.classes
    if lines is None and context.size(MAPPING) is not None:
        lines = [line for _, line in read_lines(context, MAPPING)]
    folders, names = _classes(lines if lines is not None else _with_media(context, "train"))
    for top in ("train", "val"):
        _refuse_flat(context, top)
        _add_folders(context, top, {folder: index for index, folder in enumerate(folders)})
    return context.finish(names)


def _with_media(context: ScanContext, top: str) -> list[str]:
    """The class folders in `top` that hold media."""
    folders = context.class_folders(top)
    context.expect(f"{top}/{name}" for name in folders)
    return [name for name in folders if context.holds_media(f"{top}/{name}")]


def _classes(lines: list[str]) -> tuple[list[str], list[str]]:
    """Folder names and class names, both in label order; a name that occurs twice gets its wnid ("crane")."""
    pairs = [match.groups() if (match := _WNID.fullmatch(line)) else (line, line) for line in lines]
    texts = [text or folder for folder, text in pairs]
    seen = {text for text in texts if texts.count(text) > 1}
    names = [f"{text} ({pair[0]})" if text in seen else text for pair, text in zip(pairs, texts, strict=True)]
    return [folder for folder, _ in pairs], names


def _refuse_flat(context: ScanContext, top: str) -> None:
    """Raise UserError where the pictures of a split lie in no class folders, as the official `val` comes."""
    files = [name for name in context.folder(top).files if context.is_media(name)]
    if files and not context.class_folders(top):
        raise UserError(
            f"tasks.{context.name}: {context.at(top)} holds {len(files)} pictures ({files[0]} ...) and no class"
            f" folders; layout imagenet expects {top}/<wnid>/*.JPEG. Move each picture into the folder of its"
            " wnid, which LOC_val_solution.csv or the official valprep.sh names"
        )


def _add_folders(context: ScanContext, top: str, indices: dict[str, int]) -> None:
    if top not in context.folder("").folders:
        context.skip("missing", top, "folder is not there; its split is empty")
    for path in context.media(top):
        parts = path.split("/")
        index = context.label(parts[1] if len(parts) > 2 else "", indices, path)
        if index is not None:
            split = carve(path, TRAIN_BELOW) if top == "train" else "test"
            context.add(Example(path, path, (index,), split))


LAYOUT = Layout(scan_imagenet, EXPECTS)
