"""UCF-101, ESC-50, Kinetics-Sounds, Charades and videos with sound: true folders, and what is wrong in them."""

import os
import re
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit import DATA_DIR, needs_data, rows, task, write
from s3_kit import s3_server

from polyvit.data.index import Scan, read_index
from polyvit.data.layouts import scan
from polyvit.data.layouts.index_cache import write_task_index
from polyvit.data.layouts.kinetics_sounds import CLASSES
from polyvit.errors import UserError
from polyvit.storage import StoreUnavailable, open_root, under
from polyvit.storage.local import LocalRoot
from polyvit.synthetic import AV_SPLITS, encode_video
from polyvit.synthetic.write import write_synthetic

CLIP = np.zeros((8, 16, 16, 3), np.uint8)
WAVE = np.random.default_rng(0).normal(0, 0.1, 8000)
BOTH, SILENT = encode_video(CLIP, 8, WAVE, 8000), encode_video(CLIP, 8, None, 8000)
SOUND = encode_video(None, 8, WAVE, 8000)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The five sets that `polyvit synth --av` writes, at the smallest size."""
    folder = tmp_path_factory.mktemp("av")
    counts = write_synthetic(folder, tasks=list(AV_SPLITS), classes=2, train=12, evaluation=6, side=32)
    assert set(counts) == set(AV_SPLITS)
    return folder


def reasons(found: Scan) -> Counter[str]:
    return Counter(problem.kind for problem in found.problems)


# --------------------------------------------------------------------------------------------- toy sets


@pytest.mark.parametrize("split", [1, 2, 3])
def test_ucf101_has_three_splits_of_whole_groups(toy: Path, split: int) -> None:
    found = scan(task("ucf101", 101, "video", options={"split": split}), toy / "ucf101")
    train, held_out = (
        {re.findall(r"_g(\d+)_", example.key)[0] for example in examples}
        for examples in (found.split("train"), found.split("validation"))
    )
    assert train.isdisjoint(held_out)
    assert sum(found.counts().values()) == 18
    assert found.classes == ["PlayingCello", "PlayingDaf"]
    assert all(found.classes[e.labels[0]] == e.key.split("/")[0] for e in found.examples)
    assert not found.problems


@pytest.mark.parametrize("fold", [1, 2, 3, 4, 5])
def test_esc50_holds_one_fold_out(toy: Path, fold: int) -> None:
    found = scan(task("esc50", 50, "audio", options={"fold": fold}), toy / "esc50")
    assert {e.key[0] for e in found.split("validation")} == {str(fold)}
    assert str(fold) not in {e.key[0] for e in found.split("train")}
    assert found.classes == ["dog", "rooster"]
    assert all(int(e.key.removesuffix(".wav")[-1]) == e.labels[0] for e in found.examples)


def test_kinetics_sounds_numbers_its_32_classes_whatever_is_there(toy: Path) -> None:
    """Trap 10 of the release: a class that a split lacks must not shift the others."""
    found = scan(task("kinetics_sounds", 32, "audiovisual"), toy / "kinetics_sounds")
    assert found.classes == sorted(CLASSES) == list(CLASSES)
    assert len(CLASSES) == 32
    assert all(found.classes[e.labels[0]] == e.path.split("/")[1] for e in found.examples)


def test_rows_of_other_classes_are_passed_over(tmp_path: Path) -> None:
    """A whole copy of Kinetics will do; a class of one's own selection comes from task.classes."""
    head = "label,youtube_id,time_start,time_end,split\n"
    lines = "".join(f"{name},{n:011d},0,10,train\n" for n, name in enumerate(("tickling", "abseiling", "")))
    write(
        tmp_path,
        {"train.csv": head + lines, "val.csv": head, "train/tickling/00000000000_000000_000010.mp4": BOTH},
    )
    found = scan(task("kinetics_sounds", 32, "audiovisual"), tmp_path)
    assert rows(found) == [("train/tickling/00000000000_000000_000010.mp4", (31,), "train")]
    assert [problem.reason for problem in found.problems] == ["empty label"]


