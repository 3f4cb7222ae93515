"""The bring-your-own layouts: imagefolder, csv, webdataset, parquet; good and hostile files of the tests."""

import io
import json
import os
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit import carved, rows, task, write

from polyvit.data.index.io import Problem
from polyvit.data.layouts.scanner import scan
from polyvit.errors import UserError


def test_class_folders_name_empty_dangling_and_foreign_files(tmp_path: Path) -> None:
    write(tmp_path, {"train/a/1.jpg": "x", "train/a/deep/2.PNG": "x", "train/a/0.jpg": "", "train/a/x.xml": "x"})
    write(tmp_path, {"train/a/.hidden": "x", "train/loose.jpg": "x", "notes/n.txt": "x"})
    (tmp_path / "train/a/link.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "train/a/loop").symlink_to(tmp_path / "train")
    (tmp_path / "train/b").mkdir()
    result = scan(task("imagefolder", options={"validation_fraction": 0.0}), tmp_path)
    assert rows(result) == [("train/a/1.jpg", (0,), "train"), ("train/a/deep/2.PNG", (0,), "train")]
    assert result.classes == ["a"]
    assert set(result.problems) == {
        Problem("broken", "train/a/0.jpg", "empty file"),
        Problem("broken", "train/a/x.xml", "not a file of modality image by its extension"),
        Problem("missing", "train/a/link.jpg", "a link to a file that is not there"),
        Problem("missing", "train/b", "class folder without image files"),
        Problem("label", "train/loose.jpg", "file outside a class folder"),
        Problem("label", "notes", "folder beside the split folders; its files belong to no split"),
    }


PAIR = [f"{{}}{name}/{n}.jpg" for name in ("circle", "square") for n in range(12)]


def _pairs(*prefixes: str) -> dict[str, str]:
    return {path.format(prefix): "x" for prefix in prefixes for path in PAIR}


@pytest.mark.parametrize(
    ("train", "held_out", "split"),
    [
        ("training_set/", "test_set/", "test"),
        ("seg_train/seg_train/", "seg_test/seg_test/", "test"),
        ("shapes/train/", "shapes/val/", "validation"),
        ("a/b/Train/", "a/b/Valid/", "validation"),
        ("images/training/", "images/eval/", "validation"),
        ("train/train/", "test/test/", "test"),
    ],
)
def test_splits_are_found_under_the_names_that_people_give_them(
    tmp_path: Path, train: str, held_out: str, split: str
) -> None:
    write(tmp_path, {**_pairs(train, held_out), "labels/1.txt": "0 1 1", "README.md": "x"} | (
        {"seg_pred/seg_pred/1.jpg": "x"} if "seg" in train else {}
    ))  # fmt: skip
    result = scan(task("imagefolder", num_classes=2), tmp_path)
    assert result.classes == ["circle", "square"]
    assert {example.split for example in result.examples if example.path.startswith(held_out)} == {split}
    assert sum(example.path.startswith(held_out) for example in result.examples) == 24
    assert result.counts()["train"] > 15


def test_classes_may_be_called_as_splits_are_and_hold_folders(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(["airplane/1.jpg", "train/1.jpg", "test tube/1.jpg"], "x"))
    assert scan(task("imagefolder"), tmp_path).classes == ["airplane", "test tube", "train"]
    write(tmp_path / "n", dict.fromkeys(["a/2020/1.jpg", "a/2021/1.jpg", "b/2020/1.jpg", "b/2021/1.jpg"], "x"))
    assert scan(task("imagefolder"), tmp_path / "n").classes == ["a", "b"]
    write(tmp_path / "one", {"data/circle/1.jpg": "x", "data/square/1.jpg": "x"})
    assert scan(task("imagefolder"), tmp_path / "one").classes == ["circle", "square"]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["images/1.jpg", "images/2.jpg", "labels/1.txt"], "images, which say what the files are"),
        (["images/1.jpg", "masks/1.png"], "images, masks, which say what the files are"),
        (
            [*_pairs("training_set/"), "other/1.jpg"],
            "other, training_set, of which training_set",
        ),
        ([*_pairs("fold1/", "fold2/")], r"fold1, fold2, each with the same folders in it \(circle, square\)"),
    ],
)
def test_folders_that_are_no_classes_are_refused_with_what_was_seen(
    tmp_path: Path, files: list[str], says: str
) -> None:
    write(tmp_path, dict.fromkeys(files, "x"))
    with pytest.raises(UserError, match=says):
        scan(task("imagefolder", num_classes=2), tmp_path)
    tops = sorted({path.partition("/")[0] for path in files})
    write(tmp_path, {"names.txt": "\n".join(tops)})
    assert scan(task("imagefolder", classes="names.txt"), tmp_path).classes == tops


