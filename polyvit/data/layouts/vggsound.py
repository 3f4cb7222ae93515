"""Layout `vggsound`: `vggsound.csv` (no header), clips `audio/<ytid>_<start:06d>.wav`.

Rows are `ytid,start,label,train|test`; a label with a comma is quoted. Media may be .wav, .flac, .mp3, .mp4
(its sound track) and others. Label index: sorted unique labels of the train rows, on disk or not, or
`task.classes`. `test` becomes the validation split: VGGSound has these two only, and the paper reports on it.

Options: folder, where the media are: `audio`, or for a task on videos (with or without their sound) `video`, and
`audio` where there is no such folder.
"""

from polyvit.data.index import Example, Scan, Split
from polyvit.data.layouts.scanning import Layout, ScanContext, media_folder, name_problem, read_options, read_rows

LIST = "vggsound.csv"
EXPECTS = f"{LIST} and audio/<ytid>_<start:06d>.(wav|flac|mp4|...)"
OPTIONS = {"folder": ""}
SPLITS: dict[str, Split] = {"train": "train", "test": "validation"}
FIELDS = 4


def scan_vggsound(context: ScanContext) -> Scan:
    """Train and validation from the one list. Raises UserError where it is missing."""
    options = read_options(context, OPTIONS)
    rows = list(read_rows(context, LIST, FIELDS))
    names = context.names(label for _, (_, _, label, split) in rows if split == "train")
    indices = {name: index for index, name in enumerate(names)}
    folder = options["folder"] or media_folder(context)
    media = context.by_stem(folder)
    for where, (ytid, start, label, split_word) in rows:
        split = SPLITS.get(split_word)
        if split is None:
            context.skip("label", where, f"split {split_word!r}; allowed are 'train' and 'test'")
        elif not start.isdecimal() or len(start) > 9:
            context.skip("label", where, f"malformed start {start!r}")
        elif reason := name_problem(ytid):
            context.skip("broken", where, reason)
        elif (index := context.label(label, indices, where)) is not None:
            stem = f"{ytid}_{int(start):06d}"
            path = media.get(stem, f"{folder}/{stem}.wav")
            context.add(Example(stem, path, (index,), split), where)
    return context.finish(names)


LAYOUT = Layout(scan_vggsound, EXPECTS)
