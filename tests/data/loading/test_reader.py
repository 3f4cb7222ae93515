"""`load`: the bytes of an example from each container, and a stable reason where there are none."""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polyvit.data.index.io import Example
from polyvit.data.loading import reader
from polyvit.data.loading.reader import load
from polyvit.errors import BadMedia


@pytest.fixture(autouse=True)
def _fresh_caches() -> Iterator[None]:
    """A cache outlives a test; tests write other content under equal names."""
    yield
    for cached in (reader._cifar_batch_NHWC, reader._parquet_groups, reader._row_group):
        cached.cache_clear()


def example(path: str, **keys: object) -> Example:
    return replace(Example(path, path, (0,), "train"), **keys)  # type: ignore[arg-type]


def reason(given: Example, root: Path) -> str:
    with pytest.raises(BadMedia) as caught:
        load(given, root)
    assert str(root) not in caught.value.reason
    return caught.value.reason


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.jpg").write_bytes(b"\xff\xd8abc")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "linked").symlink_to(tmp_path / "d")
    assert load(example("d/a.jpg"), tmp_path) == b"\xff\xd8abc"
    assert load(example("linked/a.jpg"), tmp_path) == b"\xff\xd8abc"
    assert reason(example("empty.jpg"), tmp_path) == "empty file"
    assert reason(example("gone.jpg"), tmp_path) == "file is missing"
    assert reason(example("d/a.jpg/b"), tmp_path) == "file is missing"
    assert reason(example("d"), tmp_path) == "file cannot be read: Is a directory"


@pytest.mark.parametrize("path", ["/etc/hosts", "../x.jpg", "a/../../x.jpg", "", ".", "a\0b"])
@pytest.mark.parametrize("container", ["file", "tar", "parquet", "cifar"])
def test_a_path_that_leaves_the_root(tmp_path: Path, path: str, container: str) -> None:
    (tmp_path / "x.jpg").write_bytes(b"secret")
    (tmp_path / "root" / "a").mkdir(parents=True)
    with pytest.raises(BadMedia, match=r"^path leaves the root$"):
        load(example(path, container=container), tmp_path / "root")


def test_a_range_of_a_shard(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(bytes(range(100)))
    assert load(example("s.tar", container="tar", offset=10, length=3), tmp_path) == b"\x0a\x0b\x0c"
    assert reason(example("s.tar", container="tar", offset=98, length=3), tmp_path) == (
        "shard is shorter than its index says"
    )
    assert reason(example("s.tar", container="tar", offset=0, length=0), tmp_path) == "empty file"
    assert reason(example("t.tar", container="tar", offset=0, length=1), tmp_path) == "file is missing"


@pytest.mark.parametrize("struct", [True, False])
def test_a_parquet_row_across_row_groups(tmp_path: Path, struct: bool) -> None:
    media = [b"r0", b"r1", None, b"r3", b""]
    column = [{"bytes": item, "path": "p"} for item in media] if struct else media
    pq.write_table(pa.table({"label": range(5), "image": column}), tmp_path / "t.parquet", row_group_size=2)

    def row(number: int) -> Example:
        return example("t.parquet", container="parquet", offset=1, row=number)

    assert [load(row(number), tmp_path) for number in (3, 0, 1)] == [b"r3", b"r0", b"r1"]
    assert reason(row(2), tmp_path) == "row holds no bytes"
    assert reason(row(4), tmp_path) == "empty file"
    assert reason(row(5), tmp_path) == "table has fewer rows than its index says"
    assert reason(replace(row(0), offset=0), tmp_path) == "row holds no bytes"
    assert reason(replace(row(0), offset=7), tmp_path) == "Parquet file is damaged"
    assert reason(replace(row(0), path="u.parquet"), tmp_path) == "file is missing"
    (tmp_path / "v.parquet").write_bytes(b"PAR1 and no more")
    assert reason(replace(row(0), path="v.parquet"), tmp_path) == "Parquet file is damaged"


def test_the_row_group_cache_is_used_and_bounded(tmp_path: Path) -> None:
    rows = 4 * reader.ROW_GROUPS
    pq.write_table(pa.table({"image": [b"%d" % n for n in range(rows)]}), tmp_path / "t.parquet", row_group_size=2)
    for number in range(rows):
        content = load(example("t.parquet", container="parquet", row=number), tmp_path)
        assert content == b"%d" % number
    info = reader._row_group.cache_info()
    assert (info.misses, info.hits, info.currsize) == (rows // 2, rows // 2, reader.ROW_GROUPS)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_cifar_row_is_channels_last(tmp_path: Path, protocol: int) -> None:
    """Bytes of a row: 1024 red, 1024 green, 1024 blue, each row by row."""
    data = np.zeros((2, 3072), np.uint8)
    data[1, 0], data[1, 1], data[1, 32], data[1, 1024 + 2], data[1, 2048 + 64] = 1, 2, 3, 4, 5
    (tmp_path / "batch").write_bytes(pickle.dumps({"data": data}, protocol=protocol))
    image_HWC = load(example("batch", container="cifar", row=1), tmp_path)
    assert isinstance(image_HWC, np.ndarray)
    expected = np.zeros((32, 32, 3), np.uint8)
    expected[0, 0, 0], expected[0, 1, 0], expected[1, 0, 0], expected[0, 2, 1], expected[2, 0, 2] = 1, 2, 3, 4, 5
    np.testing.assert_array_equal(image_HWC, expected)
    assert image_HWC.dtype == np.uint8
    assert image_HWC.flags["C_CONTIGUOUS"]
    image_HWC[:] = 9  # a copy: a decoder that writes to it must not spoil the cached batch
    np.testing.assert_array_equal(load(example("batch", container="cifar", row=1), tmp_path), expected)
    assert (
        reason(example("batch", container="cifar", row=2), tmp_path) == "batch has fewer rows than its index says"
    )


def test_a_damaged_or_hostile_cifar_batch(tmp_path: Path) -> None:
    good = pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}, protocol=2)
    (tmp_path / "cut").write_bytes(good[:-500])
    (tmp_path / "code").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    (tmp_path / "none").write_bytes(pickle.dumps({"labels": [1]}))
    for name in ("cut", "code", "none"):
        assert reason(example(name, container="cifar", row=0), tmp_path) == "CIFAR batch is damaged"
    assert not (tmp_path / "ran").exists()
    assert reason(example("gone", container="cifar", row=0), tmp_path) == "file is missing"


def test_a_pointer_of_git_lfs_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert "git lfs pull" in reason(example("a.jpg"), tmp_path)
