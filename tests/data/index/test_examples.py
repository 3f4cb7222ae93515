"""Columns of examples: the same as a list of them, cheap to keep, to cut and to send."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kit import task, write

from polyvit.data.index import examples as module
from polyvit.data.index.examples import Example, Examples, ExampleWriter
from polyvit.data.index.io import Scan, finish_scan, index_hash, read_index, write_index
from polyvit.data.layouts.scanner import scan

LISTED = [
    Example("a", "s.tar", (0, 2), "validation", "tar", offset=512, length=7),
    Example("b/ü", "b/ü.jpg", (1,), "train"),
    Example("c", "x.parquet", (2,), "test", "parquet", offset=1, row=3),
    Example("d", "batch", (), "train", "cifar", row=9, start=1.5, end=2.25),
    Example("ee", "", (4, 5), "train"),
]


def test_they_are_the_list_that_they_were_made_of() -> None:
    examples = Examples.of(LISTED)
    assert len(examples) == 5
    assert [examples[n] for n in range(5)] == LISTED == list(examples)
    assert [type(value) for value in vars_of(examples[3])] == [type(value) for value in vars_of(LISTED[3])]
    assert examples[-1] == examples[np.int64(4)] == LISTED[4]
    assert examples == LISTED
    assert list.__eq__(LISTED, examples) is NotImplemented  # so that Python asks the other side
    assert examples != LISTED[:4]
    assert examples != [*LISTED[:4], replace(LISTED[4], row=1)]
    assert Examples.of(examples) is examples
    for wrong in (5, -6):
        with pytest.raises(IndexError):
            examples[wrong]


def vars_of(example: Example) -> list[object]:
    return [getattr(example, name) for name in Example.__slots__]


def test_views_of_views() -> None:
    examples = Examples.of(LISTED)
    train = examples.split("train")
    assert list(train) == [LISTED[1], LISTED[3], LISTED[4]]
    assert train[1] == LISTED[3]
    assert list(train[1:]) == [LISTED[3], LISTED[4]]
    assert list(train[::-1]) == [LISTED[4], LISTED[3], LISTED[1]]
    assert examples.counts() == {"train": 3, "validation": 1, "test": 1}
    assert train.counts() == {"train": 3, "validation": 0, "test": 0}
    assert len(train.split("test")) == 0
    assert train.at(np.array([2, 0, 2])) == [LISTED[4], LISTED[1], LISTED[4]]
    assert [type(v) for v in vars_of(train.at(np.array([1]))[0])] == [type(v) for v in vars_of(LISTED[3])]
    assert Examples.of([]).counts() == {"train": 0, "validation": 0, "test": 0}


def test_labels_are_counted_in_columns() -> None:
    examples = Examples.of(LISTED)
    assert examples.label_counts(3).tolist() == [1, 1, 2, 0, 1, 1]
    assert examples.split("train").label_counts(7).tolist() == [0, 1, 0, 0, 1, 1, 0]
    assert examples.most_labelled() == LISTED[4]
    assert examples.split("test").most_labelled() == LISTED[2]
    assert Examples.of([]).most_labelled() is None


def test_a_view_travels_without_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    many = Examples.of(Example(f"{n:06d}", f"{n:06d}.jpg", (n % 7,), "train") for n in range(20_000))
    few = many[100:164]
    sent = pickle.dumps(few)
    assert len(sent) < 8_000
    assert pickle.loads(sent) == few == [many[n] for n in range(100, 164)]
    monkeypatch.setattr(module, "SMALL", 10)
    back = pickle.loads(pickle.dumps(few))
    assert isinstance(back, Examples)
    assert back == few
    assert len(pickle.dumps(few)) < 20_000


def test_many_chunks_are_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)
    writer = ExampleWriter()
    for example in reversed(LISTED):
        writer.append(example)
    assert len(writer) == 5
    result = finish_scan(writer, list("uvwxyz"), [])
    assert result.examples == LISTED
    assert index_hash(result) == index_hash(Scan(LISTED, list("uvwxyz")))
    write_index(result, tmp_path / "t.parquet")
    assert read_index(tmp_path / "t.parquet") == result


def test_a_rows_list_of_any_length_gives_the_same_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = [f"{n % 9}.wav,{'xyz'[n % 3] if n != 8 else ''},train,{n}" for n in range(40)]
    table = "path,label,split,start\n" + "\n".join([*lines, "gone.wav,x,train,0", "1.wav,unknown,validation,99"])
    write(tmp_path, {"data.csv": table, **{f"{n}.wav": "RIFF" for n in range(9)}})
    config = task("csv", modality="audio", options={"start_column": "start"})
    whole = scan(config, tmp_path)
    monkeypatch.setattr("polyvit.data.layouts.scanning.labels.CHUNK", 3)
    assert scan(config, tmp_path) == whole
    assert [(p.kind, p.where, p.reason) for p in whole.problems] == [
        ("label", "data.csv:10", "empty label"),
        ("missing", "gone.wav", "listed in data.csv:42, not on disk"),
        ("label", "data.csv:43", "unknown label 'unknown'"),
    ]
    assert len(whole.examples) == 39
    assert whole.examples[0] == Example("0.wav#0.0--1.0", "0.wav", (0,), "train")


def test_a_name_that_is_no_text_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, {"train/a/1.jpg": "x", "train/b/2.jpg": "x"})
    (tmp_path / "train/a").joinpath(b"\xff.jpg".decode(errors="surrogateescape")).write_bytes(b"x")
    result = scan(task("imagefolder", options={"validation_fraction": 0.0}), tmp_path)
    assert [example.key for example in result.examples] == ["train/a/1.jpg", "train/b/2.jpg"]
    (problem,) = result.problems
    assert (problem.kind, problem.reason) == ("broken", "its name is not UTF-8")
    write_index(result, tmp_path / "t.parquet")


def test_the_stored_hash_is_of_these_rows_alone(tmp_path: Path) -> None:
    classes = list("uvwxyz")
    write_index(Scan(LISTED, classes), tmp_path / "t.parquet")
    back = read_index(tmp_path / "t.parquet")
    assert index_hash(Scan(back.examples, ["y"])) == index_hash(Scan(LISTED, ["y"]))
    assert index_hash(Scan(back.examples[:2], ["x"])) == index_hash(Scan(LISTED[:2], ["x"]))
    assert index_hash(back) == index_hash(Scan(LISTED, classes))


def test_a_damaged_index_is_noticed(tmp_path: Path) -> None:
    """Its pages carry checksums, since its hash is not computed again."""
    from polyvit.errors import UserError

    path = tmp_path / "t.parquet"
    write_index(Scan([Example(f"{n:04d}", f"{n}", (0,), "train") for n in range(2000)], ["x"]), path)
    content = bytearray(path.read_bytes())
    content[200] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not a readable index"):
        read_index(path)
