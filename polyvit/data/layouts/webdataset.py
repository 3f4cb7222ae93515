"""Layout `webdataset`: tar shards, read in place; members `<key>.<extension>` beside `<key>.cls` or `.json`.

A shard `x.tar` with its index `x.tar.index` beside it (`polyvit shard` writes both) is not read at all: the
index says where every member lies, and keeps the keys, splits and labels of the data that it was made of. An
index of another shard (its size differs) is ignored.

The split is in the shard's name, or in that of its folder: a word train, val(idation) or test, with no letter
beside it (`imagenet-train-0001.tar`, `val/0001.tar`). Where no shard at all says so, the hash of the key carves
the splits; where shards say train and none validation, it carves these two. The label is the text of `.cls` (a
whole number or a class name), or "label", "labels" or "cls" in `.json`. Class names: `task.classes`, else
`classes.txt` in the root, else sorted unique names of train, or the numbers themselves. Shards must be plain tar
files: a compressed one cannot be read by offset.

Options: labels = "auto" ("name" or "index": see layout `csv`), extension = "" (such as "jpg", where a sample
holds several media), validation_fraction = 0.1 and test_fraction = 0.1 (carved, where no shard's name has a
split).
"""

import json
import math
import tarfile
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from polyvit.data.index import Example, Examples, Problem, Scan, Split, parse_index
from polyvit.data.layouts.scanning import (
    OUTSIDE,
    Layout,
    Row,
    Rows,
    ScanContext,
    cached_rows,
    carve,
    carve_fractions,
    inside,
    is_utf8,
    label_rows,
    read_lines,
    read_options,
    split_of,
    spread_over,
    with_validation,
)
from polyvit.errors import UserError
from polyvit.storage import StoreUnavailable

EXPECTS = "tar shards such as train-000000.tar and val-000000.tar"
OPTIONS: dict[str, Any] = {
    "labels": "auto",
    "extension": "",
    "validation_fraction": 0.1,
    "test_fraction": 0.1,
}
CLASSES = "classes.txt"
INDEX = ".index"
"""A shard's index is named after the shard and this."""
LABEL_FIELDS = ("label", "labels", "cls")
MANY = 64
"""Shards whose reading is spread over a cluster, where there is one."""
MAX_LABEL_BYTES = 1 << 20
"""A label member above 1 MiB is not a label."""

MAX_HEADER_BYTES = 1 << 20
"""A member's name and attributes above 1 MiB are none; tarfile reads as much as the shard claims."""

_Sample = dict[str, tuple[int, int]]
"""{extension: (offset, length) in the shard}"""


def scan_webdataset(context: ScanContext) -> Scan:
    """Examples of every shard. Raises UserError where there is no shard."""
    options = read_options(context, OPTIONS)
    below = carve_fractions(context, options)
    shards = _shards(context)
    named = {shard: split_of(shard.rpartition("/")[2]) or split_of(shard.rpartition("/")[0]) for shard in shards}
    for shard in [shard for shard in shards if named[shard] is None and any(named.values())]:
        context.skip("label", shard, "no split in the shard's name, which other shards have")
        del named[shard]
    splits, below = with_validation(named, below)
    rows = Rows()
    read = partial(_read_apart, context.fork(), options["extension"], below)
    named_shards = [*splits.items()]
    spread = context.root.remote or (context.spread is not None and len(named_shards) >= MANY)
    answers = spread_over(context.spread, read, named_shards, MANY, True) if spread else map(read, named_shards)
    for shard_rows, problems, stamps in answers:
        for row in shard_rows:
            rows.append(row)
        context.join(problems, stamps)
    classes = context.classes
    if classes is None and context.size(CLASSES) is not None:
        classes = [line.strip() for _, line in read_lines(context, CLASSES)]
    return label_rows(context, rows, options["labels"], classes)


