"""An index is made again when anything that it was made of has changed, and only then."""

import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit import task, write

from polyvit.data.index.io import read_index
from polyvit.data.layouts import index_cache, webdataset
from polyvit.data.layouts.index_cache import write_task_index
from polyvit.data.layouts.scanner import scan
from polyvit.errors import UserError


@pytest.fixture(autouse=True)
def _no_clock_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a test are seconds younger than what may be trusted."""
    monkeypatch.setattr("polyvit.storage.local.RECENT_NS", 0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {f"{split}/{name}/{n}.jpg": "x" for split in ("train", "val") for name in "ab" for n in range(3)}
    return write(tmp_path / "data", files)


def index(root: Path, target: Path, **keys: Any) -> bool:
    return write_task_index(task("imagefolder", **keys), root, "pix", target, target.parent / "cache")


def test_a_second_run_reads_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "t.parquet"
    assert not index(root, target)
    expected = read_index(target)
    target.unlink()
    monkeypatch.setattr(index_cache, "scan_with_stamps", None)
    assert index(root, target)
    assert read_index(target) == expected == scan(task("imagefolder"), root)
    assert [path.name[:4] for path in (tmp_path / "cache").iterdir()] == ["pix-"]


CHANGES: dict[str, Callable[[Path], Any]] = {
    "a new file": lambda root: write(root, {"train/a/9.jpg": "x"}),
    "a file gone": lambda root: (root / "val/b/0.jpg").unlink(),
    "a new class": lambda root: write(root, {"train/c/9.jpg": "x"}),
    "a file renamed": lambda root: (root / "val/b/0.jpg").rename(root / "val/b/7.jpg"),
    "a folder replaced by an equal one": lambda root: (root / "val/b").rename(root / "old") and (
        write(root, {f"val/b/{n}.jpg": "x" for n in range(3)})
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(root: Path, tmp_path: Path, change: str) -> None:
    index(root, tmp_path / "t.parquet")
    CHANGES[change](root)
    assert not index(root, tmp_path / "t.parquet")
    assert read_index(tmp_path / "t.parquet") == scan(task("imagefolder"), root)
    assert index(root, tmp_path / "t.parquet")


def test_a_list_that_is_edited_in_place_is_read_again(tmp_path: Path) -> None:
    rows = "path,label,split\na.jpg,x,train\nb.jpg,y,val\n"
    root = write(tmp_path / "data", {"data.csv": rows, "a.jpg": "1", "b.jpg": "2"})
    config, cache = task("csv", 2), tmp_path / "cache"

    def run() -> bool:
        return write_task_index(config, root, "pix", tmp_path / "t.parquet", cache)

    assert [run(), run()] == [False, True]
    with (root / "data.csv").open("r+") as file:
        file.write(rows.replace("b.jpg,y,val", "b.jpg,x,val"))
    assert not run()
    assert read_index(tmp_path / "t.parquet").classes == ["x"]


def test_other_settings_are_another_index(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "t.parquet"
    index(root, target)
    write(tmp_path, {"names.txt": "b\na\n"})
    assert not index(root, target, options={"validation_fraction": 0.2})
    assert not index(root, target, classes=str(tmp_path / "names.txt"))
    assert read_index(target).classes == ["b", "a"]
    write(tmp_path, {"names.txt": "a\nb\n"})
    assert not index(root, target, classes=str(tmp_path / "names.txt"))
    assert index(root, target)


def test_one_new_shard_costs_no_walk_through_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = tmp_path / "data", tmp_path / "cache"
    root.mkdir()

    def shard(number: int, label: str) -> None:
        with tarfile.open(root / f"train-{number}.tar", "w") as tar:
            for name, content in ((f"{number}.jpg", "x"), (f"{number}.cls", label), ("lone.txt", "?")):
                (tmp_path / "member").write_text(content)
                tar.add(tmp_path / "member", name)

    walked: list[str] = []
    real = webdataset._samples
    monkeypatch.setattr(
        webdataset, "_samples", lambda part, name, file: walked.append(name) or real(part, name, file)
    )
    config = task("webdataset", options={"labels": "name"})
    shard(0, "cat")
    shard(1, "dog")
    for changed, expected in ((None, ["train-0.tar", "train-1.tar"]), (2, ["train-2.tar"]), (1, ["train-1.tar"])):
        walked.clear()
        if changed is not None:
            shard(changed, "ant")
        assert not write_task_index(config, root, "pix", tmp_path / "t.parquet", cache)
        assert walked == expected
        assert read_index(tmp_path / "t.parquet") == scan(config, root)
        walked.clear()
    assert read_index(tmp_path / "t.parquet").classes == ["ant", "cat"]


def test_what_is_still_changing_is_not_trusted(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyvit.storage.local.RECENT_NS", 10**12)
    assert [index(root, tmp_path / "t.parquet") for _ in range(2)] == [False, False]


def test_what_cannot_be_scanned_is_not_taken_from_the_cache(root: Path, tmp_path: Path) -> None:
    index(root, tmp_path / "t.parquet")
    root.rename(tmp_path / "away")
    with pytest.raises(UserError, match="is not there"):
        index(root, tmp_path / "t.parquet")


def test_a_damaged_or_unwritable_cache_costs_a_scan(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "t.parquet"
    index(root, target)
    (kept,) = (tmp_path / "cache").iterdir()
    kept.unlink()
    kept.write_bytes(b"PAR1 not")
    assert not index(root, target)
    assert index(root, target)
    write(tmp_path / "other", {"cache": "a file where the folder should be"})
    assert not index(root, tmp_path / "other" / "t.parquet")
    assert read_index(tmp_path / "other" / "t.parquet") == read_index(target)


def test_runs_at_the_same_time_do_not_disturb_each_other(root: Path, tmp_path: Path) -> None:
    wrong: list[BaseException] = []

    def run(number: int) -> None:
        try:
            for _ in range(10):
                target = tmp_path / f"run{number}" / "t.parquet"
                write_task_index(task("imagefolder"), root, "pix", target, tmp_path / "cache")
                assert len(read_index(target).examples) == 12
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_cache_keeps_the_latest_used(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_cache, "KEPT", 2)
    for fraction in (0.1, 0.2, 0.3):
        index(root, tmp_path / "t.parquet", options={"validation_fraction": fraction})
    assert len(list((tmp_path / "cache").iterdir())) == 2