def test_charades_has_all_labels_of_a_video_or_those_of_an_action(toy: Path) -> None:
    found = scan(task("charades", 157, "video", loss="sigmoid"), toy / "charades")
    assert found.counts() == {"train": 12, "validation": 6, "test": 0}
    assert len(found.classes) == 157
    assert found.classes[0] == "Holding some clothes"
    assert Counter(e.labels for e in found.examples)[(0, 1)] >= 14
    each = scan(task("charades", 157, "video", loss="sigmoid", options={"each": "action"}), toy / "charades")
    assert len(each.examples) > 30
    assert {(e.start, e.end) for e in each.examples} == {(0, 3), (3, 6), (0, 6)}
    assert all(len(e.labels) == 1 for e in each.examples)


# ---------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize(
    ("streams", "kept"), [("both", ["b"]), ("visual", ["b", "p"]), ("audio", ["b", "s"]), (None, ["b", "p"])]
)
def test_files_without_the_streams_of_the_task_are_left_out(tmp_path: Path, streams: Any, kept: list[str]) -> None:
    """By header, counted, and named; `None`: a task of another modality, whose headers are not read."""
    names = {"b.mp4": BOTH, "p.mp4": SILENT, "s.mp4": SOUND, "x.mp4": b"no media"}
    if streams is None:
        names.pop("s.mp4")
        names.pop("x.mp4")
    write(tmp_path, {f"train/a/{name}": content for name, content in names.items()})
    keys = {"streams": streams} if streams else {}
    found = scan(task("imagefolder", 2, "audiovisual" if streams else "video", **keys), tmp_path)
    assert [e.path for e in found.examples] == [f"train/a/{name}.mp4" for name in kept]
    expected = {"stream": len(names) - 1 - len(kept), "broken": 1} if streams else {}
    assert reasons(found) == expected
    said = {problem.where: problem.reason for problem in found.problems}
    assert said.get("train/a/p.mp4", "no sound track") == "no sound track"
    assert said.get("train/a/s.mp4", "no pictures") == "no pictures"


def test_a_set_without_any_sound_says_so(tmp_path: Path) -> None:
    write(tmp_path, {"train/a/p.mp4": SILENT})
    with pytest.raises(UserError, match="no usable example") as caught:
        scan(task("imagefolder", 2, "audiovisual"), tmp_path)
    assert "train/a/p.mp4: no sound track" in str(caught.value)


