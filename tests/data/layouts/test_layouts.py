"""The layouts of the nine tasks, and what all layouts share, on small files that the tests write.

Bring-your-own layouts are in test_layouts_own.py, the real kit in test_layouts_kit.py.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import carved, rows, task, write

from polyvit.config import LAYOUTS
from polyvit.data.index.io import Problem, key_fraction
from polyvit.data.layouts import Layout
from polyvit.data.layouts.scanner import load_layout, scan
from polyvit.errors import UserError

# ------------------------------------------------------------------------------------------- what all share


def test_every_layout_of_the_config_has_a_scan() -> None:
    layouts = {name: load_layout(name) for name in LAYOUTS}
    assert all(isinstance(layout, Layout) and layout.expects for layout in layouts.values())
    assert len({layout.scan for layout in layouts.values()}) == len(LAYOUTS)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_missing_an_empty_and_a_file_root_are_user_errors(tmp_path: Path, layout: str) -> None:
    with pytest.raises(UserError, match=r"absent is not there; layout .*tasks\.pix\.root"):
        scan(task(layout), tmp_path / "absent", "pix")
    write(tmp_path, {"file": "x"})
    with pytest.raises(UserError, match="file is not a folder"):
        scan(task(layout), tmp_path / "file", "pix")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        scan(task(layout), tmp_path / "empty", "pix")


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_an_unknown_option_is_named(tmp_path: Path, layout: str) -> None:
    with pytest.raises(UserError, match=r"tasks\.pix\.options\.folderr: "):
        scan(task(layout, options={"folderr": "x"}), tmp_path, "pix")


def test_the_nearest_option_and_the_type_are_in_the_message(tmp_path: Path) -> None:
    options = {"path_colum": "x", "label_column": 3, "validation_fraction": True}
    with pytest.raises(UserError) as caught:
        scan(task("csv", options=options), tmp_path, "pix")
    assert [problem.partition(", known")[0] for problem in caught.value.problems] == [
        "tasks.pix.options.path_colum: no such option; nearest is 'path_column'",
        "tasks.pix.options.label_column: 3 given, a str is expected",
        "tasks.pix.options.validation_fraction: True given, a float is expected",
    ]


def test_more_classes_than_num_classes_is_a_user_error_and_fewer_are_fine(tmp_path: Path) -> None:
    write(tmp_path, {f"train/{name}/1.jpg": "x" for name in "abc"} | {"val/a/1.jpg": "x"})
    with pytest.raises(UserError, match=r"has 3 classes, tasks\.pix\.num_classes is 2"):
        scan(task("imagefolder", 2), tmp_path, "pix")
    assert scan(task("imagefolder", 4), tmp_path, "pix").classes == ["a", "b", "c"]


def test_task_classes_override_the_order_and_name_what_is_unknown(tmp_path: Path) -> None:
    write(tmp_path, {f"train/{name}/1.jpg": "x" for name in "abc"} | {"names.txt": "\ufeffc\r\na\r\n"})
    result = scan(task("imagefolder", 2, classes="names.txt", options={"validation_fraction": 0}), tmp_path)
    assert result.classes == ["c", "a"]
    assert rows(result) == [("train/a/1.jpg", (1,), "train"), ("train/c/1.jpg", (0,), "train")]
    assert result.problems == [Problem("label", "train/b/1.jpg", "unknown label 'b'")]


@pytest.mark.parametrize(
    ("text", "message"), [("a\n\nb\n", "line 2 .* is empty"), ("a\nb\na\n", "line 3 .* repeats line 1, 'a'")]
)
def test_a_bad_class_list_is_a_user_error(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, {"train/a/1.jpg": "x", "names.txt": text})
    with pytest.raises(UserError, match=message):
        scan(task("imagefolder", classes="names.txt"), tmp_path)
    with pytest.raises(UserError, match=r"tasks\.pix\.classes: gone\.txt is neither in "):
        scan(task("imagefolder", classes="gone.txt"), tmp_path, "pix")


# --------------------------------------------------------------------------------------------------- images


def test_imagenet_by_mapping_and_by_folder_names(tmp_path: Path) -> None:
    train = {f"train/n00000003/{number}.JPEG": "x" for number in range(400)}
    write(tmp_path, train | {"val/n00000001/v.JPEG": "x", "val/n00000009/w.JPEG": "x", "val/loose.JPEG": "x"})
    write(tmp_path, {"LOC_synset_mapping.txt": "n00000001 crane\nn00000002 cat, felis\nn00000003 crane\n"})
    result = scan(task("imagenet"), tmp_path)
    assert result.classes == ["crane (n00000001)", "cat, felis", "crane (n00000003)"]
    assert rows(result) == sorted(
        [(path, (2,), carved(path, 0.99)) for path in train] + [("val/n00000001/v.JPEG", (0,), "test")]
    )
    assert any(0.98 <= key_fraction(path) < 0.99 for path in train)
    assert result.problems == [
        Problem("label", "val/loose.JPEG", "empty label"),
        Problem("label", "val/n00000009/w.JPEG", "unknown label 'n00000009'"),
    ]
    (tmp_path / "LOC_synset_mapping.txt").unlink()
    result = scan(task("imagenet"), tmp_path)
    assert result.classes == ["n00000003"]
    assert len(result.examples) == 400


def test_pets_ids_breeds_and_bad_lines(tmp_path: Path) -> None:
    images = ["Bengal_1", "Bengal_2", "Bengal_3", "pug_1", "pug_2"]
    write(tmp_path, {f"images/{name}.jpg": "x" for name in images})
    trainval = "#comment\nBengal_1 6 1 2\nBengal_2 6 1 2\npug_1 28 2 18\nBengal_3 28 1 2\npug_2 28 2 18\n"
    trainval += "pug_2 38 2 18\npug_9 28 2 18\npug_2 28\n../../etc_1 28 1 1\n"
    write(tmp_path, {"annotations/trainval.txt": trainval, "annotations/test.txt": "Bengal_3 6 1 2\n"})
    result = scan(task("pets", 37), tmp_path)
    splits = {name: carved(f"images/{name}", 0.9) for name in images} | {"Bengal_3": "test"}
    labels = {"Bengal": 5, "pug": 27}
    assert rows(result) == [(f"images/{n}.jpg", (labels[n[:-2]],), splits[n]) for n in images]
    assert (result.classes[5], result.classes[27], result.classes[36], len(result.classes)) == (
        "Bengal", "pug", "class 37", 37,
    )  # fmt: skip
    file = "annotations/trainval.txt"
    assert set(result.problems) == {
        Problem("label", f"{file}:5", "Bengal_3 has class id 28, which is pug"),
        Problem("label", f"{file}:7", "class id 38; allowed are 1..37"),
        Problem("missing", "images/pug_9.jpg", f"listed in {file}:8, not on disk"),
        Problem("label", f"{file}:9", "malformed row: expected 'image id species breed', found 'pug_2 28'"),
        Problem("broken", f"{file}:10", "path leaves the root"),
    }
    (tmp_path / "annotations/test.txt").unlink()
    with pytest.raises(UserError, match=r"annotations/test\.txt is not there; layout pets needs it"):
        scan(task("pets", 37), tmp_path)


def test_resisc45_by_split_files_and_by_hash(tmp_path: Path) -> None:
    paths = [f"NWPU-RESISC45/{c}/{c}_{n:03d}.jpg" for c in ("dense_lake", "sea_ice") for n in range(40)]
    write(tmp_path, dict.fromkeys(paths, "x"))
    result = scan(task("resisc45", 45), tmp_path)
    assert rows(result) == [(p, (int("sea_ice" in p),), carved(p, 0.6, 0.8)) for p in sorted(paths)]
    write(tmp_path, {"resisc45-train.txt": "sea_ice_001.jpg\nsea_ice_777.jpg\n../x/sea_ice_002.jpg\n"})
    with pytest.raises(UserError, match=r"resisc45-val\.txt is not there"):
        scan(task("resisc45", 45), tmp_path)
    write(tmp_path, {"resisc45-val.txt": "dense_lake_001.jpg\n", "resisc45-test.txt": "sea_ice_003.jpg\n"})
    result = scan(task("resisc45", 45), tmp_path)
    assert result.classes == ["sea_ice"]
    assert rows(result) == [
        ("NWPU-RESISC45/sea_ice/sea_ice_001.jpg", (0,), "train"),
        ("NWPU-RESISC45/sea_ice/sea_ice_003.jpg", (0,), "test"),
    ]
    assert set(result.problems) == {
        Problem("missing", "NWPU-RESISC45/sea_ice/sea_ice_777.jpg", "listed in resisc45-train.txt:2, not on disk"),
        Problem("broken", "resisc45-train.txt:3", "path leaves the root"),
        Problem("label", "resisc45-val.txt:1", "unknown label 'dense_lake'"),
    }


def cifar10(root: Path, rows_each: int = 30, **changed: Any) -> Path:
    names = [f"class{number}" for number in range(10)]
    for file in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        labels = [row % 10 for row in range(rows_each)]
        batch = {b"data": np.zeros((rows_each, 3072), np.uint8), b"labels": labels} | changed.get(file, {})
        write(root, {f"cifar-10-batches-py/{file}": pickle.dumps(batch, protocol=changed.get("protocol", 2))})
    write(root, {"cifar-10-batches-py/batches.meta": pickle.dumps({"label_names": names})})
    return root


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_cifar10_keys_splits_and_folder(tmp_path: Path, protocol: int) -> None:
    labels = np.arange(30) % 10  # numpy labels are read as a list is
    cifar10(tmp_path, protocol=protocol, data_batch_2={b"labels": labels})
    result = scan(task("cifar10"), tmp_path)
    first = next(example for example in result.examples if example.key == "data_batch_2/00017")
    assert (first.path, first.labels, first.container, first.row) == (
        "cifar-10-batches-py/data_batch_2", (7,), "cifar", 17,
    )  # fmt: skip
    assert {e.key: e.split for e in result.examples} == {
        **{
            f"data_batch_{b}/{r:05d}": carved(f"data_batch_{b}/{r:05d}", 0.98)
            for b in range(1, 6)
            for r in range(30)
        },
        **{f"test_batch/{r:05d}": "test" for r in range(30)},
    }
    assert result.classes[3] == "class3"
    inner = scan(task("cifar10"), tmp_path / "cifar-10-batches-py")
    assert [e.key for e in inner.examples] == [e.key for e in result.examples]
    assert inner.examples[0].path == "data_batch_1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"labels": [0] * 29}, "29 labels, 30 images"),
        ({b"labels": [0] * 29 + [10]}, r"label 10 at row 29; classes are 0\.\.9"),
        ({b"labels": [0] * 29 + [-1]}, "label -1 at row 29"),
        ({b"labels": ["a"] * 30}, "'labels' is not a list of whole numbers"),
        ({b"data": np.zeros((30, 3071), np.uint8)}, r"must be uint8 \[rows, 3072\], found uint8 \[30, 3071\]"),
        ({b"data": np.zeros((30, 3072), np.float32)}, "holds an array of type <f4"),
        ({b"data": b"text"}, "found"),
        ({b"x": Path("/")}, r"names pathlib\.\w+; arrays and plain types only"),
    ],
)
def test_a_wrong_cifar_batch_is_a_user_error_that_names_it(tmp_path: Path, change: dict, message: str) -> None:
    cifar10(tmp_path, data_batch_3=change)
    with pytest.raises(UserError, match=rf"data_batch_3: .*{message}"):
        scan(task("cifar10"), tmp_path)


# ---------------------------------------------------------------------------------------------------- video

HEAD = "label,youtube_id,time_start,time_end,split\n"


def test_kinetics_finds_every_shape_of_a_copy(tmp_path: Path) -> None:
    train = HEAD + 'a b,id1,1,11,train\n"c, d",id2,2,12,train\na b,id3,3,13,train\na b,id4,4,14,train\n'
    write(
        tmp_path, {"train.csv": "\ufeff" + train.replace("\n", "\r\n"), "validate.csv": HEAD + "a b,v,0,10,val\n"}
    )
    write(tmp_path, {"train/a_b/id1_000001_000011.mkv": "x", "train/c, d/id2_000002_000012.mp4": "x"})
    write(tmp_path, {"train/id3_000003_000013.webm": "x", "train/c, d/id4_000004_000014.mp4": "x"})
    write(tmp_path, {"validate/a b/v_000000_000010.AVI": "x"})
    result = scan(task("kinetics", modality="video"), tmp_path)
    assert result.classes == ["a b", "c, d"]
    assert [(e.key, e.path, e.labels, e.split) for e in result.examples] == [
        ("train/id1_000001_000011", "train/a_b/id1_000001_000011.mkv", (0,), "train"),
        ("train/id2_000002_000012", "train/c, d/id2_000002_000012.mp4", (1,), "train"),
        ("train/id3_000003_000013", "train/id3_000003_000013.webm", (0,), "train"),
        ("val/v_000000_000010", "validate/a b/v_000000_000010.AVI", (0,), "validation"),
    ]
    # id4 lies in another label's folder: which of the two labels is right, nobody knows
    where = "train/a b/id4_000004_000014.mp4"
    assert result.problems == [Problem("missing", where, "listed in train.csv:5, not on disk")]


def test_kinetics_bad_rows_are_named(tmp_path: Path) -> None:
    bad = "zebra,i,0,10,val\n,i,0,10,val\na,i,x,10,val\na,i,0,10,val,more\na,../i,0,10,val\na,e,0,10,val\n"
    write(tmp_path, {"train.csv": HEAD + "a,t,0,10,train\n", "val.csv": HEAD + bad + 'a,"q,0,10,val\n'})
    write(tmp_path, {"train/a/t_000000_000010.mp4": "x", "val/a/e_000000_000010.mp4": ""})
    write(tmp_path, {"test.csv": "youtube_id,time_start\ni,0\n"})
    result = scan(task("kinetics", modality="video"), tmp_path)
    assert rows(result) == [("train/a/t_000000_000010.mp4", (0,), "train")]
    assert set(result.problems) == {
        Problem("label", "val.csv:2", "unknown label 'zebra'"),
        Problem("label", "val.csv:3", "empty label"),
        Problem("label", "val.csv:4", "malformed times 'x', '10'"),
        Problem("label", "val.csv:5", "malformed row: 6 fields, expected 5"),
        Problem("broken", "val.csv:6", "path leaves the root"),
        Problem("broken", "val/a/e_000000_000010.mp4", "empty file"),
        Problem("label", "val.csv:8", "malformed row: unexpected end of data"),
        Problem("label", "test.csv", "no column 'label'; its split is left out"),
    }
    write(tmp_path, {"train.csv": "name,youtube_id\nx,y\n"})
    with pytest.raises(
        UserError, match=r"train\.csv has no column 'label', 'time_start', 'time_end'; it has 'name'"
    ):
        scan(task("kinetics", modality="video"), tmp_path)
    (tmp_path / "train.csv").unlink()
    with pytest.raises(UserError, match=r"train\.csv is missing or empty"):
        scan(task("kinetics", modality="video"), tmp_path)


def test_moments(tmp_path: Path) -> None:
    write(tmp_path, {"moments_categories.txt": "run,1\nclap,0\n", "validationSet.csv": "clap/v.mp4,clap,1,0\n"})
    train = "run/a.mp4,run,3,0\nfly/a.mp4,fly,3,0\n../x.mp4,run,1,1\n/x.mp4,run,1,1\nrun/a.mp4,run\n"
    train += "run/b.mp4,run,1,1\n"
    write(tmp_path, {"trainingSet.csv": train, "training/run/a.mp4": "x", "validation/clap/v.mp4": "x"})
    result = scan(task("moments", modality="video"), tmp_path)
    assert result.classes == ["clap", "run"]
    assert rows(result) == [("training/run/a.mp4", (1,), "train"), ("validation/clap/v.mp4", (0,), "validation")]
    assert result.problems == [
        Problem("label", "trainingSet.csv:2", "unknown label 'fly'"),
        Problem("broken", "trainingSet.csv:3", "path leaves the root"),
        Problem("broken", "trainingSet.csv:4", "path leaves the root"),
        Problem("label", "trainingSet.csv:5", "malformed row: 2 fields, expected 4"),
        Problem("missing", "training/run/b.mp4", "listed in trainingSet.csv:6, not on disk"),
    ]
    for text in ("run,2\nclap,0\n", "run,0\nclap,0\n", "run,x\n"):
        write(tmp_path, {"moments_categories.txt": text})
        with pytest.raises(UserError, match=r"moments_categories\.txt"):
            scan(task("moments", modality="video"), tmp_path)


# ---------------------------------------------------------------------------------------------------- audio


def audioset(root: Path, train: str, **files: str) -> Path:
    classes = 'index,mid,display_name\n0,/m/a,"Speech"\n1,/m/b,"Dog, bark"\n2,/m/c,Cat\n'
    write(root, {"class_labels_indices.csv": classes, "balanced_train_segments.csv": train})
    return write(
        root, {"eval_segments.csv": '# c\nev, 0.000, 10.000, "/m/c"\n', "audio/eval_segments/ev.wav": "x"}
    )


def test_audioset_finds_media_under_every_usual_name(tmp_path: Path) -> None:
    lines = [f'{ytid}, 30.000, 40.000, "/m/b,/m/a"' for ytid in ("id-1", "-id2", "id3", "id4", "id5", "id6")]
    audioset(tmp_path, "\n".join(lines))
    media = ["audio/balanced_train_segments/id-1.flac", "audio/balanced_train_segments/Y-id2.wav", "audio/id3.mp3"]
    media += ["audio/balanced_train_segments/id4_30.ogg", "audio/balanced_train_segments/id5_30000.m4a"]
    media += ["audio/balanced_train_segments/id6.mp4"]
    write(tmp_path, dict.fromkeys([*media, "audio/balanced_train_segments/id6.mkv"], "x"))
    result = scan(task("audioset", modality="audio"), tmp_path)
    assert sorted(e.path for e in result.split("train")) == sorted(media)
    assert {e.labels for e in result.split("train")} == {(0, 1)}
    assert rows(result)[-1] == ("audio/eval_segments/ev.wav", (2,), "validation")
    assert result.examples[-1].key == "eval_segments/ev"
    assert result.classes == ["Speech", "Dog, bark", "Cat"]
    assert result.problems == []


def test_audioset_bad_rows_and_options(tmp_path: Path) -> None:
    train = 'a, 0.0, 10.0, "/m/a,/m/zz"\na, 0.0, 10.0, ""\na, x, 10.0, "/m/a"\na, 0.0, 10.0, /m/a,/m/b\n'
    train += 'a, 0.0, 10.0, "/m/a"\na, 0.0, 10.0, "/m/b"\n../a, 0.0, 10.0, "/m/a"\n'
    audioset(tmp_path, train)
    write(tmp_path, {"audio/balanced_train_segments/a.wav": "x", "audio/u.wav": "x"})
    result = scan(task("audioset", modality="audio"), tmp_path)
    assert [(e.key, e.labels) for e in result.examples] == [
        ("balanced_train_segments/a", (0,)),
        ("eval_segments/ev", (2,)),
    ]
    list_ = "balanced_train_segments.csv"
    assert result.problems == [
        # in the order in which they are found: malformed rows as the list is read
        Problem("label", f"{list_}:1", "unknown label '/m/zz'"),
        Problem("label", f"{list_}:2", "empty label"),
        Problem("label", f"{list_}:3", "malformed times 'x', '10.0'"),
        Problem("label", f"{list_}:4", "malformed row: 5 fields, expected 4; a comma inside a field needs quotes"),
        Problem("broken", f"{list_}:7", "path leaves the root"),
        Problem(
            "duplicate",
            "audio/balanced_train_segments/a.wav",
            "key 'balanced_train_segments/a' occurs again; the first is kept",
        ),
    ]
    with pytest.raises(UserError, match=r"unbalanced_train_segments\.csv is not there"):
        scan(task("audioset", modality="audio", options={"train": "all"}), tmp_path)
    write(tmp_path, {"unbalanced_train_segments.csv": 'u, 0.0, 10.0, "/m/c"\n'})
    for option, keys in {"unbalanced": 2, "all": 3}.items():
        assert len(scan(task("audioset", modality="audio", options={"train": option}), tmp_path).examples) == keys
    with pytest.raises(UserError, match="allowed are 'balanced', 'unbalanced', 'all'"):
        scan(task("audioset", modality="audio", options={"train": "half"}), tmp_path)


def test_vggsound(tmp_path: Path) -> None:
    text = 'a,30,"dog, barking",train\nb,1,cat,train\nc,2,cat,test\nd,3,male speech, man,train\ne,4,cat,dev\n'
    write(tmp_path, {"vggsound.csv": text + "f,x,cat,train\ng,5,bird,test\n../h,5,cat,train\nz,7,owl,train\n"})
    write(tmp_path, dict.fromkeys(["audio/a_000030.wav", "audio/b_000001.mp4", "audio/c_000002.flac"], "x"))
    result = scan(task("vggsound", modality="audio"), tmp_path)
    # the clip of "owl" is not on disk; its class counts all the same, so that holes shift no index
    assert result.classes == ["cat", "dog, barking", "owl"]
    assert rows(result) == [
        ("audio/a_000030.wav", (1,), "train"),
        ("audio/b_000001.mp4", (0,), "train"),
        ("audio/c_000002.flac", (0,), "validation"),
    ]
    assert set(result.problems) == {
        Problem(
            "label", "vggsound.csv:4", "malformed row: 5 fields, expected 4; a comma inside a field needs quotes"
        ),
        Problem("label", "vggsound.csv:5", "split 'dev'; allowed are 'train' and 'test'"),
        Problem("label", "vggsound.csv:6", "malformed start 'x'"),
        Problem("label", "vggsound.csv:7", "unknown label 'bird'"),
        Problem("broken", "vggsound.csv:8", "path leaves the root"),
        Problem("missing", "audio/z_000007.wav", "listed in vggsound.csv:9, not on disk"),
    }
    write(tmp_path, {"vggsound.csv": b"a,1,caf\xe9,train\n"})
    with pytest.raises(UserError, match=r"vggsound\.csv is not UTF-8 text \(byte 7\)"):
        scan(task("vggsound", modality="audio"), tmp_path)
