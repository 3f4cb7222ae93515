"""`polyvit embed`: files here and on Ray, and a config's splits with their labels."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pipelines_kit import pair_document, scanned
from small import write_yaml
from use_kit import media, trained, write_checkpoint

from pipelines import embed
from pipelines.cli import main
from polyvit.config import load_config
from polyvit.data.decode.media_type import UNKNOWN
from polyvit.deploy.trained_model import load
from polyvit.model.polyvit import PolyViT

COLUMNS = ["path", "task", "split", "index", "label", "embedding", "error"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("model"))[0]


def test_files_and_folders_in_this_process(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    files = media(tmp_path / "media")
    (tmp_path / "more").mkdir()
    shutil.copy(files["image"], tmp_path / "more" / "b.png")
    given = [files["image"], files["page"], files["song"], tmp_path / "more"]
    out = tmp_path / "rows.parquet"
    assert main(["embed", str(checkpoint), *map(str, given), "--out", str(out)]) == 0
    table = pq.read_table(out)
    assert table.column_names == COLUMNS
    rows = table.to_pylist()
    assert [row["path"] for row in rows] == [*map(str, given[:3]), str(tmp_path / "more" / "b.png")]
    assert [row["task"] for row in rows] == ["picture", None, "sound", "picture"]
    assert [row["error"] for row in rows] == [None, UNKNOWN, None, None]
    assert rows[1]["embedding"] is None
    wanted = load(checkpoint, "cpu").embed([files["image"], files["song"]])
    np.testing.assert_allclose([rows[0]["embedding"], rows[2]["embedding"]], wanted, rtol=1e-5, atol=1e-6)
    assert rows[3]["embedding"] == rows[0]["embedding"]
    assert "4 rows, 1 of them without an embedding" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.writing"))


def test_what_is_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "o.parquet")]
    for arguments, said in [
        ([str(checkpoint), "a.png", "--out", str(tmp_path / "no" / "o.parquet")], "its folder does not exist"),
        ([str(checkpoint), "a.png", "--split", "train", *out], "go with a CONFIG; a.png is taken for a file"),
        ([str(checkpoint), "demo", "--task", "pets", *out], "--task goes with files"),
        ([str(checkpoint), "a.png", "--task", "pets", *out], "the model has no task 'pets'"),
        ([str(checkpoint), "demo", "optim.lrr=1", *out], "unknown key; did you mean"),
        ([str(checkpoint), "a.png", "--out", str(tmp_path)], "is a folder; give a file in it"),
        ([str(tmp_path), "a.png", *out], "neither a checkpoint nor a run"),
    ]:
        assert main(["embed", *arguments]) == 2, arguments
        assert said in capsys.readouterr().err
    assert not (tmp_path / "o.parquet").exists()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_many_files_on_ray_in_their_order(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = media(tmp_path / "media")
    given = [str(files[name]) for name in ("song", "image", "page", "clip", "photo")]
    assert main(["embed", str(checkpoint), *given, "--out", str(tmp_path / "here.parquet")]) == 0
    monkeypatch.setattr(embed, "HERE", 3)
    assert main(["embed", str(checkpoint), *given, "--out", str(tmp_path / "ray.parquet")]) == 0
    here, by_ray = (pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("here", "ray"))
    for one, other in zip(here, by_ray, strict=True):
        a, b = one.pop("embedding"), other.pop("embedding")
        assert one == other
        assert (a is None) == (b is None)
        np.testing.assert_allclose(b or [], a or [], rtol=1e-4, atol=1e-5)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_splits_of_a_config_with_their_labels(pair_root: Path, tmp_path: Path) -> None:
    document = {**pair_document(pair_root), "storage": str(tmp_path / "runs")}
    config = load_config(str(write_yaml(tmp_path / "pair.yaml", document)))
    checkpoint = write_checkpoint(tmp_path / "m" / "step_00000001", PolyViT(config.model, config.tasks), config)
    out = tmp_path / "pair.parquet"
    arguments = ["embed", str(checkpoint), str(tmp_path / "pair.yaml"), "--out", str(out)]
    assert main([*arguments, "--only", "shapes"]) == 0
    rows = pq.read_table(out).to_pylist()
    scan = scanned(config).scans["shapes"]
    assert {split: sum(row["split"] == split for row in rows) for split in ("train", "validation")} == {
        "train": 24, "validation": 12,
    }  # fmt: skip
    (bad,) = [row for row in rows if row["error"]]
    assert (pair_root / "shapes" / bad["path"]).read_bytes() == b"no picture"
    labels = {example.path: example.labels for example in scan.examples}
    good = [row for row in rows if not row["error"]]
    assert all(tuple(row["index"]) == labels[row["path"]] for row in good)
    assert all(row["label"] == [row["path"].split("/")[1]] for row in good)
    wanted = load(checkpoint, "cpu").embed([pair_root / "shapes" / row["path"] for row in good[:5]])
    np.testing.assert_allclose([row["embedding"] for row in good[:5]], wanted, rtol=1e-4, atol=1e-5)
    assert main([*arguments, "--split", "validation"]) == 0
    again = pq.read_table(out).to_pylist()
    assert [row["embedding"] for row in again if row["task"] == "shapes"] == [
        row["embedding"] for row in rows if row["split"] == "validation"
    ]
    assert {row["task"] for row in again} == {"shapes", "sounds"}
