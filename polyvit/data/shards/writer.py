"""Write a task's examples as WebDataset tar shards with their index: few large files in place of many small ones.

In: a `Scan` and where its data lie. Out, below a folder or URL: `train-000000.tar` and so on, each with its index
`train-000000.tar.index` beside it, written last: a shard that has its index is complete. Layout `webdataset` reads
them.

What is in a shard depends on the index and the options alone: the train split in a fixed random order, for
readers that go from the first shard to the last; the other splits in key order, as an evaluation reads them. A
sample is `000000012.jpg` (the original bytes, or what `transcode.py` makes of them) and `000000012.json`
with its labels and the key, start and end of the example that it was. So training on the shards follows the same
plan as on the originals.
"""

import hashlib
import io
import json
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from polyvit.config import Modality
from polyvit.data.index import SPLITS, Example, Scan, finish_scan, index_hash, parse_index, write_index
from polyvit.data.layouts import INDEX
from polyvit.data.loading import Media, load_many
from polyvit.data.shards.transcode import smaller_audio, smaller_image, smaller_video
from polyvit.errors import BadMedia, UserError
from polyvit.storage import Location, Root, StoreUnavailable, is_url, open_root

FORMAT = 1
PER_SHARD: dict[Modality, int] = {"image": 2000, "video": 200, "audio": 1000, "audiovisual": 100}
"""Examples of a shard unless the user says otherwise: some hundred megabytes."""


@dataclass(frozen=True)
class ShardOptions:
    """How to write.

    size: short side in pixels of pictures that are larger, re-encoded as JPEG 4:2:0 of `quality`, and of clips,
        re-encoded as H.264 with a key frame every 32 frames, with their sound where the task reads it; None:
        all bytes as they are.
    sample_rate: Hz of recordings, re-encoded as mono FLAC; None: all bytes as they are.
    """

    size: int | None = None
    quality: int = 90
    sample_rate: int | None = None


@dataclass(frozen=True)
class ShardSpec:
    """One shard to write.

    first: number of its first sample in the split. fingerprint: hash of all that decides what is in it.
    """

    name: str
    examples: Sequence[Example]
    first: int
    fingerprint: str


@dataclass(frozen=True)
class ShardReport:
    """The result of writing a shard.

    written: False where it was there already, complete. bad: {key, path, reason, kept} of each example that cannot
        be used; kept: its bytes are in the shard nonetheless.
    """

    name: str
    samples: int
    bytes: int
    written: bool
    bad: list[dict[str, Any]] = field(default_factory=list)


def shard_specs(scan: Scan, modality: Modality, options: ShardOptions, per_shard: int | None) -> list[ShardSpec]:
    """Every shard of a task, in order."""
    step = per_shard or PER_SHARD.get(modality, 1000)
    digest, specs = index_hash(scan), []
    for split in SPLITS:
        examples = scan.split(split)
        order = np.arange(len(examples))
        if split == "train":
            order = np.random.Generator(np.random.Philox(0)).permutation(order)
        for number, first in enumerate(range(0, len(examples), step)):
            inputs = [FORMAT, digest, split, first, step, asdict(options)]
            specs.append(
                ShardSpec(
                    f"{split}-{number:06d}",
                    [examples[row] for row in order[first : first + step]],
                    first,
                    hashlib.sha256(json.dumps(inputs).encode()).hexdigest(),
                )
            )
    return specs


def write_shard(
    spec: ShardSpec, modality: Modality, classes: Sequence[str], source: Location, out: Location,
    options: ShardOptions,
) -> ShardReport:  # fmt: skip
    """Write one shard and its index, unless both are there, whole and made of the same.

    spec: what belongs in the shard. modality: of its media. classes: names in label order. source: where the
    examples lie. out: the folder or URL to write to. options: how media are re-encoded. Raises OSError, UserError.
    """
    root, name = open_root(out), spec.name + ".tar"
    if (report := _whole(spec, root)) is not None:
        return report
    with tempfile.TemporaryDirectory(prefix=".polyvit-shard-", dir=None if is_url(out) else out) as scratch:
        tar, index = Path(scratch) / name, Path(scratch) / (name + INDEX)
        with tar.open("wb") as file:
            samples = list(_add_samples(spec, modality, source, file, options))
        examples = [example for example, _ in samples if example is not None]
        report = ShardReport(
            spec.name, len(examples), tar.stat().st_size, True, [bad for _, bad in samples if bad]
        )
        metadata = {"made_of": spec.fingerprint, "bytes": report.bytes, "bad": report.bad}
        write_index(finish_scan(examples, classes, []), index, metadata)
        root.delete(name + INDEX)  # that of an older shard of the same name has other offsets
        for path in (tar, index):
            root.write(path.name, path)
    return report