def _read_apart(
    context: ScanContext, extension: str, below: tuple[float, float], named: tuple[str, Split | None]
) -> tuple[list[Row], list[Problem], dict[str, str]]:
    """The rows of one shard, its problems and the stamps of what was read; in another thread or process."""
    fork, (shard, split) = context.fork(), named
    rows = list(_read_shard(fork, shard, split, extension, below))
    return rows, fork.problems, fork.read


def _shards(context: ScanContext) -> list[str]:
    shards = []
    for folder in ("", *context.folder("").folders):
        prefix = f"{folder}/" if folder else ""
        for name in context.folder(folder).files:
            if name.endswith(".tar"):
                shards.append(prefix + name)
            elif name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")):
                context.skip("broken", prefix + name, "compressed shard; unpack it to a plain .tar")
    if not shards:
        reasons = [f"{problem.where}: {problem.reason}" for problem in context.problems]
        raise UserError(f"tasks.{context.name}: no tar shard in {context.at()}; expected: {EXPECTS}", reasons)
    return shards


def _read_shard(
    context: ScanContext, shard: str, split: Split | None, extension: str, below: tuple[float, float]
) -> Iterator[Row]:
    """The samples of one shard, in order; of a damaged shard those before the damage."""
    indexed = _indexed(context, shard)
    if indexed is not None:
        for example in indexed:
            yield Row(example, example.labels, f"{shard}/{example.key}")
        return
    settings = [extension, split, below]
    yield from cached_rows(context, shard, settings, lambda: _walk(context, shard, split, extension, below))


def _walk(
    context: ScanContext, shard: str, split: Split | None, extension: str, below: tuple[float, float]
) -> Iterator[Row]:
    """The samples of a shard that has no index."""
    try:
        with context.open(shard) as file:
            for name, sample in _samples(context, shard, file).items():
                where = f"{shard}/{name}"
                address = _media(sample, extension or "", context.task.extensions)
                if address is None:
                    context.skip("missing", where, f"no {extension or context.task.modality} in the sample")
                elif address[1] == 0:
                    context.skip("broken", where, "empty file")
                else:
                    labels, origin = _labels(context, where, file, sample)
                    key, start, end = origin or (f"{shard.removesuffix('.tar')}/{name}", 0.0, -1.0)
                    row_split = split or carve(key, *below)
                    example = Example(key, shard, (), row_split, "tar", *address, start=start, end=end)
                    yield Row(example, labels, where)
    except StoreUnavailable:
        raise
    except OSError as error:
        context.skip("broken", shard, f"cannot be read: {error.strerror}")


