"""Every layout on the real kit: what the scan finds against the kit's own lists and folders.

Nothing here knows this kit's counts: another kit of the same layouts may be in its place.
"""

import csv
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import DATA_DIR, in_kit, needs_data
from pydantic import TypeAdapter

from polyvit.config import TaskConfig
from polyvit.config.paper_tasks import PAPER_TASKS
from polyvit.data.index.io import Problem, Scan
from polyvit.data.layouts.scanner import scan
from polyvit.data.loading.reader import load
from polyvit.errors import UserError

pytestmark = needs_data
TASK: TypeAdapter[TaskConfig] = TypeAdapter(TaskConfig)
LABELS = "broken/labels"


def paper_scan(name: str, root: Path | None = None, **keys: Any) -> Scan:
    return scan(TASK.validate_python({**PAPER_TASKS[name], **keys}), root or DATA_DIR / name, name)


def read(path: Path, skip: str = "#") -> list[list[str]]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return list(csv.reader((line for line in lines if not line.startswith(skip)), skipinitialspace=True))


def stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.rglob("*.*")}


def by_split(result: Scan) -> dict[str, set[str]]:
    return {split: {e.path for e in result.examples if e.split == split} for split in result.counts()}


@pytest.mark.parametrize("name", list(PAPER_TASKS))
def test_every_example_loads_and_labels_are_in_range(name: str) -> None:
    result = paper_scan(name)
    assert result.examples
    assert len({example.key for example in result.examples}) == len(result.examples)
    assert all(0 <= label < len(result.classes) for example in result.examples for label in example.labels)
    for example in result.examples[:: max(1, len(result.examples) // 20)]:
        assert len(load(example, DATA_DIR / name)) > 0


def test_imagenet() -> None:
    result = paper_scan("imagenet")
    root = DATA_DIR / "imagenet"
    wnids = [line.split()[0] for line in (root / "LOC_synset_mapping.txt").read_text().splitlines()]
    for example in result.examples:
        assert wnids[example.labels[0]] == example.path.split("/")[1]
    on_disk = {path.relative_to(root).as_posix() for path in root.glob("*/*/*.JPEG")}
    assert {example.path for example in result.examples} == on_disk
    assert by_split(result)["test"] == {path for path in on_disk if path.startswith("val/")}
    assert result.problems == []


@pytest.mark.parametrize(
    ("name", "folder", "key", "tests"),
    [
        ("cifar10", "cifar-10-batches-py", "labels", "test_batch"),
        ("cifar100", "cifar-100-python", "fine_labels", "test"),
    ],
)
def test_cifar_labels_and_pixels(name: str, folder: str, key: str, tests: str) -> None:
    result = paper_scan(name)
    files = {example.path.rpartition("/")[2] for example in result.examples}
    batches = {
        file: pickle.loads((DATA_DIR / name / folder / file).read_bytes(), encoding="latin1") for file in files
    }
    assert len(result.examples) == sum(len(batch[key]) for batch in batches.values())
    for number, example in enumerate(result.examples):
        batch = batches[example.path.rpartition("/")[2]]
        assert example.labels == (batch[key][example.row],)
        assert (example.split == "test") == example.path.endswith(f"/{tests}")
        if number % 100 == 0:
            pixels = load(example, DATA_DIR / name)
            assert isinstance(pixels, np.ndarray)
            expected = batch["data"][example.row].reshape(3, 32, 32).transpose(1, 2, 0)
            np.testing.assert_array_equal(pixels, expected)


def test_pets() -> None:
    result = paper_scan("pets")
    lists = {
        split: {f"images/{image}.jpg": int(class_id) - 1 for image, class_id, *_ in map(str.split, lines)}
        for split in ("trainval", "test")
        if (lines := (DATA_DIR / "pets" / "annotations" / f"{split}.txt").read_text().splitlines())
    }
    splits = by_split(result)
    assert splits["test"] == set(lists["test"])
    assert splits["train"] | splits["validation"] == set(lists["trainval"])
    for example in result.examples:
        assert example.labels == ((lists["trainval"] | lists["test"])[example.path],)
        assert example.path.startswith(f"images/{result.classes[example.labels[0]]}_")


def test_resisc45() -> None:
    result = paper_scan("resisc45")
    for split, short in (("train", "train"), ("validation", "val"), ("test", "test")):
        listed = (DATA_DIR / "resisc45" / f"resisc45-{short}.txt").read_text().split()
        assert {path.rpartition("/")[2] for path in by_split(result)[split]} == set(listed)
    assert all(result.classes[e.labels[0]] == e.path.split("/")[1] for e in result.examples)


def expected_kinetics(root: Path, name: str, flat: bool = False) -> dict[str, str]:
    """{path: label} of the rows of one list whose clip is on disk."""
    rows_by_key = {}
    for label, ytid, start, end, split in read(root / f"{name}.csv")[1:]:
        file = f"{ytid}_{int(start):06d}_{int(end):06d}.mp4"
        path = f"{split}/{file}" if flat else f"{split}/{label}/{file}"
        if (root / path).is_file():
            rows_by_key[path] = label
    return rows_by_key


def test_kinetics() -> None:
    result, root = paper_scan("kinetics400"), DATA_DIR / "kinetics400"
    for split, name in (("train", "train"), ("validation", "val")):
        expected = expected_kinetics(root, name)
        assert {e.path: result.classes[e.labels[0]] for e in result.split(split)} == expected  # type: ignore[arg-type]
        missing = [problem for problem in result.problems if problem.where.startswith(f"{name}/")]
        assert {problem.kind for problem in missing} <= {"missing"}
        assert len(missing) == len(read(root / f"{name}.csv")) - 1 - len(expected)
    assert result.classes == sorted({row[0] for row in read(root / "train.csv")[1:]})


def test_kinetics_flat(tmp_path: Path) -> None:
    root = in_kit("extras/kinetics400_flat")
    with pytest.raises(UserError, match=r"train\.csv is missing or empty"):
        paper_scan("kinetics400", root)
    classes = paper_scan("kinetics400").classes
    (tmp_path / "names.txt").write_text("\n".join(classes))
    result = paper_scan("kinetics400", root, classes=str(tmp_path / "names.txt"))
    assert {e.path: classes[e.labels[0]] for e in result.examples} == expected_kinetics(root, "val", flat=True)
    assert result.counts()["validation"] == len(result.examples) > 0


def test_moments() -> None:
    result, root = paper_scan("moments_in_time"), DATA_DIR / "moments_in_time"
    for split, file, folder in (
        ("train", "trainingSet", "training"),
        ("validation", "validationSet", "validation"),
    ):
        expected = {f"{folder}/{row[0]}": row[1] for row in read(root / f"{file}.csv")}
        assert {e.path: result.classes[e.labels[0]] for e in result.split(split)} == {  # type: ignore[arg-type]
            path: label for path, label in expected.items() if (root / path).is_file()
        }


def test_audioset() -> None:
    result, root = paper_scan("audioset"), DATA_DIR / "audioset"
    mids = {row[1]: int(row[0]) for row in read(root / "class_labels_indices.csv")[1:]}
    for split, name in (("train", "balanced_train_segments"), ("validation", "eval_segments")):
        on_disk, listed = stems(root / "audio" / name), read(root / f"{name}.csv")
        expected = {
            row[0]: tuple(sorted(mids[mid] for mid in row[3].split(","))) for row in listed if row[0] in on_disk
        }
        assert {e.key.rpartition("/")[2]: e.labels for e in result.split(split)} == expected  # type: ignore[arg-type]
        missing = [problem for problem in result.problems if f"/{name}/" in problem.where]
        assert len(missing) == len(listed) - len(expected)
    assert any(len(example.labels) > 1 for example in result.examples)


def test_vggsound() -> None:
    result, root = paper_scan("vggsound"), DATA_DIR / "vggsound"
    on_disk, listed = stems(root / "audio"), read(root / "vggsound.csv")
    for split, word in (("train", "train"), ("validation", "test")):
        expected = {f"{row[0]}_{int(row[1]):06d}": row[2] for row in listed if row[3] == word}
        assert {e.key: result.classes[e.labels[0]] for e in result.split(split)} == {  # type: ignore[arg-type]
            key: label for key, label in expected.items() if key in on_disk
        }
    assert len(result.problems) == len(listed) - len(result.examples)


def test_imagenet_as_webdataset_has_the_labels_of_the_folders() -> None:
    root = in_kit("extras/imagenet_wds")
    result = paper_scan("imagenet", root, layout="webdataset")
    lines = (DATA_DIR / "imagenet" / "LOC_synset_mapping.txt").read_text().splitlines()
    wnids = [line.split()[0] for line in lines]
    assert result.problems == []
    assert {e.split for e in result.examples} == {"train", "validation"}
    for example in result.examples[::7]:
        content = load(example, root)
        assert isinstance(content, bytes)
        assert (content[:2], content[-2:]) == (b"\xff\xd8", b"\xff\xd9")
        (label,) = example.labels
        assert wnids[label] == example.key.rpartition("/")[2].partition("_")[0]


# ------------------------------------------------------------------------------------- the broken label files


def copied(name: str, tmp_path: Path, **lists: str) -> Path:
    """A task's folder with some lists replaced by files of broken/labels; media are links to the kit's."""
    root = tmp_path / name
    shutil.copytree(DATA_DIR / name, root, symlinks=True, copy_function=lambda a, b: Path(b).symlink_to(a))
    for target, broken in lists.items():
        path = root / target.replace("__", "/")
        path.unlink()
        path.write_bytes(in_kit(f"{LABELS}/{broken}").read_bytes())
    return root


def with_classes(tmp_path: Path, name: str) -> dict[str, str]:
    (tmp_path / "names.txt").write_text("\n".join(paper_scan(name).classes))
    return {"classes": str(tmp_path / "names.txt")}


@pytest.mark.parametrize(
    ("broken", "reason"),
    [("kinetics_unknown_label.csv", "unknown label"), ("kinetics_empty_label.csv", "empty label")],
)
def test_kinetics_bad_label_of_the_last_row(tmp_path: Path, broken: str, reason: str) -> None:
    keys = with_classes(tmp_path, "kinetics400")
    result = paper_scan("kinetics400", copied("kinetics400", tmp_path, **{"train.csv": broken}), **keys)
    rows = in_kit(f"{LABELS}/{broken}").read_text().splitlines()
    (problem,) = [problem for problem in result.problems if problem.kind == "label"]
    assert problem.where == f"train.csv:{len(rows)}"
    assert problem.reason.startswith(reason)
    assert result.counts()["train"] == len(rows) - 2


def test_kinetics_byte_order_mark_and_quoted_comma(tmp_path: Path) -> None:
    keys = with_classes(tmp_path, "kinetics400")
    root = copied("kinetics400", tmp_path, **{"train.csv": "kinetics_bom_crlf.csv"})
    result = paper_scan("kinetics400", root, **keys)
    assert result.counts()["train"] == len(read(in_kit(f"{LABELS}/kinetics_bom_crlf.csv"))) - 1
    quoted = in_kit(f"{LABELS}/kinetics_quoted_comma.csv")
    shutil.copy(quoted, root / "train.csv")
    (label, ytid, start, end, _) = read(quoted)[1]
    clip = root / "train" / label / f"{ytid}_{int(start):06d}_{int(end):06d}.mp4"
    clip.parent.mkdir()
    clip.write_bytes(b"x")
    result = paper_scan("kinetics400", root)
    assert result.classes == [label]
    assert [e.path for e in result.split("train")] == [clip.relative_to(root).as_posix()]


def test_moments_unknown_label(tmp_path: Path) -> None:
    root = copied("moments_in_time", tmp_path, **{"trainingSet.csv": "moments_unknown_label.csv"})
    result = paper_scan("moments_in_time", root)
    rows = read(in_kit(f"{LABELS}/moments_unknown_label.csv"))
    assert Problem("label", f"trainingSet.csv:{len(rows)}", f"unknown label {rows[-1][1]!r}") in result.problems
    assert {e.path for e in result.split("train")} == {f"training/{row[0]}" for row in rows[:-1]}


@pytest.mark.parametrize("broken", ["unknown_mid", "duplicate_ytid", "no_comment_lines"])
def test_audioset_lists(tmp_path: Path, broken: str) -> None:
    file = in_kit(f"{LABELS}/audioset_{broken}.csv")
    result = paper_scan("audioset", copied("audioset", tmp_path, **{"eval_segments.csv": file.name}))
    rows, lines = read(file), file.read_text().splitlines()
    good = rows if broken == "no_comment_lines" else rows[:-1]
    assert {e.key for e in result.split("validation")} == {f"eval_segments/{row[0]}" for row in good}
    problems = [p for p in result.problems if "eval_segments" in p.where]
    if broken == "unknown_mid":
        assert [(p.kind, p.where) for p in problems] == [("label", f"eval_segments.csv:{len(lines)}")]
    else:
        assert [p.kind for p in problems] == (["duplicate"] if broken == "duplicate_ytid" else [])


def test_vggsound_unquoted_comma(tmp_path: Path) -> None:
    root = copied("vggsound", tmp_path, **{"vggsound.csv": "vggsound_unquoted_comma.csv"})
    result = paper_scan("vggsound", root)
    lines = in_kit(f"{LABELS}/vggsound_unquoted_comma.csv").read_text().splitlines()
    assert [(p.kind, p.where) for p in result.problems] == [("label", f"vggsound.csv:{len(lines)}")]
    assert len(result.examples) == len(lines) - 1


def test_pets_class_38(tmp_path: Path) -> None:
    root = copied("pets", tmp_path, **{"annotations__trainval.txt": "pets_class_38.txt"})
    result = paper_scan("pets", root)
    lines = in_kit(f"{LABELS}/pets_class_38.txt").read_text().splitlines()
    where = f"annotations/trainval.txt:{len(lines)}"
    assert result.problems == [Problem("label", where, "class id 38; allowed are 1..37")]
    assert result.counts()["train"] + result.counts()["validation"] == len(lines) - 1


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("data_batch_truncated", "cut or damaged"),
        ("data_batch_corrupt", "cut or damaged"),
        ("data_batch_length_mismatch", r"\d+ labels, \d+ images"),
        ("data_batch_label_out_of_range", r"label 10 at row \d+; classes are 0\.\.9"),
        ("data_batch_calls_code", r"names __builtin__\.print|names builtins\.print"),
    ],
)
def test_broken_cifar10_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str, message: str
) -> None:
    root = copied("cifar10", tmp_path)
    target = root / "cifar-10-batches-py" / "data_batch_2"
    target.unlink()
    target.symlink_to(in_kit(f"broken/pickles/{broken}"))
    with pytest.raises(UserError, match=f"data_batch_2: .*({message})"):
        paper_scan("cifar10", root)
    assert capsys.readouterr().out == ""  # the hostile pickle prints when its code runs


def test_broken_cifar100_batch(tmp_path: Path) -> None:
    root = copied("cifar100", tmp_path)
    (root / "cifar-100-python" / "test").unlink()
    (root / "cifar-100-python" / "test").symlink_to(in_kit("broken/pickles/cifar100_no_fine_labels"))
    with pytest.raises(UserError, match=r"test: has no 'fine_labels'; it has .*coarse_labels"):
        paper_scan("cifar100", root)
