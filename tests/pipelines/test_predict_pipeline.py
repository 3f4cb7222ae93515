"""`polyvit predict`: lines of JSON for a few files, Parquet parts for many."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from use_kit import media, trained

from pipelines.batch.batch_predict import PredictJob, list_files, predict_files
from pipelines.predict import _check_explain, main
from polyvit.config import load_config
from polyvit.data.decode.media_type import UNKNOWN
from polyvit.deploy.isolated_predict import IsolatedDecoder
from polyvit.deploy.predict import Predictor, Prepared
from polyvit.errors import UserError


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("model"))[0]


def test_one_line_a_file_and_status_2_where_one_failed(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(files[name]) for name in ("image", "page", "song")]
    kept = tmp_path / "answers.json"
    assert main([str(checkpoint), *given, "--top-k", "2", "--json", str(kept)]) == 2
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in lines] == given
    assert lines[1] == {"path": given[1], "error": UNKNOWN}
    assert list(lines[2]["tasks"]) == ["sound", "word"]
    assert [len(best) for best in lines[2]["tasks"].values()] == [2, 2]
    assert json.loads(kept.read_text())["answers"] == lines
    looked = tmp_path / "looked"
    assert main([str(checkpoint), given[0], "--explain", str(looked)]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"]["picture"][0].keys() == {"label", "index", "probability"}
    assert [path.suffix for path in looked.iterdir()] == [".png"]


def test_a_file_that_kills_its_decoder_costs_its_own_line(
    checkpoint: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly = files["photo"].read_bytes()

    class Fragile(IsolatedDecoder):
        def prepare(self, data: bytes, *asked: Any) -> Prepared:
            self.wait_ready()
            if data == deadly:
                os.kill(self.pid, signal.SIGSEGV)
            return super().prepare(data, *asked)

    monkeypatch.setattr("polyvit.deploy.IsolatedDecoder", Fragile)
    given = [str(files[name]) for name in ("image", "photo", "song")]
    assert main([str(checkpoint), *given]) == 2
    first, second, third = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert second == {"path": given[1], "error": "the decoder died on it (SIGSEGV)"}
    assert (first["modality"], third["modality"]) == ("image", "audio")


def test_what_is_refused(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    here = str(checkpoint)
    for given, said in [
        ([here], "give FILEs to classify"),
        ([here, "x.png", "--output", "out"], "--output goes with --input"),
        ([here, "--input", "here", "--output", "out", "--explain", "looked"], "no FILEs and no --explain"),
        ([here, "x.png", "--explain", f"{here}/state.json"], "state.json cannot be written"),
        ([here, "x.png", "--explain", "/proc/no"], "--explain /proc/no cannot be written"),
        ([here, "--input", str(tmp_path)], "a job takes --input and --output DIR"),
        ([here, "--input", "absent", "--output", "out"], "--input absent: no such file or folder"),
        ([here, "x.png", "--task", "cats"], "no task 'cats'; it has picture, clip, sound, word"),
        ([str(tmp_path), "x.png"], "neither a checkpoint nor a run with one"),
        (["models:/polyvit@champion", "x.png"], "models:/polyvit@champion cannot be fetched"),
        (["runs:/abc/model", "x.png"], "give a folder of a run or a checkpoint"),
    ]:
        assert main(given) == 2, given
        assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()  # no store is made by looking for one


def test_lists_of_files(files: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.png", "deep/a.png", ".hidden.png"):
        (folder / name).write_bytes(b"x")
    everything = [str(folder / "b.png"), str(folder / "deep" / "a.png")]
    assert list_files(str(folder)) == everything
    (folder / "list.txt").write_text("deep/a.png\n\n/abs/c.png\n")
    assert list_files(str(folder / "list.txt")) == [everything[1], "/abs/c.png"]
    (folder / "list.csv").write_text("id,file\n1,b.png\n2,007.png\n")
    (folder / "bom.txt").write_bytes(b"\xef\xbb\xbf" + (folder / "list.txt").read_bytes())
    assert list_files(str(folder / "bom.txt")) == [everything[1], "/abs/c.png"]
    assert list_files(str(folder / "list.csv"), "file") == [everything[0], str(folder / "007.png")]
    pq.write_table(pa.table({"path": ["b.png"]}), folder / "list.parquet")
    assert list_files(str(folder / "list.parquet")) == everything[:1]
    with pytest.raises(UserError, match="no column 'path', but id, file"):
        list_files(str(folder / "list.csv"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_job_loses_no_file_and_does_no_part_twice(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i, name in enumerate(["image", "page", "clip", "song", "empty", "photo", "silent"]):
        shutil.copy(files[name], folder / f"{i}-{name}")
    paths = [*list_files(str(folder)), str(folder / "absent")]
    job = PredictJob(tmp_path / "out", ("picture", "clip", "word"), top_k=2, part_size=3)
    done = predict_files(checkpoint, paths, job)
    assert done == {"files": 8, "parts": 3, "done_before": 0, "failed": 3}
    rows = [row for number in range(3) for row in pq.read_table(job.part(number)).to_pylist()]
    assert [row["path"] for row in rows] == paths
    assert [row["modality"] for row in rows] == ["image", None, "video", "audio", None, "image", "video", None]
    assert [row["error"] for row in rows] == [
        None,
        UNKNOWN,
        None,
        None,
        "the file is empty",
        None,
        None,
        "file is missing",
    ]
    assert list(rows[0]) == ["path", "modality", "error", "picture", "clip", "word"]
    here = list(Predictor.load(checkpoint).predict([Path(path) for path in paths], job.tasks, 2))
    for row, answer in zip(rows, here, strict=True):
        for task in job.tasks:
            expected = answer.get("tasks", {}).get(task)
            assert (row[task] is None) == (expected is None)
            for one, other in zip(row[task] or [], expected or [], strict=True):
                assert (one["label"], one["index"]) == (other["label"], other["index"])
                assert one["probability"] == pytest.approx(other["probability"], abs=1e-6)

    first, last = job.part(0).stat().st_mtime_ns, job.part(2).stat().st_mtime_ns
    middle = pq.read_table(job.part(1), columns=["path", "modality", "error"])
    job.part(1).unlink()
    assert predict_files(checkpoint, paths, job)["done_before"] == 2
    assert (job.part(0).stat().st_mtime_ns, job.part(2).stat().st_mtime_ns) == (first, last)
    assert pq.read_table(job.part(1), columns=["path", "modality", "error"]) == middle
    with pytest.raises(UserError, match="holds another job: input, files differ"):
        predict_files(checkpoint, paths[:-1], job)
    with pytest.raises(UserError, match="top_k differ"):
        predict_files(checkpoint, paths, PredictJob(job.output, job.tasks, top_k=3, part_size=3))


def test_a_model_that_attends_to_no_patches_is_not_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.kind=avbert has CNNs before its transformer"):
        _check_explain(load_config("avbert-esc50", []), tmp_path / "looked")
    assert not (tmp_path / "looked").exists()
