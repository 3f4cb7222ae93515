"""Shards: the same bytes for the same input, the same plan as the originals, nothing dropped in silence."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from kit import task, write
from PIL import Image
from s3_kit import s3_server

from polyvit.data.decode.image import decode_image
from polyvit.data.index.io import Scan
from polyvit.data.layouts.scanner import scan
from polyvit.data.loading.reader import load
from polyvit.data.shards.writer import (
    ShardOptions,
    ShardReport,
    extension_of,
    shard_specs,
    write_shard,
    write_text,
)
from polyvit.errors import BadMedia
from polyvit.storage.location import Location, under
from polyvit.synthetic.write import write_synthetic

PLAIN = ShardOptions()


def picture(height: int, width: int, kind: str = "JPEG") -> bytes:
    ramp_HWC = np.indices((height, width)).sum(0).astype(np.uint8)[..., None].repeat(3, -1)
    buffer = io.BytesIO()
    Image.fromarray(ramp_HWC).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {f"train/{'ab'[n % 2]}/{n:02d}.JPEG": picture(40 + n, 60) for n in range(17)}
    files |= {f"val/{'ab'[n % 2]}/v{n}.png": picture(20, 30, "PNG") for n in range(5)}
    files["train/a/broken.jpg"] = b"\xff\xd8\xff no picture"
    return write(tmp_path / "data", files)


def found_in(root: Location) -> Scan:
    return scan(task("imagefolder", options={"validation_fraction": 0.0}), root)


def write_all(
    root: Location, out: Location, options: ShardOptions = PLAIN, found: Scan | None = None, per_shard: int = 7
) -> list[ShardReport]:
    if isinstance(out, Path):
        out.mkdir(exist_ok=True)
    found = found or found_in(root)
    write_text("classes.txt", "".join(f"{name}\n" for name in found.classes), out)
    specs = shard_specs(found, "image", options, per_shard)
    return [write_shard(spec, "image", found.classes, root, out, options) for spec in specs]


def plan_of(found: Scan) -> Sequence[tuple[str, tuple[int, ...], str, float]]:
    return [(example.key, example.labels, example.split, example.start) for example in found.examples]


@pytest.mark.parametrize("indexed", [True, False])
def test_training_on_shards_follows_the_plan_of_the_originals(root: Path, tmp_path: Path, indexed: bool) -> None:
    """With the index beside each shard, and from the tar files alone."""
    reports = write_all(root, tmp_path / "out")
    assert [(r.name, r.samples, r.written) for r in reports] == [
        ("train-000000", 7, True), ("train-000001", 7, True), ("train-000002", 4, True),
        ("validation-000000", 5, True),
    ]  # fmt: skip
    if not indexed:
        for path in (tmp_path / "out").glob("*.index"):
            path.unlink()
    here, there = found_in(root), scan(task("webdataset"), tmp_path / "out")
    assert plan_of(there) == plan_of(here)
    assert (there.classes, there.problems) == (["a", "b"], [])
    assert {example.container for example in there.examples} == {"tar"}
    for mine, yours in zip(here.examples, there.examples, strict=True):
        assert load(mine, root) == load(yours, tmp_path / "out")


def test_a_shard_is_a_plain_tar_file_of_samples(root: Path, tmp_path: Path) -> None:
    write_all(root, tmp_path / "out")
    with tarfile.open(tmp_path / "out/validation-000000.tar", "r:") as tar:
        members = tar.getmembers()
        assert [member.name for member in members[:4]] == [
            "000000000.json", "000000000.png", "000000001.json", "000000001.png",
        ]  # fmt: skip
        assert {(member.mtime, member.uid, member.uname) for member in members} == {(0, 0, "")}
        described = tar.extractfile(members[2])
        assert described is not None
        assert described.read() == (
            b'{"label": [0], "polyvit": {"key": "val/a/v2.png", "start": 0.0, "end": -1.0}}'
        )
    with tarfile.open(tmp_path / "out/train-000000.tar", "r:") as tar:
        order = [member.name for member in tar.getmembers()]
        assert order[-1].startswith("000000006.")
    first = shard_specs(found_in(root), "image", PLAIN, 7)[0].examples
    assert [example.key for example in first] != sorted(example.key for example in first)  # classes are mixed


def test_the_same_input_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_all(root, tmp_path / name, ShardOptions(size=24))
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert len(names) == 9
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_is_whole_is_not_written_again(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = write_all(root, out)
    (out / "train-000000.tar.index").unlink()  # as a writer leaves it that was killed before its last act
    with (out / "train-000001.tar").open("ab") as file:
        file.write(b"more")
    again = write_all(root, out)
    assert [report.written for report in again] == [True, True, False, False]
    assert [report.bad for report in again] == [report.bad for report in first]
    assert plan_of(scan(task("webdataset"), out)) == plan_of(found_in(root))
    assert all(report.written for report in write_all(root, out, ShardOptions(size=24)))
    write(root, {"val/b/new.png": picture(20, 30, "PNG")})
    assert all(report.written for report in write_all(root, out, ShardOptions(size=24)))


def test_pictures_are_made_smaller_and_small_ones_left_alone(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_all(root, out, ShardOptions(size=24))
    here = {example.key: example for example in found_in(root).examples}
    for example in scan(task("webdataset"), out).examples:
        original = load(here[example.key], root)
        stored = load(example, out)
        if example.split == "validation" or example.key == "train/a/broken.jpg":
            assert stored == original
            continue
        assert isinstance(original, bytes)
        assert isinstance(stored, bytes)
        full_HWC, small_HWC = decode_image(original), decode_image(stored)
        assert small_HWC.shape == (24, round(60 * 24 / full_HWC.shape[0]), 3)
        assert abs(float(small_HWC.mean()) - float(full_HWC.mean())) < 2


def test_broken_files_are_named_and_those_without_bytes_left_out(root: Path, tmp_path: Path) -> None:
    result = found_in(root)
    (root / "train/b/01.JPEG").unlink()  # after the scan
    reports = write_all(root, tmp_path / "out", ShardOptions(size=24), result)
    bad = sorted((entry["key"], entry["path"], entry["kept"]) for report in reports for entry in report.bad)
    assert bad == [
        ("train/a/broken.jpg", "train/a/broken.jpg", True), ("train/b/01.JPEG", "train/b/01.JPEG", False),
    ]  # fmt: skip
    reasons = {entry["key"]: entry["reason"] for report in reports for entry in report.bad}
    assert reasons["train/b/01.JPEG"] == "file is missing"
    keys = [example.key for example in scan(task("webdataset"), tmp_path / "out").examples]
    assert keys == [example.key for example in result.examples if example.key != "train/b/01.JPEG"]


def test_an_index_of_another_shard_is_passed_over(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_all(root, out)
    (out / "train-000001.tar.index").write_bytes((out / "train-000002.tar.index").read_bytes())
    (out / "train-000000.tar.index").write_bytes(b"no index")
    result = scan(task("webdataset"), out)
    assert plan_of(result) == plan_of(found_in(root))
    assert [(problem.kind, problem.where) for problem in result.problems] == [
        ("broken", "train-000000.tar.index"), ("broken", "train-000001.tar.index"),
    ]  # fmt: skip
    for example in result.examples:
        assert load(example, out)


def test_rows_of_cifar_and_cut_recordings(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "kit", tasks=["cifar10"], classes=2, train=8, evaluation=2, side=32)
    result = scan(task("cifar10"), tmp_path / "kit/cifar10")
    write_all(tmp_path / "kit/cifar10", tmp_path / "out", found=result)
    there = scan(task("webdataset"), tmp_path / "out")
    assert plan_of(there) == plan_of(result)
    for mine, yours in zip(result.examples, there.examples, strict=True):
        content = load(yours, tmp_path / "out")
        assert isinstance(content, bytes)
        np.testing.assert_array_equal(decode_image(content), load(mine, tmp_path / "kit/cifar10"))
    root = write(
        tmp_path / "cut", {"data.csv": "path,label,start,end\na.wav,x,0,1\na.wav,x,1,2.5\n", "a.wav": "RIFF"}
    )
    config = task("csv", 1, "audio", options={"start_column": "start", "end_column": "end", "test_fraction": 0.0,
                                              "validation_fraction": 0.0})  # fmt: skip
    result = scan(config, root)
    specs = shard_specs(result, "audio", PLAIN, None)
    (tmp_path / "sounds").mkdir()
    for spec in specs:
        write_shard(spec, "audio", result.classes, root, tmp_path / "sounds", PLAIN)
    for index in (tmp_path / "sounds").glob("*.index"):
        index.unlink()
    there = scan(task("webdataset", 1, "audio"), tmp_path / "sounds")
    assert [(e.key, e.start, e.end) for e in there.examples] == [(e.key, e.start, e.end) for e in result.examples]


def test_shards_in_a_bucket_are_those_of_a_folder(root: Path, tmp_path: Path) -> None:
    write_all(root, tmp_path / "out")
    with s3_server() as url:
        place = under(url, "deep/shards")
        assert all(report.written for report in write_all(root, place))
        assert not any(report.written for report in write_all(root, place))
        here, there = scan(task("webdataset"), tmp_path / "out"), scan(task("webdataset"), place)
        assert here == there
        for example in there.examples:
            assert load(example, place) == load(example, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "modality", "extension"),
    [
        (picture(2, 2), "image", "jpg"), (picture(2, 2, "WEBP"), "image", "webp"),
        (b"RIFF....WAVE", "audio", "wav"),
        (b"\0\0\0\x20ftypisom", "video", "mp4"), (b"??", "audio", "wav"), (b"", "video", "mp4"),
    ],
)  # fmt: skip
def test_extensions_are_of_the_content(content: bytes, modality: str, extension: str) -> None:
    assert extension_of(content, modality) == extension  # type: ignore[arg-type]


def test_a_sample_whose_offset_is_wrong_is_bad_media_and_no_other_sample(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_all(root, out)
    example = scan(task("webdataset"), out).examples[0]
    (out / example.path).write_bytes((out / example.path).read_bytes()[: example.offset + 3])
    with pytest.raises(BadMedia, match="shard is shorter than its index says"):
        load(example, out)
