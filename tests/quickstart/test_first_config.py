"""`polyvit init`: what is recognised, what is written, what is refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit import DATA_DIR, needs_data, write

import polyvit
from pipelines.cli import main
from polyvit.config import load_config
from polyvit.data.layouts import scan, split_problems, task_roots
from polyvit.errors import UserError
from polyvit.quickstart.first_config import FirstConfig, init
from polyvit.synthetic.media import encode_image
from polyvit.synthetic.write import write_example_pair

PNG = encode_image(np.zeros((4, 4, 3), np.uint8), "PNG")


def scans_as_written(first: FirstConfig) -> None:
    """The config reads, and its data are those that were announced, ready to train and evaluate on."""
    config = load_config(str(first.path))
    roots = task_roots(config)
    scans = {name: scan(task, roots[name], name) for name, task in config.tasks.items()}
    assert {name: each.counts() for name, each in scans.items()} == {n: g.counts for n, g in first.tasks.items()}
    assert not split_problems(config, scans)


def test_the_tutorials_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_example_pair(tmp_path / "pair")
    (tmp_path / "pair" / "notes").mkdir()
    (tmp_path / "pair" / "notes" / "todo.md").write_text("buy milk")
    out, told = tmp_path / "mine.yaml", tmp_path / "told.json"
    assert main(["init", str(tmp_path / "pair"), "--out", str(out), "--json", str(told)]) == 0
    config = load_config(str(out))
    shapes, sounds = config.tasks["shapes"], config.tasks["sounds"]
    assert (shapes.modality, shapes.layout, shapes.num_classes, shapes.batch) == ("image", "imagefolder", 3, 24)
    assert (sounds.modality, sounds.layout, sounds.num_classes) == ("audio", "csv", 3)
    assert config.model.width == 128  # tiny-nine's
    text = out.read_text()
    assert "# image, imagefolder; 24 train, 12 validation; 3 classes: circle; square; triangle" in text
    assert "# Not recognised: " in text
    assert max(map(len, text.splitlines())) < 400
    (unknown,) = json.loads(told.read_text())["not_recognised"]
    assert "notes: no media that are read (1 .md), in no layout that is known. Arrange them as train/" in unknown
    shown = " ".join(capsys.readouterr().out.split())
    assert "not recognised " in shown
    assert f"plan {out}" in shown
    assert main(["init", str(tmp_path / "pair"), "--out", str(out)]) == 2
    assert "exists, and is left as it is" in capsys.readouterr().err


def test_tables_as_people_have_them(tmp_path: Path) -> None:
    names = [f"{i:02d}.png" for i in range(24)]
    pictures = {f"birds/img/{name}": PNG for name in names}
    rows = [
        f"{name};{'owl' if i % 2 else 'wren'};{'train' if i < 18 else 'valid'}" for i, name in enumerate(names)
    ]
    scenes = {f"scenes/{name}": PNG for name in names}
    tags = [f"{name}\t{'sea|sky' if i % 3 else 'sky'}" for i, name in enumerate(names)]
    write(
        tmp_path,
        {**pictures, **scenes, "birds/meta.csv": "\n".join(["filename;species;fold", *rows]),
         "scenes/list.tsv": "\n".join(["file\ttags", *tags])},
    )  # fmt: skip
    first = init(tmp_path, out=tmp_path / "mine.yaml")
    assert first.tasks["birds"].options == {
        "file": "meta.csv", "folder": "img", "path_column": "filename", "label_column": "species",
        "split_column": "fold", "delimiter": ";",
    }  # fmt: skip
    assert first.tasks["birds"].counts == {"train": 18, "validation": 6, "test": 0}
    scene = load_config(str(first.path)).tasks["scenes"]
    assert (scene.loss, scene.metric, scene.num_classes, scene.options["label_separator"]) == (
        "sigmoid",
        "map",
        2,
        "|",
    )
    scans_as_written(first)


def test_a_data_set_itself_parquet_files_and_names_that_are_taken(tmp_path: Path) -> None:
    for i in range(30):
        write(tmp_path, {f"pets/{'ab'[i % 2]}/{i}.png": PNG})
    rows = {"image": [{"bytes": PNG, "path": None}] * 20, "label": [i % 4 for i in range(20)]}
    (tmp_path / "values").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "values" / "train-00000-of-00001.parquet")
    first = polyvit.init(tmp_path / "pets", tmp_path / "values", out=tmp_path / "own.yaml")
    assert {name: (guess.layout, guess.num_classes) for name, guess in first.tasks.items()} == {
        "pets_task": ("imagefolder", 2),  # pets itself is a known data set of 37 classes
        "values_task": ("parquet", 4),  # a module's name in PyTorch
    }
    assert load_config(str(first.path)).tasks["pets_task"].licence is None
    assert "values_task: image, parquet; " in repr(first)
    scans_as_written(first)


def test_what_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"flat/a.png": PNG, "flat/b.png": PNG, "file.txt": "x", "old.yml": "x"})
    (tmp_path / "empty").mkdir()
    for folder, reason in [
        (
            "flat",
            "no data set was recognised, and no config is written:\n.*2 image files, in no layout that is known",
        ),
        ("empty", "no files; nothing to train on"),
        ("absent", "absent is not there; give a folder of data"),
        ("file.txt", "a file; give the folder that it lies in"),
    ]:
        with pytest.raises(UserError, match=reason):
            init(tmp_path / folder, out=tmp_path / "mine.yaml")
    with pytest.raises(UserError, match="init looks at folders of this machine"):
        init("s3://bucket/data", out=tmp_path / "mine.yaml")
    with pytest.raises(UserError, match=r"a config's name ends in .yaml"):
        init(tmp_path / "flat", out=tmp_path / "mine.txt")
    with pytest.raises(UserError, match="exists, and is left as it is"):
        init(tmp_path / "flat", out=tmp_path / "old.yml")
    with pytest.raises(UserError, match="give one or more folders"):
        init(out=tmp_path / "mine.yaml")
    assert not (tmp_path / "mine.yaml").exists()


@needs_data
def test_the_nine_data_sets_are_known_by_their_own_lists(tmp_path: Path) -> None:
    layouts = {
        "imagenet": "imagenet", "cifar10": "cifar10", "cifar100": "cifar100", "pets": "pets",
        "resisc45": "resisc45", "kinetics400": "kinetics", "moments_in_time": "moments", "audioset": "audioset",
        "vggsound": "vggsound",
    }  # fmt: skip
    first = init(*(DATA_DIR / name for name in layouts), out=tmp_path / "nine.yaml")
    assert {name: guess.layout for name, guess in first.tasks.items()} == layouts
    assert not first.unknown
    assert [name for name, guess in first.tasks.items() if guess.multi_label] == ["audioset"]
    assert first.tasks["audioset"].num_classes == 527
    scans_as_written(first)
