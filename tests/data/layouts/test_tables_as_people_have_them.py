"""CSV and Parquet tables as spreadsheets, notebooks and other people's scripts leave them."""

import io
import logging
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit import carved, rows, task, write

from polyvit.data.layouts.scanner import scan
from polyvit.errors import UserError


def test_empty_columns_and_rows_of_a_spreadsheet_are_ignored(tmp_path: Path) -> None:
    table = "path,label,split,,\r\n0.jpg,a,train,,\r\n1.jpg,a,val,,\r\n2.jpg,a,val\r\n3.jpg,a,val,x,\r\n,,,,\r\n"
    write(tmp_path, {"data.csv": table, **dict.fromkeys(["0.jpg", "1.jpg", "2.jpg", "3.jpg"], "x")})
    result = scan(task("csv"), tmp_path)
    assert [example.path for example in result.examples] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [problem.where for problem in result.problems] == ["data.csv:5"]


@pytest.mark.parametrize("linked", [False, True])
def test_an_absolute_path_may_lie_in_the_root(tmp_path: Path, linked: bool) -> None:
    root = write(tmp_path / "data", {"img/0.jpg": "x", "img/1.jpg": "x"})
    (tmp_path / "link").symlink_to(root)
    given = tmp_path / "link" if linked else root
    lines = [f"{given}/img/0.jpg,a,train", f"{root}/img/1.jpg,a,train", f"{root}/../data/img/1.jpg,a,train",
             f"{tmp_path}/img/0.jpg,a,train", f"{root}2/0.jpg,a,train"]  # fmt: skip
    write(root, {"data.csv": "\n".join(["path,label,split", *lines])})
    result = scan(task("csv", options={"folder": "img"}), given)
    assert [example.path for example in result.examples] == ["img/0.jpg", "img/1.jpg"]
    assert [problem.where for problem in result.problems] == ["data.csv:4", "data.csv:5", "data.csv:6"]


def test_validation_is_carved_where_there_is_only_a_train_table(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(60)]
    table = "path,label\n" + "".join(f"{name},a\n" for name in names)
    write(tmp_path, {"train.csv": table, "test.csv": "path,label\nt.jpg,a\n"})
    write(tmp_path, dict.fromkeys([*names, "t.jpg"], "x"))
    result = scan(task("csv"), tmp_path)
    expected = {**{name: carved(name, 0.9) for name in names}, "t.jpg": "test"}
    assert {path: split for path, _, split in rows(result)} == expected
    assert result.counts()["validation"] > 0


@pytest.mark.parametrize("test", [False, True])
@pytest.mark.parametrize("layout", ["parquet", "webdataset"])
def test_validation_is_carved_where_shards_say_train_only(tmp_path: Path, layout: str, test: bool) -> None:
    for split, count in {"train": 60, **({"test": 3} if test else {})}.items():
        if layout == "parquet":
            table = pa.table({"image": [b"x"] * count, "label": ["a"] * count})
            pq.write_table(table, tmp_path / f"{split}-0.parquet")
            continue
        with tarfile.open(tmp_path / f"{split}-0.tar", "w") as shard:
            for name in (f"{number:02d}.{kind}" for number in range(count) for kind in ("jpg", "cls")):
                member = tarfile.TarInfo(name)
                member.size = 1
                shard.addfile(member, io.BytesIO(b"a"))
    result = scan(task(layout), tmp_path)
    training = [example for example in result.examples if example.split != "test"]
    assert len(training) == 60
    assert all(example.split == carved(example.key, 0.9) for example in training)
    assert result.counts()["validation"] > 0
    assert result.counts()["test"] == (3 if test else 0)


def test_several_rows_of_a_path_are_its_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = "path,label,split\n0.jpg,dog,train\n0.jpg,bark,train\n1.jpg,dog,train\n0.jpg,dog,val\n"
    write(tmp_path, {"data.csv": table, "0.jpg": "x", "1.jpg": "x"})
    with caplog.at_level(logging.WARNING):
        several = scan(task("csv", loss="sigmoid", metric="map"), tmp_path)
    assert rows(several) == [("0.jpg", (0, 1), "train"), ("1.jpg", (1,), "train")]
    assert [problem.kind for problem in several.problems] == ["duplicate"]  # in another split
    assert "1 rows name an example again; their labels are joined" in caplog.text
    one = scan(task("csv"), tmp_path)
    assert rows(one) == [("0.jpg", (1,), "train"), ("1.jpg", (1,), "train")]
    assert [problem.kind for problem in one.problems] == ["duplicate", "duplicate"]


@pytest.mark.parametrize("folder", ["train", "val"])
def test_flat_pictures_of_imagenet_get_one_message(tmp_path: Path, folder: str) -> None:
    write(tmp_path, {"train/n01440764/1.JPEG": "x"} if folder == "val" else {})
    write(tmp_path, {f"{folder}/{number}.JPEG": "x" for number in range(12)})
    with pytest.raises(UserError, match=rf"holds 12 pictures .* expects {folder}/<wnid>/\*.JPEG"):
        scan(task("imagenet"), tmp_path)


@pytest.mark.parametrize(
    ("labels", "expected", "reasons"),
    [
        ([0.0, 1.0, 2.0], [0, 1, 2], []),
        ([0.0, 1.0, float("nan")], [0, 1], ["empty label"]),
        ([False, True, None], [0, 1], ["empty label"]),
        ([[0.0, 2.0], [1.0], []], [(0, 2), (1,)], ["empty label"]),
    ],
)
def test_labels_of_parquet_may_be_floats_and_truth_values(
    tmp_path: Path, labels: list, expected: list, reasons: list[str]
) -> None:
    pq.write_table(pa.table({"image": [b"x"] * 3, "label": labels}), tmp_path / "train.parquet")
    result = scan(task("parquet", num_classes=3), tmp_path)
    sets = [label if isinstance(label, tuple) else (label,) for label in expected]
    assert [example.labels for example in result.examples] == sets
    assert [problem.reason for problem in result.problems] == reasons


def test_a_label_of_parquet_that_is_no_whole_number_is_named(tmp_path: Path) -> None:
    labels = [0.0, 1.0, *[0.5] * 8]
    pq.write_table(pa.table({"image": [b"x"] * 10, "label": labels}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"some labels are numbers and some are not, such as '0\.5'"):
        scan(task("parquet"), tmp_path)
