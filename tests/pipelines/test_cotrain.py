"""End to end through a real Ray: synthetic datasets, one's own two datasets, stopping and resuming."""

import contextlib
import io
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from callbacks_kit import scalars
from mlflow.tracking import MlflowClient
from pipelines_kit import pair_document
from runs_kit import curves
from small import write_yaml
from soak import ray_processes

from pipelines import cli
from polyvit.checkpoint.state import read_document
from polyvit.config import load_config
from polyvit.schedule.schedule import build_schedule
from polyvit.synthetic.write import write_synthetic

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of runs, so that MLflow makes its tables once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def cotrain(storage: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit status and JSON of `polyvit cotrain`."""
    as_data = storage / "out.json"
    status = cli.main(["cotrain", *arguments, f"storage={storage}", "--json", str(as_data)])
    return status, json.loads(as_data.read_text())


def client(document: dict[str, Any]) -> MlflowClient:
    return MlflowClient(tracking_uri=document["mlflow_uri"])


def kill_a_worker_after(run: Path, step: int, session: str) -> int:
    """Kill a train worker once the run has a checkpoint beyond this step. Returns that checkpoint's step."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        steps = [int(path.name.removeprefix("step_")) for path in run.glob("step_????????")]
        if (newest := max(steps, default=0)) > step:
            workers = ray_processes(session, "ray::RayTrainWorker")
            workers[0].kill()
            return newest
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint after step {step}")


SYNTHETIC = ["imagenet", "kinetics400", "audioset"]
TASKS = [*SYNTHETIC, "shapes", "sounds"]
STEPS, EVERY = 36, 12


@pytest.fixture(scope="module")
def recipe(storage: Path, pair_root: Path) -> Path:
    """Three datasets of the paper at toy size and two of one's own; of each picture set one file is damaged."""
    root = storage / "data"
    write_synthetic(root, tasks=SYNTHETIC, train=12, evaluation=4)
    min((root / "imagenet").rglob("*.JPEG")).write_bytes(b"damaged")  # a folder's own order is any
    own = pair_document(pair_root)["tasks"]
    content = {
        "extends": "demo",
        "model": {"width": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64, "l_adapt": 1},
        "tasks": {
            **{name: {"steps": 4, "batch": 6} for name in SYNTHETIC},
            "shapes": {**own["shapes"], "root": str(pair_root / "shapes")},
            "sounds": {**own["sounds"], "root": str(pair_root / "sounds"), "steps": 4},
        },
        "data": {"root": str(root), "max_bad_fraction": 0.5},
        "train": {"workers": 2, "checkpoint_every": EVERY, "log_every": 1, "max_failures": 0,
                  "tensorboard": True, "callbacks": ["callbacks_kit:StepDiary"]},
    }  # fmt: skip
    return write_yaml(storage / "toy.yaml", content)


@pytest.fixture(scope="module")
def straight(storage: Path, recipe: Path) -> dict[str, Any]:
    """Two workers, all steps without a stop. `printed` is what the command wrote to the terminal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            status, document = cotrain(storage, str(recipe), "--name", "straight")
    assert status == 0
    return {"document": document, "printed": out.getvalue()}


def test_the_document_and_the_table(straight: dict[str, Any], recipe: Path, pair_root: Path) -> None:
    document, config = straight["document"], load_config(str(recipe))
    assert (document["run"], document["steps"], document["workers"]) == ("straight", STEPS, 2)
    assert list(document["tasks"]) == TASKS
    for name, row in document["tasks"].items():
        task = config.tasks[name]
        assert (row["steps"], row["examples_seen"]) == (task.steps, task.steps * task.batch)
        assert (row["metric"], row["modality"]) == (task.metric, task.modality)
        assert row["train_examples"] > 0
        assert 0 <= row["value"] <= 1
        assert 0 < row["chance"] < 1
        table = [
            line for line in straight["printed"].splitlines() if name in line and f"{row['value']:.3f}" in line
        ]
        assert len(table) == 1
    rows = document["tasks"]
    mean = sum(row["value"] for row in rows.values()) / len(rows)
    assert document["best"] == {
        "step": STEPS, "metric": "mean", "value": pytest.approx(mean), "checkpoint": document["checkpoint"]
    }  # fmt: skip
    assert f"best        step {STEPS} (mean {mean:.3f})\n" in straight["printed"]
    assert (rows["sounds"]["train_examples"], rows["sounds"]["eval_examples"]) == (24, 12)
    assert rows["shapes"]["chance"] == rows["sounds"]["chance"] == pytest.approx(1 / 3)
    (skipped,) = rows["shapes"]["skipped_files"]
    assert (pair_root / "shapes" / skipped["path"]).read_bytes() == b"no picture"
    (skipped,) = rows["imagenet"]["skipped_files"]
    assert skipped["reason"].startswith("image: ")
    assert all(not rows[name]["skipped_files"] for name in ("kinetics400", "audioset", "sounds"))


def test_callbacks_and_tensorboard_on_a_train_worker(straight: dict[str, Any], storage: Path) -> None:
    """Of two workers, rank 0's alone."""
    lines = [line.split() for line in (storage / "straight" / "heard.txt").read_text().splitlines()]
    assert [int(step) for what, step in lines if what == "step"] == list(range(1, STEPS + 1))
    assert [int(step) for what, step in lines if what == "checkpoint"] == list(range(EVERY, STEPS + 1, EVERY))
    assert [step for step, _ in scalars(storage / "straight" / "tensorboard")] == list(range(1, STEPS + 1))


def test_the_folder_of_a_run(straight: dict[str, Any], storage: Path, recipe: Path) -> None:
    document = straight["document"]
    checkpoint = Path(document["checkpoint"])
    place = checkpoint.parent
    assert place == storage / "straight"
    assert read_document(checkpoint)["global_step"] == STEPS
    assert sorted(p.name for p in place.glob("step_*")) == ["step_00000012", "step_00000024", "step_00000036"]
    assert json.loads((place / "result.json").read_text()) == document
    assert [entry["task"] for entry in json.loads((place / "quarantine.json").read_text())] == [
        "imagenet",
        "shapes",
    ]
    table = json.loads((place / "parameters.json").read_text())
    assert table["total"] == sum(value for role, value in table.items() if role != "total")
    assert (place / "schedule.png").read_bytes().startswith(b"\x89PNG")
    assert load_config(str(place / "config.yaml")).tasks == load_config(str(recipe)).tasks


def test_the_mlflow_run(straight: dict[str, Any], recipe: Path) -> None:
    document, config = straight["document"], load_config(str(recipe))
    tracking, run_id = client(document), document["run_id"]
    run = tracking.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "straight")
    assert run.data.params["tasks.imagenet.steps"] == "4"
    assert run.data.params["model.width"] == "32"
    assert {f.path for f in tracking.list_artifacts(run_id)} == {
        "schedule.png", "parameters.json", "quarantine.json", "checkpoint", "config.yaml", "index.json",
        "result.json", "feed_statistics.txt",
    }  # fmt: skip
    assert ": decode+augment" in Path(document["checkpoint"]).with_name("feed_statistics.txt").read_text()
    inside = {f.path for f in tracking.list_artifacts(run_id, "checkpoint")}
    assert inside == {f"checkpoint/{p.name}" for p in Path(document["checkpoint"]).iterdir()}
    schedule = build_schedule(config.schedule, config.tasks, config.seed)
    for name, row in document["tasks"].items():
        points = tracking.get_metric_history(run_id, f"train/{name}/loss")
        assert sorted(point.step for point in points) == schedule.steps_of(name).tolist()
        (final,) = tracking.get_metric_history(run_id, f"eval/{name}/{row['metric']}")
        assert (final.step, final.value) == (STEPS, pytest.approx(row["value"]))
        assert f"eval/{name}/value" not in run.data.metrics
        assert (f"eval/{name}/top1" in run.data.metrics) is (row["metric"] != "map")
    values = [row["value"] for row in document["tasks"].values()]
    assert run.data.metrics["eval/mean"] == pytest.approx(sum(values) / len(values))
    assert not any(key.startswith("final/") for key in run.data.metrics)
    inputs = {each.dataset.name: each.dataset for each in run.inputs.dataset_inputs}
    assert inputs.keys() == document["tasks"].keys()
    for name, row in document["tasks"].items():
        assert json.loads(inputs[name].profile)["train"] >= row["train_examples"] > 0
        assert Path(json.loads(inputs[name].source)["uri"]).is_dir()
        assert json.loads(inputs[name].schema)["modality"] == row["modality"]


