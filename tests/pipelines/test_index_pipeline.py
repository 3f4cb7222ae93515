"""Indexes through a real Ray: what is found, and every problem of every task at once."""

import io
import json
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from kit import task
from pipelines_kit import pair_config, scanned

import pipelines.index
from pipelines import cli
from pipelines.index import (
    RayDataSpread,
    build_indexes,
    class_notes,
    index_report,
    load_indexes,
    print_index,
    split_problems,
    task_roots,
)
from polyvit.data.index.io import Example, Problem, Scan
from polyvit.data.layouts.scanner import scan_with_stamps
from polyvit.errors import UserError


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("here_s", [0.0, 60.0])
def test_indexes_through_ray_are_those_of_a_plain_scan(
    pair_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here_s: float
) -> None:
    """All scanned by Ray, all by the driver."""
    monkeypatch.setattr("pipelines.index.HERE_S", here_s)
    given_to_ray: list[str] = []
    by_ray = pipelines.index._scan_by_ray
    monkeypatch.setattr(
        "pipelines.index._scan_by_ray",
        lambda arguments, config: given_to_ray.extend(arguments) or by_ray(arguments, config),
    )
    config = pair_config(pair_root, tmp_path)
    built, plain = build_indexes(config, tmp_path / "index"), scanned(config)
    assert dict(built.scans) == dict(plain.scans)
    assert built.digests() == plain.digests()
    again = load_indexes(config, tmp_path / "index")
    assert dict(again.scans) == dict(plain.scans)
    assert dict(again.roots) == {"shapes": pair_root / "shapes", "sounds": pair_root / "sounds"}
    assert given_to_ray == ([] if here_s else ["shapes", "sounds"])


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_problems_of_all_tasks_at_once(pair_root: Path, tmp_path: Path) -> None:
    """A class count that contradicts the data, a file that is not there, a split that is empty."""
    config = pair_config(
        pair_root, tmp_path, "tasks.shapes.num_classes=2", "tasks.sounds.options.file=none.csv",
        "tasks.good={modality: image, layout: imagefolder, num_classes: 3, steps: 1, batch: 2, eval_split: test}",
        f"tasks.good.root={pair_root}/shapes",
    )  # fmt: skip
    with pytest.raises(UserError, match="the data do not fit the config") as caught:
        build_indexes(config, tmp_path / "index")
    shapes, sounds, good = caught.value.problems
    assert shapes.startswith(f"{pair_root}/shapes has 3 classes, tasks.shapes.num_classes is 2;")
    assert "set tasks.shapes.num_classes to at least 3" in shapes
    assert sounds.startswith("tasks.sounds: ")
    assert sounds.count("tasks.sounds:") == 1
    assert "none.csv" in sounds
    assert good.startswith("tasks.good: eval_split=test is empty (found: train 24, validation 12, test 0)")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_command_and_its_json(pair_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair_config(pair_root, tmp_path)
    out, as_data = tmp_path / "index", tmp_path / "out.json"
    given = ["index", f"{tmp_path}/pair.yaml", f"storage={tmp_path}/runs", "--json", str(as_data)]
    status = cli.main([*given, "--out", str(out)])
    printed, document = capsys.readouterr(), json.loads(as_data.read_text())
    assert status == 0
    assert printed.err == ""
    row = document["tasks"]["shapes"]
    assert [row[split] for split in ("train", "validation", "test")] == [24, 12, 0]
    assert (row["classes"], row["classes_present"]) == (3, 3)
    assert len(row["hash"]) == 64
    assert sorted(p.name for p in out.iterdir()) == ["shapes.parquet", "sounds.parquet"]
    for name in ("shapes", "sounds"):
        (line,) = [line for line in printed.out.splitlines() if name in line]
        assert [cell for cell in line.split() if cell.isdigit()][:3] == ["24", "12", "0"]
        assert "scanned" in line
    first = document["tasks"]
    time.sleep(max(0.0, 2.1 - (time.time() - (out / "shapes.parquet").stat().st_mtime)))
    for flags, reused in ([], None), ([], True), (["--fresh"], False):
        assert cli.main([*given, *flags]) == 0
        document = json.loads(as_data.read_text())
        assert reused is None or {entry.pop("reused") for entry in document["tasks"].values()} == {reused}
    assert document["tasks"] == {name: {k: v for k, v in e.items() if k != "reused"} for name, e in first.items()}
    capsys.readouterr()


def test_roots(pair_root: Path, tmp_path: Path) -> None:
    config = pair_config(pair_root, tmp_path)
    assert task_roots(config) == {"shapes": pair_root / "shapes", "sounds": pair_root / "sounds"}
    own = pair_config(pair_root, tmp_path, f"tasks.sounds.root={pair_root}/shapes")
    assert task_roots(own)["sounds"] == pair_root / "shapes"


def test_all_missing_roots_at_once(pair_root: Path, tmp_path: Path) -> None:
    config = pair_config(pair_root, tmp_path, "data.root=null", f"tasks.shapes.root={tmp_path}/nowhere")
    with pytest.raises(UserError, match="data are missing:") as caught:
        task_roots(config)
    assert caught.value.problems == (
        f"tasks.shapes: {tmp_path}/nowhere is not a folder; set tasks.shapes.root to where the data are",
        "tasks.sounds: no data; give data.root=DIR (holding sounds/) or tasks.sounds.root=DIR",
    )


def test_empty_splits(pair_root: Path, tmp_path: Path) -> None:
    config = pair_config(pair_root, tmp_path)
    held = Example("a", "a", (0,), "validation")
    scans = {
        "shapes": Scan([held], ["x"], [Problem("missing", "b", "not there")]),
        "sounds": Scan([Example("a", "a", (0,), "train"), Example("b", "b", (0,), "test")], ["x"]),
    }
    assert split_problems(config, scans) == [
        "tasks.shapes: the train split is empty (found: train 0, validation 1, test 0;"
        " 1 listed examples were left out)",
        "tasks.sounds: eval_split=validation is empty (found: train 1, validation 0, test 1);"
        " set tasks.sounds.eval_split",
    ]


def test_the_report_counts_what_was_left_out(pair_root: Path, tmp_path: Path) -> None:
    config = pair_config(pair_root, tmp_path)
    indexes = scanned(config)
    problems = [Problem("missing", "a", "r"), Problem("label", "b", "s"), Problem("missing", "c", "t")]
    indexes.scans["shapes"].problems.extend(problems)
    row = index_report(indexes)["shapes"]
    assert row["left_out"] == {"missing": 2, "label": 1}
    assert row["problems"][1] == {"kind": "label", "where": "b", "reason": "s"}


def test_class_names_are_shown_and_missing_classes_said(
    pair_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = pair_config(pair_root, tmp_path)
    indexes = scanned(config)
    assert class_notes(config, indexes.scans) == []
    names = [f"[b]{n}" for n in range(12)]
    indexes.scans["shapes"] = Scan([Example("a", "a", (n,), "train") for n in range(11)], names)
    print_index(index_report(indexes))
    printed = capsys.readouterr().out
    assert "[b]0 1" in printed
    assert "[b]9 1" in printed
    assert "[b]10" not in printed
    assert "and 2 more" in printed
    (note,) = class_notes(pair_config(pair_root, tmp_path, "tasks.shapes.num_classes=12"), indexes.scans)
    assert note.startswith("tasks.shapes: only 11 of num_classes=12 classes have examples ([b]0, [b]1,")
    assert "and 1 more)" in note


@pytest.mark.parametrize("command", ["index", "plan"])
def test_fewer_classes_than_the_head_has_are_said(
    pair_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.delattr("ray.init")  # a small scan does without
    pair_config(pair_root, tmp_path)
    given = [command, f"{tmp_path}/pair.yaml", f"storage={tmp_path}/runs", "tasks.shapes.num_classes=7"]
    assert cli.main([*given, *(["--no-measure"] if command == "plan" else [])]) == 0
    assert "tasks.shapes: only 3 of num_classes=7 classes have examples" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_shards_and_headers_of_a_large_task_are_read_by_ray_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a cluster reads is what one process reads: rows, problems and stamps."""
    for number in range(5):
        with tarfile.open(tmp_path / f"train-{number:03d}.tar", "w") as tar:
            for name, content in {f"{number}.mp4": b"no video", f"{number}.cls": b"0", "x.mp4": b""}.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    shards = task("webdataset", 1, "video")
    plain, stamps = scan_with_stamps(shards, tmp_path, "clips")
    asked: list[int] = []

    class Counted(RayDataSpread):
        def __call__(self, function: Any, items: Sequence[Any]) -> Iterator[Any]:
            asked.append(len(items))
            return super().__call__(function, items)

    monkeypatch.setattr("polyvit.data.layouts.webdataset.MANY", 1)
    monkeypatch.setattr("polyvit.data.layouts.stream_check.MANY", 1)
    assert scan_with_stamps(shards, tmp_path, "clips", spread=Counted({})) == (plain, stamps)
    assert asked == [5]
    with pytest.raises(UserError, match="no usable example"):
        scan_with_stamps(task("webdataset", 1, "audiovisual"), tmp_path, "clips", spread=Counted({}))
    assert asked == [5, 5, 5]  # its headers too


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_answers_of_ray_data_come_in_order_and_errors_are_raised() -> None:
    spread = RayDataSpread({})
    assert list(spread(abs, [*range(-300, 0)])) == [*range(300, 0, -1)]
    with pytest.raises(Exception, match="bad operand"):
        list(spread(abs, ["text"]))
