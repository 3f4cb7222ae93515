"""Layout `audioset`: segment lists, `class_labels_indices.csv` and `audio/`.

Lists: `balanced_train_segments.csv`, `unbalanced_train_segments.csv`, `eval_segments.csv`.
Rows are `YTID, start, end, "mid,mid"`; comment lines ('#') may be there. Media: `audio/<list's
name>/<YTID>.wav` (.flac, .mp3, .m4a, .mp4, .ogg, .webm, .mkv ...), or flat in `audio/`; `Y<YTID>.wav` and
`<YTID>_<start>.wav` are found too. A row with an unknown mid is left out whole: its other labels alone would
be a wrong label set. The same YTID twice in one list: the first row stays. Train lists are train, eval is
validation.

Options: train = `balanced` (default), `unbalanced` or `all`; folder, where the media are: `audio`, or for a task
on videos (with or without their sound) `video`, and `audio` where there is no such folder.
"""

from collections.abc import Iterator

from polyvit.data.index import Example, Scan, Split
from polyvit.data.layouts.scanning import (
    Layout,
    ScanContext,
    media_folder,
    name_problem,
    need_columns,
    ordered_names,
    read_options,
    read_rows,
    read_table,
)
from polyvit.errors import UserError

CLASSES = "class_labels_indices.csv"
EXPECTS = f"balanced_train_segments.csv, eval_segments.csv, {CLASSES} and audio/<list's name>/<YTID>.wav"
OPTIONS = {"train": "balanced", "folder": ""}
TRAIN_LISTS = {
    "balanced": ("balanced_train_segments",),
    "unbalanced": ("unbalanced_train_segments",),
    "all": ("balanced_train_segments", "unbalanced_train_segments"),
}
FIELDS = 4


def scan_audioset(context: ScanContext) -> Scan:
    """Train and validation, several labels a row. Raises UserError where a list is missing or malformed."""
    options = read_options(context, OPTIONS)
    if options["train"] not in TRAIN_LISTS:
        raise UserError(
            f"tasks.{context.name}.options.train={options['train']!r}; allowed are"
            f" {', '.join(map(repr, TRAIN_LISTS))}"
        )
    mids, names = _classes(context)
    indices = {mid: index for index, mid in enumerate(mids)}
    lists: list[tuple[str, Split]] = [(name, "train") for name in TRAIN_LISTS[options["train"]]]
    for name, split in [*lists, ("eval_segments", "validation")]:
        _add_list(context, name, split, indices, options["folder"] or media_folder(context))
    return context.finish(context.classes if context.classes is not None else names)


def _classes(context: ScanContext) -> tuple[list[str], list[str]]:
    """Mids and display names, in label order."""
    header, rows = read_table(context, CLASSES)
    need_columns(context, CLASSES, header, ("index", "mid", "display_name"))
    table = [(where, row["index"], row["mid"], row["display_name"]) for where, row in rows]
    mids = ordered_names(context, CLASSES, [(where, index, mid) for where, index, mid, _ in table])
    display = {mid: name for _, _, mid, name in table}
    return mids, [display[mid] for mid in mids]


def _add_list(context: ScanContext, name: str, split: Split, indices: dict[str, int], folder: str) -> None:
    media: dict[str, str] = {}
    for place in (folder, f"{folder}/{name.removesuffix('_segments')}", f"{folder}/{name}"):
        media |= context.by_stem(place)
    for where, (ytid, start, end, labels) in read_rows(context, f"{name}.csv", FIELDS, comment="#"):
        numbers = [context.label(mid.strip(), indices, where) for mid in labels.split(",")]
        known = tuple(sorted({index for index in numbers if index is not None}))
        if len(known) < len(set(numbers)):
            continue
        if reason := name_problem(ytid):
            context.skip("broken", where, reason)
            continue
        try:
            stems = list(_stems(ytid, float(start), float(end)))
        except (ValueError, OverflowError):
            context.skip("label", where, f"malformed times {start!r}, {end!r}")
            continue
        path = next((media[stem] for stem in stems if stem in media), f"{folder}/{name}/{ytid}.wav")
        context.add(Example(f"{name}/{ytid}", path, known, split), where)


def _stems(ytid: str, start: float, end: float) -> Iterator[str]:
    """Names that downloaders give to one segment, the plain one first; in seconds or milliseconds."""
    yield from (ytid, f"Y{ytid}")
    for scale in (1, 1000):
        first, last = int(start * scale), int(end * scale)
        yield from (f"{ytid}_{first}", f"{ytid}_{first}_{last}", f"{ytid}_{first:06d}")
    yield from (f"{ytid}_{start:.3f}", f"{ytid}_{start:.1f}")


LAYOUT = Layout(scan_audioset, EXPECTS)