def test_a_run_that_stopped_goes_on_and_ends_with_the_same_bits(
    storage: Path,
    recipe: Path,
    straight: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It stops itself at the broken pictures; resumed with a higher limit, it is the straight run, bit for bit.

    A worker is killed on the way.
    """
    expected = straight["document"]
    status, failure = cotrain(storage, str(recipe), "--name", "stopped", "data.max_bad_fraction=0")
    assert status == 2
    err = capsys.readouterr().err
    assert "task shapes:" in err
    assert "data.max_bad_fraction=0.0" in err
    assert "Traceback" not in err
    assert "error: " + failure["error"] in err
    place = storage / "stopped"
    reached = sorted(int(p.name.removeprefix("step_")) for p in place.glob("step_*"))
    assert reached in ([EVERY], [EVERY, 2 * EVERY])
    run_id = json.loads((place / "run.json").read_text())["mlflow_run"]
    tracking = client(expected)
    assert tracking.get_run(run_id).info.status == "FAILED"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/else.db")  # the run knows its own store
    keys = ["data.max_bad_fraction=0.5", "train.max_failures=1", "train.checkpoint_every=3"]
    with ThreadPoolExecutor(1) as thread:
        session = ray.get_runtime_context().get_session_name()
        killed = thread.submit(kill_a_worker_after, place, reached[-1], session)
        status, document = cotrain(storage, "--resume", "stopped", *keys)
        assert killed.result() > reached[-1]
    assert status == 0
    assert (document["run"], document["run_id"], document["steps"]) == ("stopped", run_id, STEPS)
    assert tracking.get_run(run_id).info.status == "FINISHED"
    steps = {point.step for point in tracking.get_metric_history(run_id, "train/grad_norm")}
    assert steps == set(range(1, STEPS + 1))

    one, other = Path(expected["checkpoint"]), Path(document["checkpoint"])
    for name in ("model.safetensors", "optimiser.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    wanted, state = read_document(one), read_document(other)
    for key in wanted.keys() - {"config"}:
        assert state[key] == wanted[key], key
    assert document["tasks"] == expected["tasks"]


def test_a_name_is_used_once(
    storage: Path, recipe: Path, straight: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    status, document = cotrain(storage, str(recipe), "--name", "straight")
    assert status == 2
    assert "run straight exists" in document["error"]
    assert "--resume straight" in capsys.readouterr().err


def test_two_workers_then_one(straight: dict[str, Any], storage: Path) -> None:
    """From the first checkpoint on with `train.workers=1`: the learning curve of the run with 2, but for rounding.

    With more workers: `test_another_number_of_workers_goes_on` of pre-training, the ranks of `test_step`.
    """
    run = storage / "then1"
    shutil.copytree(storage / "straight", run)
    for step in range(2 * EVERY, STEPS + 1, EVERY):
        shutil.rmtree(run / f"step_{step:08d}")
    assert cli.main(["cotrain", "--resume", str(run), "train.workers=1"]) == 0
    wanted, reached = curves(storage / "straight"), curves(run)
    assert sorted(reached) == sorted(wanted) == list(range(1, STEPS + 1))
    for step, values in wanted.items():
        assert reached[step] == (values if step <= EVERY else pytest.approx(values, rel=1e-3, abs=1e-5)), step
    ended, expected = (read_document(folder / f"step_{STEPS:08d}") for folder in (run, storage / "straight"))
    for key in ("global_step", "read", "bad", "quarantine"):
        assert ended[key] == expected[key]
    assert ended["config"]["train"]["workers"] == 1