@pytest.mark.parametrize("layout", ["imagefolder", "imagenet", "resisc45"])
def test_what_systems_leave_and_empty_folders_are_no_classes(tmp_path: Path, layout: str) -> None:
    top = {"imagefolder": "", "imagenet": "train/", "resisc45": "NWPU-RESISC45/"}[layout]
    good = [f"{top}{name}/{name}_{n}.jpg" for name in ("cat", "dog") for n in range(40)]
    write(tmp_path, dict.fromkeys(good, "x"))
    junk = ["__MACOSX/cat/._1.jpg", "__MACOSX/x.jpg", "lost+found/1.jpg", "@eaDir/cat/1.jpg", "cat/Thumbs.db"]
    junk += ["cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "$RECYCLE.BIN/1.jpg", ".ipynb_checkpoints/1.jpg"]
    write(tmp_path, {top + path: "x" for path in junk})
    (tmp_path / top / "ant").mkdir()
    result = scan(task(layout, num_classes=2), tmp_path)
    assert result.classes == ["cat", "dog"]
    assert [example.path for example in result.examples] == sorted(good)
    assert not [problem for problem in result.problems if "ant" not in problem.where and problem.where != "val"]


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("layout", ["imagefolder", "imagenet", "resisc45"])
def test_a_class_folder_that_is_a_dead_link_is_refused(tmp_path: Path, layout: str, text: bool) -> None:
    top = {"imagefolder": "train/", "imagenet": "train/", "resisc45": "NWPU-RESISC45/"}[layout]
    write(tmp_path, {f"{top}ant/1.jpg": "x", f"{top}bee/1.jpg": "x"})
    dead = tmp_path / top / "ape"
    if text:
        dead.write_text("../../mnt/ape")  # as Git writes a link where links are off
    else:
        dead.symlink_to("/mnt/gone/ape")
    with pytest.raises(UserError, match="ape is a link to something that is not there"):
        scan(task(layout), tmp_path)
    dead.unlink()
    write(tmp_path, {top + "NOTES": "see\n/mnt"})
    assert scan(task(layout), tmp_path).classes == ["ant", "bee"]


@pytest.mark.parametrize(("modality", "extension"), [("image", "webp"), ("video", "avi"), ("audio", "flac")])
def test_imagefolder_carves_by_key_hash_for_any_modality(tmp_path: Path, modality: str, extension: str) -> None:
    names = [f"{label}/{number}.{extension}" for label in "ab" for number in range(50)]
    write(tmp_path, dict.fromkeys(names, "x"))
    options = {"validation_fraction": 0.2, "test_fraction": 0.3}
    result = scan(task("imagefolder", modality=modality, options=options), tmp_path)
    expected = [(name, ("ab".index(name[0]),), carved(name, 0.5, 0.7)) for name in names]
    assert rows(result) == sorted(expected)
    assert all(result.counts().values())


def test_imagefolder_carves_validation_only_where_it_has_no_folder(tmp_path: Path) -> None:
    names = [f"train/a/{number}.jpg" for number in range(60)]
    write(tmp_path, dict.fromkeys([*names, "test/a/t.jpg"], "x"))
    result = scan(task("imagefolder"), tmp_path)
    assert {path: split for path, _, split in rows(result)} == {
        **{name: carved(name, 0.9) for name in names},
        "test/a/t.jpg": "test",
    }
    write(tmp_path, {"valid/a/v.jpg": "x"})
    assert scan(task("imagefolder"), tmp_path).counts() == {"train": 60, "validation": 1, "test": 1}


def test_imagefolder_without_train_needs_classes(tmp_path: Path) -> None:
    write(tmp_path, {"val/b/1.jpg": "x"})
    with pytest.raises(UserError, match="no folder 'train'"):
        scan(task("imagefolder"), tmp_path)
    write(tmp_path, {"names.txt": "a\nb"})
    assert rows(scan(task("imagefolder", classes="names.txt"), tmp_path)) == [("val/b/1.jpg", (1,), "validation")]


def test_the_order_of_a_folder_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {f"train/{c}/{n}.jpg": "x" if n % 7 else "" for c in "ba" for n in range(20)})
    write(tmp_path, {"train/2.jpg": "x", "train/1.jpg": "x", "y/1.jpg": "x", "x/1.jpg": "x"})
    first = scan(task("imagefolder"), tmp_path)
    real = os.scandir

    class Backwards:
        def __init__(self, path: Any) -> None:
            with real(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry]:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr("os.scandir", Backwards)
    assert scan(task("imagefolder"), tmp_path) == first
    assert len(first.problems) == 10


