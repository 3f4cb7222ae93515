"""Layout `charades`: `Charades_v1_train.csv`, `Charades_v1_test.csv`, `Charades_v1_classes.txt` and `<id>.mp4`.

The lists may lie in the root or in `Charades/`, as their archive unpacks; the videos in `Charades_v1_480/`,
`Charades_v1/`, `videos/` or where option `folder` says. Columns: id, actions (`c092 11.90 21.20;c147 0.00 12.60`:
class, start and end in seconds; empty for a video without any); others are ignored. `Charades_v1_classes.txt` has
`c000 Holding some clothes`; without it the 157 classes are called by their numbers. An example is a whole video
with the classes of all its actions, as the official evaluation of classification has it, or, with option `each =
"action"`, one action, cut by its times, with the classes of all actions that are going on in its middle. A row
with a malformed action or an unknown class is left out whole: its other labels alone would be a wrong label set.
The same id twice: the first row that can be used stays. The test list becomes the validation split: Charades has
these two only.

Options: folder = "", each = "video" or "action".
"""

import re
from typing import NamedTuple

from polyvit.data.index import Example, Scan, Split
from polyvit.data.layouts.scanning import (
    Layout,
    ScanContext,
    name_problem,
    need_columns,
    ordered_names,
    read_lines,
    read_options,
    read_table,
)
from polyvit.errors import UserError

CLASSES = "Charades_v1_classes.txt"
EXPECTS = f"Charades_v1_train.csv, Charades_v1_test.csv, {CLASSES}, and Charades_v1_480/<id>.mp4"
OPTIONS = {"folder": "", "each": "video"}
LISTS: dict[str, Split] = {"Charades_v1_train.csv": "train", "Charades_v1_test.csv": "validation"}
TABLES, FOLDERS = ("", "Charades"), ("Charades_v1_480", "Charades_v1", "videos")
NUM_CLASSES = 157
_ACTION = re.compile(r"c(\d{3}) (\d+(?:\.\d+)?) (\d+(?:\.\d+)?)")


class _Action(NamedTuple):
    label: int
    start: float
    end: float


def scan_charades(context: ScanContext) -> Scan:
    """Train and validation. Raises UserError where a list or the videos' folder is missing, or `each` is
    unknown."""
    options = read_options(context, OPTIONS)
    if options["each"] not in ("video", "action"):
        raise UserError(f"tasks.{context.name}.options.each={options['each']!r}; allowed are 'video' and 'action'")
    tables = next((top for top in TABLES if next(iter(LISTS)) in context.folder(top).files), "")
    names = context.classes if context.classes is not None else _names(context, tables)
    folders = (options["folder"],) if options["folder"] else FOLDERS
    videos: dict[str, str] = {}
    for folder in reversed(folders):
        videos |= context.by_stem(folder)
    if not videos:
        raise UserError(
            f"tasks.{context.name}: no video in {', '.join(map(context.at, folders))}; put them there, or set"
            f" tasks.{context.name}.options.folder to their folder"
        )
    seen: set[str] = set()
    for file, split in LISTS.items():
        path = f"{tables}/{file}" if tables else file
        header, rows = read_table(context, path)
        need_columns(context, path, header, ("id", "actions"))
        for where, row in rows:
            actions = _actions(context, row["actions"], len(names), where)
            if reason := name_problem(row["id"]):
                context.skip("broken", where, reason)
            elif row["id"] in seen:
                context.skip("duplicate", where, f"id {row['id']!r} occurs again; the first row is kept")
            elif actions is not None:
                seen.add(row["id"])
                video = videos.get(row["id"], f"{folders[0]}/{row['id']}.mp4")
                _add(context, row["id"], video, split, actions, options["each"], where)
    return context.finish(names)


def _names(context: ScanContext, tables: str) -> list[str]:
    """Class names in the order of their numbers; `c000 Holding some clothes` is class 0."""
    path = f"{tables}/{CLASSES}" if tables else CLASSES
    if context.size(path) is None:
        return [f"c{number:03d}" for number in range(NUM_CLASSES)]
    rows = []
    for number, line in read_lines(context, path):
        code, _, name = line.strip().partition(" ")
        index = str(int(code[1:])) if re.fullmatch(r"c\d{3}", code) else code
        rows.append((f"{path}:{number}", index, name.strip()))
    return ordered_names(context, path, rows)


def _actions(context: ScanContext, cell: str, classes: int, where: str) -> list[_Action] | None:
    """The actions of a row; None, and a problem, where one is malformed or of no class."""
    actions = []
    for text in filter(None, (part.strip() for part in cell.split(";"))):
        match = _ACTION.fullmatch(text)
        if not match:
            context.skip("label", where, f"malformed action {text!r}; expected such as 'c092 11.90 21.20'")
            return None
        if int(match[1]) >= classes:
            context.skip("label", where, f"action {text!r} is of no class: there are {classes}, from c000 on")
            return None
        actions.append(_Action(int(match[1]), float(match[2]), float(match[3])))
    return actions


def _add(
    context: ScanContext, ident: str, video: str, split: Split, actions: list[_Action], each: str, where: str
) -> None:
    """Add a video, or each of its actions that last."""
    if each == "video":
        context.add(Example(ident, video, tuple(sorted({action.label for action in actions})), split), where)
        return
    if not context.usable(video, where):
        return
    for number, action in enumerate(actions):
        middle = (action.start + action.end) / 2
        labels = tuple(sorted({other.label for other in actions if other.start <= middle <= other.end}))
        if action.end <= action.start:
            context.skip("label", where, f"action c{action.label:03d} ends at {action.end:g} s, where it starts")
            continue
        context.examples.append(
            Example(f"{ident}/{number:03d}", video, labels, split, start=action.start, end=action.end)
        )


LAYOUT = Layout(scan_charades, EXPECTS)