def _indexed(context: ScanContext, shard: str) -> Examples | None:
    """The examples in the index beside a shard; None without an index, or with one of another shard."""
    path, size = shard + INDEX, context.size(shard)
    if context.size(path) is None:
        return None
    try:
        scan, metadata = parse_index(context.content(path), context.at(path), (size or 0) // tarfile.BLOCKSIZE)
    except UserError:
        context.skip("broken", path, "not a readable index; the shard itself was read")
        return None
    table = scan.examples.table()
    ends = pc.add(table.column("offset"), table.column("length")).to_numpy()
    paths = {"tar": "container", shard.rpartition("/")[2]: "path"}
    own = all(pc.all(pc.equal(table.column(name), word)).as_py() is not False for word, name in paths.items())
    if metadata.get("bytes") != size or not own or (len(ends) and ends.max() > size):
        context.skip("broken", path, "not the index of this shard; the shard itself was read")
        return None
    column = pa.repeat(pa.scalar(shard, pa.string()), table.num_rows)
    return Examples(table.set_column(table.schema.get_field_index("path"), "path", column))


def _samples(context: ScanContext, shard: str, file: BinaryIO) -> dict[str, _Sample]:
    """Members of a shard by sample key: as in WebDataset, the name up to the first dot of its last part."""
    samples: dict[str, _Sample] = {}
    for member in _members(context, shard, file):
        where = f"{shard}/{member.name}"
        path = inside(member.name)
        if not is_utf8(member.name):
            context.skip("broken", f"{shard}/{member.name!r}", "its name is not UTF-8")
        elif path is None:
            context.skip("broken", where, OUTSIDE)
        elif not member.isreg() or member.issparse():
            if not member.isdir():
                context.skip("broken", where, "not a plain file (link, device or sparse file)")
        else:
            folder, _, name = path.rpartition("/")
            stem, _, extension = name.partition(".")
            sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
            if extension.lower() in sample:
                context.skip("duplicate", where, "member occurs again; the first is kept")
            else:
                sample[extension.lower()] = (member.offset_data, member.size)
    return samples


def _members(context: ScanContext, shard: str, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Member headers in order, up to the first damage, which becomes a problem."""
    size, count, last = file.seek(0, 2), 0, -1
    file.seek(0)
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header; a shard may have a million
                if member.offset <= last or member.size < 0 or member.offset_data + member.size > size:
                    raise tarfile.ReadError("a member does not lie in the file")
                last, count = member.offset, count + 1
                yield member
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                # tarfile takes a damaged header, other than the first, for the end
                raise tarfile.ReadError("the end mark of a tar file does not follow")
    except (tarfile.TarError, ValueError, OverflowError, EOFError, MemoryError, RecursionError) as error:
        context.skip("broken", shard, f"damaged after {count} members: {error}")


class _Headers:
    """A shard as tarfile reads it, header by header: no read is larger than a header can be."""

    def __init__(self, file: BinaryIO) -> None:
        self.tell, self.seek, self._file = file.tell, file.seek, file

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        return self._file.read(size)


def _media(sample: _Sample, extension: str, allowed: tuple[str, ...]) -> tuple[int, int] | None:
    """(offset, length) of the sample's media: of the wanted extension, or of the best known one without it."""
    if extension:
        return sample.get(extension.lower().removeprefix("."))
    plain = next((sample[known[1:]] for known in allowed if known[1:] in sample), None)
    if plain is not None:
        return plain
    return next((sample[name] for known in allowed for name in sorted(sample) if name.endswith(known)), None)


def _labels(
    context: ScanContext, where: str, file: BinaryIO, sample: _Sample
) -> tuple[tuple[str | int, ...], tuple[str, float, float] | None]:
    """The labels as written, () for none, which becomes the problem `empty label`; and the sample's origin.

    origin: (key, start, end) of the example that `polyvit shard` wrote the sample from; None for other samples.
    """
    name = "cls" if "cls" in sample else "json"
    offset, length = sample.get(name, (0, 0))
    if length > MAX_LABEL_BYTES:
        context.skip("label", where, f".{name} has {length} bytes; a label has at most {MAX_LABEL_BYTES}")
        return (), None
    file.seek(offset)
    try:
        text = file.read(length).decode("utf-8-sig").strip()
        value = json.loads(text) if name == "json" and text else text
    except (ValueError, RecursionError) as error:
        context.skip("label", where, f".{name} cannot be read: {type(error).__name__}")
        return (), None
    origin = None
    if isinstance(value, dict):
        origin = _origin(value.get("polyvit"))
        value = next((value[field] for field in LABEL_FIELDS if field in value), None)
    values: list[Any] = value if isinstance(value, list) else [value]
    if any(type(item) not in (int, str) for item in values):
        return (), origin
    return tuple(item.strip() if isinstance(item, str) else item for item in values if item != ""), origin


def _origin(value: Any) -> tuple[str, float, float] | None:
    if not isinstance(value, dict) or not isinstance(value.get("key"), str):
        return None
    times = [value.get("start", 0.0), value.get("end", -1.0)]
    if not all(isinstance(time, int | float) and math.isfinite(time) for time in times):
        return None
    return value["key"], float(times[0]), float(times[1])


LAYOUT = Layout(scan_webdataset, EXPECTS)