def test_csv_with_every_option(tmp_path: Path) -> None:
    table = "file;tags;part;from;to\nx.wav;b|a;train;0;1.5\nx.wav;a;Valid;2;\ny.wav;c;test;0;9\ny.wav;a;oops;0;9\n"
    table += (
        "x.wav;a;train;5;4\n;a;train;0;1\n/x.wav;a;train;0;1\nx.wav;;train;0;2\nn.wav;a;train;0;1\nx.wav;a;train\n"
    )
    write(tmp_path, {"list.csv": table, "clips/x.wav": "x", "clips/y.wav": "x"})
    options = {
        "file": "list.csv",
        "folder": "clips/",
        "path_column": "file",
        "label_column": "tags",
        "delimiter": ";",
    }
    options |= {"label_separator": "|", "split_column": "part", "start_column": "from", "end_column": "to"}
    result = scan(task("csv", modality="audio", options=options), tmp_path)
    assert result.classes == ["a", "b"]
    assert [(e.key, e.path, e.labels, e.split, e.start, e.end) for e in result.examples] == [
        ("clips/x.wav#0.0-1.5", "clips/x.wav", (0, 1), "train", 0.0, 1.5),
        ("clips/x.wav#2.0--1.0", "clips/x.wav", (0,), "validation", 2.0, -1.0),
    ]
    assert set(result.problems) == {
        Problem("label", "list.csv:4", "unknown label 'c'"),
        Problem("label", "list.csv:5", "unknown split 'oops'"),
        Problem("label", "list.csv:6", "malformed times ['5', '4']"),
        Problem("broken", "list.csv:7", "empty path"),
        Problem("broken", "list.csv:8", "path leaves the root"),
        Problem("label", "list.csv:9", "empty label"),
        Problem("missing", "clips/n.wav", "listed in list.csv:10, not on disk"),
        Problem("label", "list.csv:11", "malformed row: 3 fields, expected 5"),
    }


def test_csv_one_table_a_split_and_whole_number_labels(tmp_path: Path) -> None:
    write(
        tmp_path, {"train.csv": "path,label\n./a.jpg,2\nb.jpg,0\n", "val.csv": "path,label\nc.jpg,-1\nd.jpg,1\n"}
    )
    write(tmp_path, dict.fromkeys(["a.jpg", "b.jpg", "c.jpg", "d.jpg"], "x"))
    result = scan(task("csv", 3), tmp_path)
    assert rows(result) == [("a.jpg", (2,), "train"), ("b.jpg", (0,), "train"), ("d.jpg", (1,), "validation")]
    assert result.classes == ["0", "1", "2"]
    assert result.problems == [Problem("label", "val.csv:2", "label -1 is below 0")]
    with pytest.raises(UserError, match=r"a\.jpg has label 2; allowed are 0\.\.1"):
        scan(task("csv", 2), tmp_path)
    by_name = scan(task("csv", 2, options={"labels": "name"}), tmp_path)
    assert (by_name.classes, by_name.examples[0].labels) == (["0", "2"], (1,))


def test_csv_labels_that_could_be_either_are_a_user_error(tmp_path: Path) -> None:
    write(tmp_path, {"data.csv": "path,label\na.jpg,2\nb.jpg,cat\n", "names.txt": "9\n2\n", "a.jpg": "x"})
    with pytest.raises(UserError, match="some labels are numbers and some are not, such as 'cat'"):
        scan(task("csv"), tmp_path)
    write(tmp_path, {"data.csv": "path,label,split\na.jpg,1,train\n"})
    with pytest.raises(UserError, match="labels are numbers and so is class name '9'"):
        scan(task("csv", classes="names.txt"), tmp_path)
    result = scan(task("csv", classes="names.txt", options={"labels": "index"}), tmp_path)
    assert rows(result) == [("a.jpg", (1,), "train")]
    with pytest.raises(UserError, match=r"data\.csv has no column 'label_id'; it has 'path', 'label', 'split'"):
        scan(task("csv", options={"label_column": "label_id"}), tmp_path)