def write_text(name: str, text: str, out: Location) -> None:
    """A small file below `out`, such as `classes.txt`: the class names in label order. Raises OSError."""
    with tempfile.TemporaryDirectory(prefix=".polyvit-shard-", dir=None if is_url(out) else out) as scratch:
        (Path(scratch) / name).write_text(text)
        open_root(out).write(name, Path(scratch) / name)


def _whole(spec: ShardSpec, root: Root) -> ShardReport | None:
    """The report of a shard that is complete already; None where it must be written."""
    name = spec.name + ".tar"
    try:
        scan, metadata = parse_index(root.read(name + INDEX), name + INDEX, sys.maxsize)
        with root.open(name) as file:
            size = file.seek(0, io.SEEK_END)
    except StoreUnavailable:
        raise
    except (OSError, UserError):
        return None
    if metadata.get("made_of") != spec.fingerprint or metadata.get("bytes") != size:
        return None
    return ShardReport(spec.name, len(scan.examples), size, False, metadata["bad"])


def _add_samples(
    spec: ShardSpec, modality: Modality, source: Location, file: BinaryIO, options: ShardOptions
) -> Iterator[tuple[Example | None, dict[str, Any] | None]]:
    """Write each example; yields its row in the shard's index (None without bytes) and what is wrong with it."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (example, media) in enumerate(
            zip(spec.examples, load_many(spec.examples, source), strict=True), spec.first
        ):
            if isinstance(media, BadMedia):
                yield None, _bad(example, media, kept=False)
                continue
            content, error = _stored(media, modality, options)
            origin = {"key": example.key, "start": example.start, "end": example.end}
            document = {"label": list(example.labels), "polyvit": origin}
            _add(tar, f"{number:09d}.json", json.dumps(document).encode())
            offset = _add(tar, f"{number:09d}.{extension_of(content, modality)}", content)
            row = Example(
                example.key, spec.name + ".tar", example.labels, example.split, "tar", offset, len(content),
                start=example.start, end=example.end,
            )  # fmt: skip
            yield row, _bad(example, error, kept=True) if error else None


def _bad(example: Example, error: BadMedia, kept: bool) -> dict[str, Any]:
    return {"key": example.key, "path": example.path, "reason": error.reason, "kept": kept}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Add a member without owner or time; returns where its bytes begin."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(content))
    return offset


def _stored(media: Media, modality: Modality, options: ShardOptions) -> tuple[bytes, BadMedia | None]:
    """The bytes to write, and the error of a file that cannot be decoded; its bytes are kept for the same plan."""
    if isinstance(media, np.ndarray):
        return cv2.imencode(".png", media[..., ::-1])[1].tobytes(), None
    try:
        return _transcoded(media, modality, options) or media, None
    except BadMedia as error:
        return media, error


def _transcoded(data: bytes, modality: Modality, options: ShardOptions) -> bytes | None:
    if modality == "audio":
        return smaller_audio(data, options.sample_rate) if options.sample_rate else None
    if options.size is None:
        return None
    if modality in ("video", "audiovisual"):
        return smaller_video(data, options.size, sound=modality == "audiovisual")
    return smaller_image(data, options.size, options.quality)


_MAGIC: tuple[tuple[bytes, int, str], ...] = (
    (b"\xff\xd8\xff", 0, "jpg"), (b"\x89PNG", 0, "png"), (b"GIF8", 0, "gif"), (b"WEBP", 8, "webp"),
    (b"BM", 0, "bmp"), (b"II*\0", 0, "tif"), (b"MM\0*", 0, "tif"), (b"WAVE", 8, "wav"), (b"fLaC", 0, "flac"),
    (b"OggS", 0, "ogg"), (b"ID3", 0, "mp3"), (b"AVI ", 8, "avi"), (b"\x1a\x45\xdf\xa3", 0, "mkv"),
    (b"ftypM4A", 4, "m4a"), (b"ftyp", 4, "mp4"),
)  # fmt: skip
_USUAL: dict[Modality, str] = {"image": "jpg", "video": "mp4", "audio": "wav", "audiovisual": "mp4"}


def extension_of(content: bytes, modality: Modality) -> str:
    """A file's extension by its first bytes, the modality's usual one if they are unknown; readers need some."""
    for magic, offset, extension in _MAGIC:
        if content[offset : offset + len(magic)] == magic:
            return extension
    return _USUAL.get(modality, "bin")
