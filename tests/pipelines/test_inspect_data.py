"""`polyvit inspect` on a real Ray: what it finds, what it leaves, and that a sample is the same every time."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pipelines_kit import pair_document, scanned
from small import write_yaml

from pipelines import cli, inspect
from pipelines.batch.inspect_job import choose_examples, chunks
from polyvit.config import load_config
from polyvit.reports.inspect.examine import MediaInfo
from polyvit.reports.inspect.task_report import ExampleReport, report_task

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def sick_root(pair_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pair (with its broken picture), a black picture and a leak."""
    root = tmp_path_factory.mktemp("sick") / "data"
    shutil.copytree(pair_root, root)
    first, *_ = sorted((root / "shapes" / "train").iterdir())
    second = sorted((root / "shapes" / "val" / first.name).iterdir())[0]
    shutil.copy(second, first / "leaked.png")
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(first / "black.png")
    return root


def inspected(root: Path, folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON."""
    config = write_yaml(folder / "pair.yaml", pair_document(root) | {"storage": str(folder / "runs")})
    as_data = folder / "i.json"
    status = cli.main(["inspect", str(config), "--out", str(folder / "out"), *arguments, "--json", str(as_data)])
    return status, json.loads(as_data.read_text())


@pytest.mark.slow
def test_the_doctor_finds_everything_and_leaves_a_page(
    sick_root: Path, tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    status, document = inspected(sick_root, tmp_path, "--all")
    assert status == 0
    findings = {(f["task"], f["kind"]): f for f in document["findings"]}
    leak = findings["shapes", "leak"]
    assert leak["severity"] == "error"
    assert "train: train/" in leak["examples"][0]
    assert "leaked.png" in leak["examples"][0]
    assert findings["shapes", "one colour"]["examples"][0].endswith("black.png")
    assert "cannot identify image file" in findings["shapes", "broken"]["examples"][0]
    shapes = document["tasks"]["shapes"]
    assert shapes["decoded"] == shapes["train"] + shapes["validation"] + shapes["test"] == shapes["hashed"]
    assert [entry["split"] for entry in shapes["broken"]] == ["train"]
    assert document["tasks"]["sounds"]["distributions"]["sample_rate"]["median"] == 16000
    names = {
        "report.html", "shapes_numbers.png", "shapes_sheet.png", "shapes_suspects.png", "sounds_numbers.png",
        "sounds_sheet.png",
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "out").iterdir()} == document["files"].keys() == names
    for name in names - {"report.html"}:
        assert np.asarray(Image.open(tmp_path / "out" / name).convert("RGB")).std() > 10
    out = capsys.readouterr().out
    assert "byte for byte" in out
    assert "Take them out of one of the splits" in out
    _check_mlflow(document["mlflow_run"], tmp_path, names)


def _check_mlflow(run_id: str, folder: Path, names: set[str]) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == "polyvit-inspections"
    assert run.data.tags["polyvit.kind"] == "inspection"
    assert run.data.metrics["findings/error"] == 1
    assert run.data.metrics["shapes/broken"] == 1
    assert {Path(each.path).name for each in client.list_artifacts(run_id, "inspection")} == names


def test_a_sample_is_the_same_every_time_and_compares_all(
    sick_root: Path, tmp_path: Path, ray_cluster: None
) -> None:
    arguments = ("--sample", "6", "--no-mlflow", "--only", "shapes")
    first, again = (inspected(sick_root, tmp_path, *arguments)[1] for _ in range(2))
    assert first == again
    shapes = first["tasks"]["shapes"]
    assert shapes["decoded"] == 6
    assert shapes["hashed"] == shapes["train"] + shapes["validation"] + shapes["test"]
    assert first["findings"][0]["kind"] == "leak"
    assert first["mlflow_run"] is None
    assert not (tmp_path / "runs" / "mlflow.db").exists()


def test_data_that_cannot_be_used(
    sick_root: Path, tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    status, document = inspected(sick_root, tmp_path, "tasks.shapes.num_classes=2")
    assert status == 2
    assert "--only TASK" in document["error"]
    assert "shapes has 3 classes, tasks.shapes.num_classes is 2" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert inspected(sick_root, tmp_path, "--out", str(tmp_path / "file"))[0] == 2
    assert "give another folder" in capsys.readouterr().err
    assert inspected(tmp_path, tmp_path)[0] == 2  # no such folders


def test_rows_hold_every_example_once_and_say_which_to_decode(pair_root: Path, tmp_path: Path) -> None:
    config = load_config(str(write_yaml(tmp_path / "pair.yaml", pair_document(pair_root))))
    indexes = scanned(config)
    rows = list(chunks(config, indexes, 7))
    for name, scan in indexes.scans.items():
        items = [item for task, items in rows if task == name for item in items]
        assert sorted(example.key for _, example in items) == [example.key for example in scan.examples]
        assert sum(decode for decode, _ in items) == 7
    assert all(len(items) <= 16 for _, items in rows if items[0][0])


def test_a_store_that_is_gone_costs_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(
        "demo", [f"tracking.uri=sqlite:///{tmp_path}/file/mlflow.db", f"storage={tmp_path}/file/x"]
    )
    (tmp_path / "file").write_text("")
    assert inspect.log(config, {}, [], {}) is None
    assert "not logged to MLflow" in capsys.readouterr().out


def test_the_sheet_shows_many_classes_of_train_and_suspects_go_apart(pair_root: Path, tmp_path: Path) -> None:
    config = load_config(str(write_yaml(tmp_path / "pair.yaml", pair_document(pair_root))))
    scan, task = scanned(config).scans["shapes"], config.tasks["shapes"]
    examined = []
    for i, example in enumerate(scan.examples):
        flat = i % 7 == 0
        facts = MediaInfo(contrast=0 if flat else 90, brightest=200, reason="broken" if i % 11 == 0 else "")
        examined.append(ExampleReport(example.key, example.path, example.split, example.labels, None, facts))
    report = report_task("shapes", task, config.model.image, "root", scan, examined)
    chosen = choose_examples(report, seed=1)
    assert len(chosen) == 8
    assert {example.labels for example in chosen} == {(0,), (1,), (2,)}
    assert {example.split for example in chosen} == {"train"}
    assert [example.labels for example in chosen] == sorted(example.labels for example in chosen)
    assert not any(example.info and (example.info.flat or example.info.reason) for example in chosen)
    assert chosen == choose_examples(report, seed=1) != choose_examples(report, seed=2)
    suspects = choose_examples(report, seed=1, suspects=True)
    assert all(example.info and example.info.flat and not example.info.reason for example in suspects)