def shard(path: Path, members: Mapping[str, bytes | tarfile.TarInfo]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name, body = name, content if isinstance(content, bytes) else b""
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def test_webdataset_labels_splits_and_offsets(tmp_path: Path) -> None:
    shard(
        tmp_path / "my-train-000.tar",
        {"d/a.b.jpg": b"AA", "d/a.cls": b"cat\n", "e.jpg": b"EEE", "e.json": b'{"cls": "dog"}'},
    )
    shard(
        tmp_path / "val/000.tar",
        {"a.png": b"V", "a.json": b'{"labels": ["dog", "cat"]}', "z.jpg": b"", "z.cls": b"cat"},
    )
    shard(tmp_path / "latest.tar", {"a.jpg": b"V", "a.cls": b"cat"})
    result = scan(task("webdataset"), tmp_path)
    assert result.classes == ["cat", "dog"]
    assert [(e.key, e.path, e.labels, e.split) for e in result.examples] == [
        ("my-train-000/d/a", "my-train-000.tar", (0,), "train"),
        ("my-train-000/e", "my-train-000.tar", (1,), "train"),
        ("val/000/a", "val/000.tar", (0, 1), "validation"),
    ]
    for example, content in zip(result.examples, (b"AA", b"EEE", b"V"), strict=True):
        whole = (tmp_path / example.path).read_bytes()
        assert whole[example.offset : example.offset + example.length] == content
    assert result.problems == [
        Problem("label", "latest.tar", "no split in the shard's name, which other shards have"),
        Problem("broken", "val/000.tar/z", "empty file"),
    ]
    write(tmp_path, {"classes.txt": "dog\nfox\ncat\n"})
    assert scan(task("webdataset"), tmp_path).examples[0].labels == (2,)


def test_shards_whose_names_say_no_split_are_carved_by_key(tmp_path: Path) -> None:
    members = {f"{number}.{kind}": b"1" for number in range(80) for kind in ("jpg", "cls")}
    shard(tmp_path / "part.tar", members)
    result = scan(task("webdataset", options={"validation_fraction": 0.2, "test_fraction": 0.1}), tmp_path)
    assert {e.key: e.split for e in result.examples} == {
        f"part/{number}": carved(f"part/{number}", 0.7, 0.9) for number in range(80)
    }
    assert all(result.counts().values())


def test_webdataset_refuses_hostile_members(tmp_path: Path) -> None:
    hostile: dict[str, Any] = {
        "/etc/a.jpg": b"x",
        "../b.jpg": b"x",
        "c.jpg": special(tarfile.SYMTYPE, "/etc/passwd"),
    }
    hostile |= {"d.jpg": special(tarfile.LNKTYPE, "../b.jpg"), "e.jpg": special(tarfile.CHRTYPE)}
    hostile |= {"f.jpg": special(tarfile.FIFOTYPE), "g": special(tarfile.DIRTYPE), "h.cls": b"1"}
    hostile |= {
        "i.jpg": b"x",
        "i.cls": b"\xff",
        "j.jpg": b"x",
        "j.json": b"[" * 100_000,
        "k.jpg": b"x",
        "k.json": b'{"label": 1.5}',
    }
    shard(tmp_path / "train.tar", hostile | {"ok.jpg": b"x", "ok.cls": b"1"})
    result = scan(task("webdataset"), tmp_path)
    assert [(e.key, e.labels) for e in result.examples] == [("train/ok", (1,))]
    link = "not a plain file (link, device or sparse file)"
    assert set(result.problems) == {
        Problem("broken", "train.tar//etc/a.jpg", "path leaves the root"),
        Problem("broken", "train.tar/../b.jpg", "path leaves the root"),
        *(Problem("broken", f"train.tar/{name}.jpg", link) for name in "cdef"),
        Problem("missing", "train.tar/h", "no image in the sample"),
        Problem("label", "train.tar/i", ".cls cannot be read: UnicodeDecodeError"),
        Problem("label", "train.tar/j", ".json cannot be read: RecursionError"),
        *(Problem("label", f"train.tar/{name}", "empty label") for name in "ijk"),
    }


def test_webdataset_damaged_shards_are_named(tmp_path: Path) -> None:
    shard(tmp_path / "train-0.tar", {"a.jpg": b"A" * 600, "a.cls": b"0", "b.cls": b"0", "b.jpg": b"B" * 600})
    whole = (tmp_path / "train-0.tar").read_bytes()
    write(tmp_path, {"train-1.tar": whole[: 5 * 512 + 100], "train-2.tar": "no tar at all", "train-3.tar.gz": "x"})
    result = scan(task("webdataset"), tmp_path)
    assert [e.key for e in result.examples] == ["train-0/a", "train-0/b", "train-1/a"]
    reasons = {problem.where: problem.reason for problem in result.problems}
    assert reasons.keys() == {"train-1.tar", "train-2.tar", "train-3.tar.gz"}
    assert reasons["train-1.tar"] == "damaged after 2 members: the end mark of a tar file does not follow"
    assert reasons["train-2.tar"].startswith("damaged after 0 members: ")
    for cut, message in {3 * 512: "end mark", 8 * 512 + 1: "unexpected end|does not lie in the file"}.items():
        write(tmp_path, {"train-1.tar": whole[:cut]})
        result = scan(task("webdataset"), tmp_path)
        # the member that the cut goes through is no example: its bytes are not all there
        assert [e.key for e in result.examples] == [
            "train-0/a",
            "train-0/b",
            *(["train-1/a"] if cut > 2048 else []),
        ]
        reason = next(problem.reason for problem in result.problems if problem.where == "train-1.tar")
        assert re.search(message, reason)
    assert reasons["train-3.tar.gz"] == "compressed shard; unpack it to a plain .tar"


def parquet(path: Path, columns: dict[str, Any], features: Any = None) -> None:
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2)


