"""The index: order, duplicates, hash, round trip, carve-out fractions."""

import hashlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polyvit.data.index.io import (
    SCHEMA,
    Example,
    Problem,
    Scan,
    finish_scan,
    index_hash,
    key_fraction,
    read_index,
    write_index,
)
from polyvit.errors import UserError

EXAMPLES = [
    Example("b/ü", "b/ü.jpg", (1,), "train"),
    Example("a", "shard.tar", (0, 2), "validation", "tar", offset=512, length=7),
    Example("c", "x.parquet", (2,), "test", "parquet", offset=1, row=3),
    Example("d", "batch", (0,), "train", "cifar", row=9, start=1.5, end=2.25),
]


def scan() -> Scan:
    return finish_scan(EXAMPLES, ["x", "y", "z"], [Problem("missing", "q.jpg", "not on disk")])


def test_scan_is_sorted_by_key_and_keeps_the_first_of_equal_keys() -> None:
    again = replace(EXAMPLES[0], path="other.jpg")
    result = finish_scan([*EXAMPLES, again], ["x"], [Problem("label", "l:1", "empty label")])
    assert [example.key for example in result.examples] == ["a", "b/ü", "c", "d"]
    assert result.examples[1].path == "b/ü.jpg"
    assert result.problems == [
        Problem("label", "l:1", "empty label"),
        Problem("duplicate", "other.jpg", "key 'b/ü' occurs again; the first is kept"),
    ]
    assert result.counts() == {"train": 2, "validation": 1, "test": 1}
    assert [example.key for example in result.split("train")] == ["b/ü", "d"]


def test_round_trip_gives_back_the_scan(tmp_path: Path) -> None:
    digest = write_index(scan(), tmp_path / "deep" / "t.parquet")
    back = read_index(tmp_path / "deep" / "t.parquet")
    assert back == scan()
    assert index_hash(back) == digest == index_hash(scan())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["t.parquet"]


def test_an_empty_scan_survives(tmp_path: Path) -> None:
    empty = Scan([], ["a"])
    write_index(empty, tmp_path / "t.parquet")
    assert read_index(tmp_path / "t.parquet") == empty
    assert index_hash(empty) != index_hash(Scan([], ["b"]))


def test_hash_depends_on_every_field_the_order_and_the_classes() -> None:
    base = index_hash(scan())
    other: dict[str, Any] = {
        "labels": (5,),
        "container": "tar",
        "split": "test",
        "offset": 8,
        "length": 8,
        "row": 8,
        "end": 8.0,
    }
    other |= {"key": "bb", "path": "bb", "start": 8.0}
    hashes = {base}
    for field in fields(Example):
        changed = [replace(EXAMPLES[0], **{field.name: other[field.name]}), *EXAMPLES[1:]]
        hashes.add(index_hash(Scan(changed, ["x", "y", "z"])))
    hashes.add(index_hash(Scan(list(reversed(scan().examples)), ["x", "y", "z"])))
    hashes.add(index_hash(Scan(scan().examples, ["x", "y"])))
    assert len(hashes) == len(fields(Example)) + 3
    assert index_hash(Scan(scan().examples, ["x", "y", "z"])) == base  # problems do not count


def test_hash_tells_text_and_label_borders_apart() -> None:
    def digest(*pairs: tuple[str, tuple[int, ...]]) -> str:
        return index_hash(Scan([Example(key, "p", labels, "train") for key, labels in pairs], []))

    assert digest(("ab", (1,)), ("c", (1,))) != digest(("a", (1,)), ("bc", (1,)))
    assert digest(("a", (1, 2)), ("b", (3,))) != digest(("a", (1,)), ("b", (2, 3)))


def test_hash_is_the_same_on_every_machine() -> None:
    """A changed value here means that every stored index and checkpoint refuses to match: a format change."""
    assert index_hash(scan()) == "83bbf1a978eb6c979ef7a2d63d3afe9cbebf315da2273ab533e176c99a789a36"


def test_example_fields_are_the_schema() -> None:
    assert [field.name for field in fields(Example)] == SCHEMA.names


def test_key_fraction_is_the_front_of_sha256() -> None:
    assert key_fraction("") == int("e3b0c44298fc1c14", 16) / 2**64
    digest = hashlib.sha256("ü".encode()).hexdigest()
    assert key_fraction("ü") == int(digest[:16], 16) / 2**64
    below = sum(key_fraction(str(number)) < 0.25 for number in range(4000))
    assert 900 < below < 1100  # 1000 expected, standard deviation 27


@pytest.mark.parametrize("kind", ["text", "missing", "other table", "no metadata"])
def test_a_file_that_is_no_index_is_a_user_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "t.parquet"
    if kind == "text":
        path.write_text("hello")
    elif kind == "other table":
        pq.write_table(pa.table({"key": ["a"]}), path)
    elif kind == "no metadata":
        write_index(scan(), path)
        pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)
    with pytest.raises(UserError, match=r"t\.parquet is not .*run `polyvit index` again"):
        read_index(path)
