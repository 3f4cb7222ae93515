"""Data that would take for ever or fill the memory: bounded, named, and the rest of the data set is used."""

import io
import os
import resource
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kit import task, write

from polyvit.data.index import Example, finish_scan, write_index
from polyvit.data.index import io as index_io
from polyvit.data.layouts.scanner import scan
from polyvit.data.layouts.scanning.context import DEEPEST, MOST_LINKS

FILES = {f"train/{name}/{n}.jpg": "x" for name in "ab" for n in range(4)}
CARVED_NOT = {"validation_fraction": 0.0}


def test_very_many_nested_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, FILES)
    monkeypatch.chdir(tmp_path / "train/a")
    for _ in range(1200):
        Path("d").mkdir()
        os.chdir("d")
    Path("deep.jpg").write_text("x")
    os.chdir(tmp_path)
    result = scan(task("imagefolder", options=CARVED_NOT), tmp_path)
    subprocess.run(["rm", "-rf", tmp_path / "train/a/d"], check=True)  # shutil, and so pytest, cannot
    assert sorted(example.path for example in result.examples) == sorted(FILES)
    (problem,) = result.problems
    assert problem.reason == f"more than {DEEPEST} folders in each other; what is further down is left out"
    assert problem.where.count("/d") == DEEPEST


def test_folders_that_link_to_each_other(tmp_path: Path) -> None:
    """Six folders with links to the other five have 1,956 paths, ten have ten million."""
    write(tmp_path, FILES)
    for i in range(6):
        write(tmp_path, {f"train/a/f{i}/x.jpg": "x"})
        for j in range(6):
            if i != j:
                (tmp_path / f"train/a/f{i}/l{j}").symlink_to(tmp_path / f"train/a/f{j}")
    began = time.process_time()
    result = scan(task("imagefolder", options=CARVED_NOT), tmp_path)
    assert time.process_time() - began < 5
    assert set(FILES) < {example.path for example in result.examples}
    assert len(result.examples) <= len(FILES) + 6 * MOST_LINKS
    assert {problem.reason for problem in result.problems} == {
        f"links lead to this folder more than {MOST_LINKS} times; further ones are left out"
    }


def shard(folder: Path) -> Path:
    """Three samples."""
    path = folder / "train-0.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for i in range(3):
            for name, content in ((f"{i}.jpg", b"x"), (f"{i}.cls", b"%d" % (i % 2))):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def insert(path: Path, *headers: tuple[bytes, int], follows: bytes = b"") -> None:
    """Headers of a type and size after the three samples."""
    content, after = path.read_bytes(), b""
    for kind, size in headers:
        header = tarfile.TarInfo("././@LongLink")
        header.type, header.size = kind, size
        after += header.tobuf(tarfile.GNU_FORMAT) + follows
    path.write_bytes(content[: 6 * 1024] + after + content[6 * 1024 :])


def claims_gigabytes(path: Path) -> None:
    insert(path, (b"L", 8 << 30))
    with path.open("r+b") as file:  # and has them: nothing but a hole on the disk
        file.truncate(9 << 30)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (claims_gigabytes, "a header claims 8,589,934,592 bytes"),
        (lambda path: insert(path, (b"x", 3 << 30)), "a header claims 3,221,225,472 bytes"),
        (lambda path: insert(path, *[(b"L", 4)] * 1500, follows=b"abc".ljust(512, b"\0")), "recursion depth"),
    ],
)
def test_headers_of_a_shard_that_claim_much(tmp_path: Path, damage: Callable[[Path], None], reason: str) -> None:
    damage(shard(tmp_path))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = scan(task("webdataset", 2), tmp_path)
    assert len(result.examples) == 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    (problem,) = result.problems
    assert problem.where == "train-0.tar"
    assert problem.reason.startswith("damaged after 6 members: ")
    assert reason in problem.reason


def test_an_index_of_a_shard_that_claims_more_than_the_shard_can_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shard(tmp_path)
    examples = [Example(f"{i}", path.name, (0,), "train", "tar", offset=512, length=1) for i in range(2000)]
    write_index(finish_scan(examples, ["a", "b"], []), path.with_name("train-0.tar.index"), {"bytes": 10240})
    result = scan(task("webdataset", 2), tmp_path)
    assert len(result.examples) == 3
    assert [problem.reason for problem in result.problems] == ["not a readable index; the shard itself was read"]
    # Few rows, each of which unpacks to a megabyte.
    large = [
        Example(f"{i}" + "x" * 2**20, path.name, (0,), "train", "tar", offset=512, length=1) for i in range(4)
    ]
    write_index(finish_scan(large, ["a", "b"], []), path.with_name("train-0.tar.index"), {"bytes": 10240})
    monkeypatch.setattr(index_io, "_read", lambda *_: pytest.fail("it was unpacked"))
    assert len(scan(task("webdataset", 2), tmp_path).examples) == 3