def pictures(count: int) -> list[dict[str, Any]]:
    return [{"bytes": bytes([65 + number]), "path": f"{number}.jpg"} for number in range(count)]


def test_parquet_as_on_the_hub(tmp_path: Path) -> None:
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog", "fox"], "_type": "ClassLabel"}}
    columns = {"id": [1, 2, 3], "image": pictures(3), "label": [2, None, 0]}
    parquet(tmp_path / "data/train-00000-of-00001.parquet", columns, features)
    parquet(tmp_path / "data/test-00000-of-00001.parquet", {"image": pictures(2), "label": [-1, 1]}, features)
    result = scan(task("parquet"), tmp_path)
    assert result.classes == ["cat", "dog", "fox"]
    assert [(e.key, e.labels, e.split, e.offset, e.row) for e in result.examples] == [
        ("data/test-00000-of-00001/00001", (1,), "test", 0, 1),
        ("data/train-00000-of-00001/00000", (2,), "train", 1, 0),
        ("data/train-00000-of-00001/00002", (0,), "train", 1, 2),
    ]
    assert result.problems == [
        Problem("label", "data/test-00000-of-00001.parquet:0", "label -1 is below 0"),
        Problem("label", "data/train-00000-of-00001.parquet:1", "empty label"),
    ]


def test_parquet_names_lists_binary_and_options(tmp_path: Path) -> None:
    columns = {"jpeg": [b"a", b"b"], "tags": [["x", "y"], ["x"]]}
    parquet(tmp_path / "train/0000.parquet", columns)
    write(tmp_path, {"train/bad.parquet": "PAR1", "train/empty.parquet": ""})
    with pytest.raises(UserError, match=r"has columns jpeg, tags, none of image.*options\.media_column"):
        scan(task("parquet"), tmp_path)
    options = {"media_column": "jpeg", "label_column": "tags"}
    result = scan(task("parquet", options=options), tmp_path)
    assert (result.classes, [e.labels for e in result.examples]) == (["x", "y"], [(0, 1), (0,)])
    assert [(problem.where, problem.reason) for problem in result.problems] == [
        ("train/bad.parquet", "not a readable Parquet file (ArrowInvalid)"),
        ("train/empty.parquet", "empty file"),
    ]
    with pytest.raises(UserError, match="column tags is list"):
        scan(task("parquet", options=options | {"media_column": "tags"}), tmp_path)
    sequence = {"tags": {"feature": {"names": ["y", "x"], "_type": "ClassLabel"}, "_type": "Sequence"}}
    parquet(tmp_path / "train/0000.parquet", columns, sequence)
    assert scan(task("parquet", options=options), tmp_path).classes == ["y", "x"]
    parquet(tmp_path / "val/0000.parquet", columns, {"tags": [{"names": ["x", "y"]}]})
    with pytest.raises(UserError, match="other class names"):
        scan(task("parquet", options=options), tmp_path)