def test_members_of_shards_are_looked_at_in_place(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-000.tar", "w") as tar:
        for name, content in {"a.mp4": BOTH, "b.mp4": SILENT, "c.mp4": BOTH}.items():
            for path, data in ((name, content), (name.replace("mp4", "cls"), b"0")):
                write(tmp_path / "parts", {path: data})
                tar.add(tmp_path / "parts" / path, path)
    found = scan(task("webdataset", 1, "audiovisual"), tmp_path)
    assert len(found.examples) == 2
    assert reasons(found)["stream"] == 1


def test_headers_in_a_bucket_are_read_too(tmp_path: Path) -> None:
    """Of files and of the members of shards, a few ranges of each."""
    with tarfile.open(tmp_path / "train-000.tar", "w") as tar:
        for name, content in {"a.mp4": BOTH, "b.mp4": SILENT}.items():
            for path, data in ((name, content), (name.replace("mp4", "cls"), b"0")):
                write(tmp_path / "parts", {path: data})
                tar.add(tmp_path / "parts" / path, path)
    with s3_server() as url:
        files = {f"set/train/a/{n}.mp4": BOTH if n % 3 else SILENT for n in range(6)}
        files["shards/train-000.tar"] = (tmp_path / "train-000.tar").read_bytes()
        for name, content in files.items():
            write(tmp_path / "up", {"file": content})
            open_root(url).write(name, tmp_path / "up" / "file")
        found = scan(task("imagefolder", 2, "audiovisual"), under(url, "set"))
        assert (len(found.examples), reasons(found)) == (4, {"stream": 2})
        found = scan(task("webdataset", 1, "audiovisual"), under(url, "shards"))
        assert (len(found.examples), reasons(found)["stream"]) == (1, 1)


def table(column: str = "video", struct: bool = True) -> pa.Table:
    """Six rows in groups of two as written below: with both streams, without one, without bytes, no media."""
    contents = [BOTH, SILENT, SOUND, BOTH, None, b"no media"]
    values = [{"bytes": each, "path": "x.mp4"} for each in contents] if struct else contents
    return pa.table({column: values, "label": [0, 1, 0, 1, 0, 1]})


ROWS = [
    ("both", [0, 3], {"stream": 2, "broken": 2}), ("visual", [0, 1, 3], {"stream": 1, "broken": 2}),
    ("audio", [0, 2, 3], {"stream": 1, "broken": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("streams", "kept", "problems"), ROWS)
@pytest.mark.parametrize(("column", "struct"), [("video", True), ("mp4", False)])
def test_rows_of_parquet_files_are_looked_at(
    tmp_path: Path, streams: str, kept: list[int], problems: dict[str, int], column: str, struct: bool
) -> None:
    """As files are: what lacks a stream is left out by header and named by its row."""
    pq.write_table(table(column, struct), tmp_path / "train-0.parquet", row_group_size=2)
    pq.write_table(table(column, struct).slice(0, 2), tmp_path / "test-0.parquet")
    found = scan(task("parquet", 2, "audiovisual", streams=streams), tmp_path)
    assert [e.row for e in found.examples if e.split == "train"] == kept
    assert [e.row for e in found.examples if e.split == "test"] == [row for row in kept if row < 2]
    of_train = Counter(p.kind for p in found.problems if p.where.startswith("train"))
    assert of_train == problems
    said = {problem.where: problem.reason for problem in found.problems}
    assert said["train-0.parquet:4"] == "row holds no bytes"
    assert said["train-0.parquet:5"].startswith("header: ")
    assert said.get("train-0.parquet:1", "no sound track") == "no sound track"
    assert said.get("test-0.parquet:1", "no sound track") == "no sound track"
    assert said.get("train-0.parquet:2", "no pictures") == "no pictures"


def test_a_damaged_row_group_costs_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "train-0.parquet"
    pq.write_table(table(), path, row_group_size=2, compression="none", use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset : chunk.data_page_offset + 40] = bytes([255]) * 40
    path.write_bytes(content)
    found = scan(task("parquet", 2, "audiovisual", streams="visual"), tmp_path)
    assert [e.row for e in found.examples] == [0, 1]
    said = {problem.where: problem.reason for problem in found.problems}
    assert said["train-0.parquet:2"] == said["train-0.parquet:3"] == "Parquet file is damaged"


def test_rows_of_a_table_in_a_bucket(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "train-0.parquet", row_group_size=2)
    with s3_server() as url:
        open_root(url).write("set/train-0.parquet", tmp_path / "train-0.parquet")
        found = scan(task("parquet", 2, "audiovisual"), under(url, "set"))
    assert ([e.row for e in found.examples], reasons(found)) == ([0, 3], {"stream": 2, "broken": 2})


def test_a_store_that_does_not_answer_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StoreUnavailable("the store is away")

    write(tmp_path, {"train/a/b.mp4": BOTH})
    monkeypatch.setattr(LocalRoot, "open", away)
    with pytest.raises(UserError, match="the store is away"):
        scan(task("imagefolder", 2, "audiovisual"), tmp_path)


def test_an_index_of_other_streams_is_another_index(tmp_path: Path) -> None:
    write(tmp_path / "set", {"train/a/b.mp4": BOTH, "train/a/p.mp4": SILENT})
    os.utime(tmp_path / "set/train/a", (0, 0))
    counts: list[int] = []
    for streams in ("both", "visual", "both"):
        target = tmp_path / f"{len(counts)}.parquet"
        section = task("imagefolder", 2, "audiovisual", streams=streams)
        write_task_index(section, tmp_path / "set", "t", target, tmp_path / "cache")
        counts.append(len(read_index(target).examples))
    assert counts == [1, 2, 1]


def test_videos_of_audioset_lie_in_their_own_folder(tmp_path: Path) -> None:
    classes = 'index,mid,display_name\n0,/m/a,"A"\n'
    lists = {f"{name}_segments.csv": f'{name}, 0.000, 10.000, "/m/a"\n' for name in ("balanced_train", "eval")}
    media = {f"video/{name}_segments/{name}.mp4": BOTH for name in ("balanced_train", "eval")}
    write(tmp_path, {"class_labels_indices.csv": classes, **lists, **media, "audio/eval.wav": b"RIFF"})
    found = scan(task("audioset", 1, "audiovisual", loss="sigmoid"), tmp_path)
    assert [e.path.split("/")[0] for e in found.examples] == ["video", "video"]


@needs_data
def test_the_kits_kinetics_has_sound_where_its_readme_says() -> None:
    found = scan(task("kinetics", 400, "audiovisual"), DATA_DIR / "kinetics400")
    plain = scan(task("kinetics", 400, "video"), DATA_DIR / "kinetics400")
    assert reasons(found)["stream"] == len(plain.examples) - len(found.examples) > 0


# -------------------------------------------------------------------------------- what is wrong in folders

LISTS = {
    "ucfTrainTestlist/classInd.txt": "1 A\n2 B\n",
    "ucfTrainTestlist/trainlist01.txt": "A/v_A_g01_c01.avi 1\nB/v.avi 1\n../x.avi 1\nC/v.avi 3\nA/gone.avi 1\n",
    "ucfTrainTestlist/testlist01.txt": "B/v_B_g02_c01.avi\n",
}
ESC = "filename,fold,target,category\n"
CHARADES = "id,script,actions\n"


def test_ucf101_names_bad_rows_and_finds_other_extensions(tmp_path: Path) -> None:
    write(tmp_path, {**LISTS, "UCF-101/A/v_A_g01_c01.mp4": "x", "UCF-101/B/v_B_g02_c01.avi": "x"})
    found = scan(task("ucf101", 2, "video"), tmp_path)
    assert rows(found) == [
        ("UCF-101/A/v_A_g01_c01.mp4", (0,), "train"),
        ("UCF-101/B/v_B_g02_c01.avi", (1,), "validation"),
    ]
    assert reasons(found) == {"label": 2, "broken": 1, "missing": 1}


@pytest.mark.parametrize("each", ["video", "action"])
def test_rows_of_charades_that_are_left_out_are_named(tmp_path: Path, each: str) -> None:
    """A wrong action costs its row, for the other labels alone would be a wrong set; an id counts once."""
    lines = ["id,actions", "A,c000 0 1", "A,c001 0 1;c002 0 1", "B,", "C,c000 0 1;c999 0 1", "D,c000 0 1;c1"]
    test = "id,actions\nE,c001 0 1\n"
    lists = {"Charades_v1_train.csv": "\n".join(lines) + "\n", "Charades_v1_test.csv": test}
    write(tmp_path, {**lists, **{f"videos/{name}.mp4": SILENT for name in "ABCDE"}})
    found = scan(task("charades", 157, "video", loss="sigmoid", options={"each": each}), tmp_path)
    labels = {example.key.partition("/")[0]: example.labels for example in found.examples}
    assert labels == {"A": (0,), "E": (1,), **({"B": ()} if each == "video" else {})}
    assert len(found.examples) == len(labels)
    assert [(problem.kind, problem.where, problem.reason) for problem in found.problems] == [
        ("duplicate", "Charades_v1_train.csv:3", "id 'A' occurs again; the first row is kept"),
        ("label", "Charades_v1_train.csv:5", "action 'c999 0 1' is of no class: there are 157, from c000 on"),
        ("label", "Charades_v1_train.csv:6", "malformed action 'c1'; expected such as 'c092 11.90 21.20'"),
    ]


def test_bad_rows_of_esc50_and_charades(tmp_path: Path) -> None:
    lines = "a.wav,1,0,dog\nb.wav,2,1,cat\nc.wav,2,0,cat\nd.wav,x,0,dog\n../e.wav,2,0,dog\n"
    write(tmp_path, {"meta/esc50.csv": ESC + lines, "audio/a.wav": "x", "audio/b.wav": "x", "audio/c.wav": "x"})
    found = scan(task("esc50", 2, "audio"), tmp_path)
    assert rows(found) == [("audio/a.wav", (0,), "validation"), ("audio/b.wav", (1,), "train")]
    assert reasons(found) == {"label": 2, "broken": 1}
    train = 'A,"one, two",c000 0.0 1.0;c001 0.5 2.0\nB,x,\nC,x,c999 0 1\nD,x,c000 2 1\n'
    lists = {"Charades/Charades_v1_train.csv": CHARADES + train, "Charades/Charades_v1_test.csv": CHARADES}
    write(tmp_path, {**lists, **{f"Charades_v1/{name}.mp4": "x" for name in "ABCD"}})
    found = scan(task("charades", 157, "video", loss="sigmoid"), tmp_path)
    assert [(e.key, e.labels) for e in found.examples] == [("A", (0, 1)), ("B", ()), ("D", (0,))]
    assert found.classes[156] == "c156"
    found = scan(task("charades", 157, "video", loss="sigmoid", options={"each": "action"}), tmp_path)
    assert [(e.key, e.labels) for e in found.examples] == [("A/000", (0, 1)), ("A/001", (1,))]


@pytest.mark.parametrize(
    ("layout", "files", "options", "message"),
    [
        ("ucf101", {}, {}, "classInd.txt is not there; .*archive of lists"),
        ("ucf101", LISTS, {}, "holds no folder of a class of classInd.txt"),
        ("ucf101", LISTS, {"split": 4}, "options.split=4; UCF-101 has the splits 1, 2 and 3"),
        ("ucf101", {**LISTS, "A/v.avi": "x"}, {"split": 2}, "trainlist02.txt is not there"),
        ("ucf101", LISTS, {"fold": 1}, "no such option; nearest is 'split'"),
        ("esc50", {}, {}, "meta/esc50.csv is not there"),
        ("esc50", {"meta/esc50.csv": ESC + "a.wav,1,0,dog\n"}, {"fold": 6}, "fold=6; .* has the folds 1"),
        ("esc50", {"meta/esc50.csv": ESC + "a.wav,1,3,dog\n"}, {}, "class indices must be 0..0"),
        ("charades", {}, {}, "no video in .*Charades_v1_480"),
        ("charades", {"videos/A.mp4": "x"}, {}, "Charades_v1_train.csv is not there"),
        ("charades", {}, {"each": "second"}, "allowed are 'video' and 'action'"),
        ("kinetics_sounds", {}, {}, "no usable example"),
    ],
)
def test_a_wrong_folder_says_what_is_expected(
    tmp_path: Path, layout: str, files: dict[str, str], options: dict[str, Any], message: str
) -> None:
    write(tmp_path, files)
    modality = "audio" if layout == "esc50" else "video"
    loss = "sigmoid" if layout == "charades" else "softmax"
    with pytest.raises(UserError) as caught:
        scan(task(layout, 157, modality, loss=loss, options=options), tmp_path)
    assert re.search(message, str(caught.value)), caught.value
