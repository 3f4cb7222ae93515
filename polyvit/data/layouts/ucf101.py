"""Layout `ucf101`: `UCF-101/<Class>/v_<Class>_g<group>_c<clip>.avi` and `ucfTrainTestlist/`.

The lists are `classInd.txt` (`number Class`, from 1), `trainlist01.txt` to `03` (`Class/file.avi number`) and
`testlist01.txt` to `03` (`Class/file.avi`). The folders of the two archives may also be one in the other's, or lie
in the root. A file may have another video extension. Label index: `classInd.txt`, of all classes whatever a list
holds. The test list becomes the validation split: UCF-101 has these two only, and results are reported on it.
About half of the classes have sound: for a task that reads it the others are left out.

Options: split = 1, which of the three lists.
"""

from polyvit.data.index import Example, Scan, Split
from polyvit.data.layouts.scanning import (
    OUTSIDE,
    Layout,
    ScanContext,
    inside,
    ordered_names,
    read_lines,
    read_options,
)
from polyvit.errors import UserError

CLASSES = "classInd.txt"
EXPECTS = f"UCF-101/<Class>/*.avi, and ucfTrainTestlist/ with {CLASSES}, trainlist01.txt and testlist01.txt"
OPTIONS = {"split": 1}
SPLITS = 3
LISTS = (
    "ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist", "UCF-101/ucfTrainTestlist", "",
)  # fmt: skip
VIDEOS = ("UCF-101", "UCF-101/UCF-101", "")
"""Where the lists and the class folders may be."""


def scan_ucf101(context: ScanContext) -> Scan:
    """Train and validation of one split. Raises UserError where the split, a list or the class list is not
    there."""
    split = read_options(context, OPTIONS)["split"]
    if not 1 <= split <= SPLITS:
        raise UserError(f"tasks.{context.name}.options.split={split}; UCF-101 has the splits 1, 2 and 3")
    lists = _folder_with(context, LISTS, CLASSES)
    numbered = _numbered(context, _join(lists, CLASSES))
    names = context.classes if context.classes is not None else numbered
    indices = {name: index for index, name in enumerate(names)}
    if not any(_has(context, top, name) for top in VIDEOS for name in names):
        raise UserError(
            f"tasks.{context.name}: {context.at('')} holds no folder of a class of {CLASSES} ({names[0]}, ...),"
            f" nor does {context.at(VIDEOS[0])}; expected: {EXPECTS}"
        )
    top = next(top for top in VIDEOS if any(_has(context, top, name) for name in names))
    context.expect(_join(top, name) for name in names)
    sides: list[tuple[str, Split]] = [("trainlist", "train"), ("testlist", "validation")]
    for prefix, side in sides:
        _add_list(context, _join(lists, f"{prefix}{split:02d}.txt"), side, indices, numbered, top)
    return context.finish(names)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _has(context: ScanContext, top: str, name: str) -> bool:
    return name in context.folder(top).folders


def _folder_with(context: ScanContext, folders: tuple[str, ...], file: str) -> str:
    for folder in folders:
        if file in context.folder(folder).files:
            return folder
    raise UserError(
        f"tasks.{context.name}: {context.at(_join(folders[0], file))} is not there; the class numbers and the"
        f" three splits come from the archive of lists. Unpack it beside the videos; expected: {EXPECTS}"
    )


def _numbered(context: ScanContext, path: str) -> list[str]:
    """Class names of `classInd.txt` in order; its numbers count from 1."""
    rows = []
    for line_number, line in read_lines(context, path):
        number, _, name = line.strip().partition(" ")
        index = str(int(number) - 1) if number.isdecimal() and 0 < len(number) < 9 and int(number) else number
        rows.append((f"{path}:{line_number}", index, name.strip()))
    return ordered_names(context, path, rows)


def _add_list(
    context: ScanContext, path: str, split: Split, indices: dict[str, int], numbered: list[str], top: str
) -> None:
    for line_number, line in read_lines(context, path):
        where = f"{path}:{line_number}"
        file, _, number = line.strip().partition(" ")
        folder, _, name = file.rpartition("/")
        if inside(file) is None or "/" in folder:
            context.skip("broken", where, OUTSIDE)
            continue
        if (index := context.label(folder, indices, where)) is None:
            continue
        if number.strip() and not (number.strip().isdecimal() and numbered[int(number) - 1 :][:1] == [folder]):
            context.skip("label", where, f"number {number.strip()!r} is not {folder}'s in {CLASSES}")
            continue
        stem = name.rpartition(".")[0]
        path_of = context.by_stem(_join(top, folder))
        context.add(Example(f"{folder}/{stem}", path_of.get(stem, _join(top, file)), (index,), split), where)


LAYOUT = Layout(scan_ucf101, EXPECTS)
