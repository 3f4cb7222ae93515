"""Pre-training on videos with sound where things go wrong: killed workers, other numbers of them, a damaged file.

Each run must end as the undisturbed one does. And where the videos are not files in a folder: shards, a bucket
give the same minibatches.
"""

import contextlib
import copy
import io
import itertools
import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import avbert_small
import pyarrow.fs
import pytest
import ray
from runs_kit import curves
from s3_kit import s3_server
from small import write_yaml
from soak import ray_processes

from pipelines import cli
from pipelines.feed.worker_feed import RayFeed
from pipelines.index import Indexes, build_indexes
from polyvit.checkpoint.state import read_document
from polyvit.config import load_config
from polyvit.data.decode.sequence import SequencePlan, read_sequence
from polyvit.errors import BadMedia
from polyvit.schedule import schedule_of
from polyvit.schedule.plan import Plan
from polyvit.synthetic.write import write_synthetic

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
STEPS, EVERY = 24, 4
TASKS = {"kinetics700": 18, "kinetics_sounds": 6}
"""Steps: pre-training, and a task with classes beside it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("av")


@pytest.fixture(scope="module", autouse=True)
def _own_store() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="module")
def damaged(folder: Path) -> str:
    """The data, with one training video that is whole by its header and cannot be decoded."""
    write_synthetic(folder / "data", tasks=list(TASKS), train=24, evaluation=8, side=32)
    path = sorted((folder / "data" / "kinetics700" / "train").rglob("*.mp4"))[3]
    content = bytearray(path.read_bytes())
    begin = content.index(b"mdat") + 4
    end = content.rindex(b"moov") - 8
    content[begin:end] = bytes(end - begin) if begin < end else b""
    path.write_bytes(content)
    plan = SequencePlan(3, 4, 1.0, "contiguous", 8000)
    with pytest.raises(BadMedia):
        read_sequence(bytes(content), plan, lambda height, width: lambda frame: frame)
    return path.name


@pytest.fixture(scope="module")
def recipe(folder: Path, damaged: str) -> Path:
    document: dict[str, Any] = copy.deepcopy(avbert_small.TINY)
    document["model"]["audiovisual"]["sample_rate"] = 8000
    one = {"modality": "audiovisual", "batch": 4, "augment": {"spacing": "contiguous", "clip_seconds": 1.0}}
    document["tasks"] = {
        "kinetics700": {**one, "layout": "kinetics", "num_classes": 700, "loss": "contrastive",
                        "metric": "retrieval", "steps": TASKS["kinetics700"]},
        "kinetics_sounds": {**one, "layout": "kinetics_sounds", "num_classes": 32,
                            "reads": "clips_and_sequence", "steps": TASKS["kinetics_sounds"]},
    }  # fmt: skip
    document |= {
        "optim": {"kind": "adamw", "amsgrad": True, "lr": 3e-3, "warmup_steps": 2},
        "data": {"root": str(folder / "data"), "max_bad_fraction": 0.5},
        "train": {"workers": 2, "checkpoint_every": EVERY, "log_every": 1, "max_failures": 0,
                  "cpus_per_worker": 0.5},
    }  # fmt: skip
    return write_yaml(folder / "av.yaml", document)


def cotrain(folder: Path, *arguments: str) -> dict[str, Any]:
    """The document of `polyvit cotrain`, which ends well."""
    kept = folder / "out.json"
    assert cli.main(["cotrain", *arguments, f"storage={folder / 'runs'}", "--json", str(kept)]) == 0
    return json.loads(kept.read_text())


@pytest.fixture(scope="module")
def straight(folder: Path, recipe: Path) -> dict[str, Any]:
    """Two workers, all steps without a stop, from files in a folder."""
    return cotrain(folder, str(recipe), "--name", "straight")


def same_bits(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Parameters, running averages, optimiser, evaluations and what was read."""
    first, second = Path(one["checkpoint"]), Path(other["checkpoint"])
    for name in ("model.safetensors", "optimiser.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    wanted, state = read_document(first), read_document(second)
    for key in wanted.keys() - {"config"}:
        assert state[key] == wanted[key], key
    for name in TASKS:
        assert other["tasks"][name]["value"] == one["tasks"][name]["value"]


def test_a_damaged_video_is_in_quarantine_and_a_silent_one_out_of_the_index(
    straight: dict[str, Any], damaged: str, folder: Path
) -> None:
    rows = straight["tasks"]
    for name, broken in (("kinetics700", [damaged]), ("kinetics_sounds", [])):
        skipped = {Path(row["path"]).name: row["reason"] for row in rows[name]["skipped_files"]}
        silent = [file for file, reason in skipped.items() if reason == "no sound track"]
        assert (len(silent), [file for file in skipped if file not in silent]) == (3, broken)
        assert rows[name]["train_examples"] == 22  # of 24: one in eleven has no sound
    record = json.loads((folder / "runs" / "straight" / "quarantine.json").read_text())
    assert [(entry["task"], Path(entry["path"]).name) for entry in record] == [("kinetics700", damaged)]


def test_a_run_whose_worker_is_killed_ends_with_the_same_bits(
    folder: Path, recipe: Path, straight: dict[str, Any]
) -> None:
    """kill -9 of a worker after a checkpoint: masks, pairs and negatives follow from the step."""
    run = folder / "runs" / "killed"
    ended = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        killed = thread.submit(kill_a_worker, run, ray.get_runtime_context().get_session_name(), ended)
        try:
            document = cotrain(folder, str(recipe), "--name", run.name, "train.max_failures=1")
        finally:
            ended.set()
        assert EVERY <= killed.result() < STEPS
    same_bits(straight, document)
    history = curves(folder / "runs" / "straight")
    assert curves(run) == history
    assert sorted(history) == list(range(1, STEPS + 1))


def kill_a_worker(run: Path, session: str, ended: threading.Event) -> int:
    """Once the run has a checkpoint. Returns that checkpoint's step."""
    while not ended.is_set():
        if steps := [int(path.name.removeprefix("step_")) for path in run.glob("step_????????")]:
            ray_processes(session, "ray::RayTrainWorker")[0].kill()
            return max(steps)
        time.sleep(0.01)
    raise AssertionError("the run ended before it had a checkpoint")


def test_another_number_of_workers_goes_on(folder: Path, recipe: Path, straight: dict[str, Any]) -> None:
    """After a checkpoint `train.workers` is another: pre-training steps are those of the run with two.

    Negatives are clips of all workers and batch norm counts all clips, so only the order of sums differs: 1e-3 of
    a loss or norm, where 6e-5 was measured. A step of the task with classes has each worker's own batch norm, so
    from the first one on the models differ; an evaluation compares the clips of one worker's minibatch. Neither is
    compared.
    """
    run, middle = folder / "runs" / "then", STEPS - 2 * EVERY  # the first checkpoint that is kept
    shutil.copytree(folder / "runs" / "straight", run)
    for path in run.glob("step_*"):
        if int(path.name.removeprefix("step_")) > middle:
            shutil.rmtree(path)
    assert cli.main(["cotrain", "--resume", str(run), "train.workers=3"]) == 0
    wanted, ended = curves(folder / "runs" / "straight"), curves(run)
    assert sorted(ended) == sorted(wanted)
    steps = sorted(wanted)
    assert all(ended[step] == wanted[step] for step in steps if step <= middle)
    later = [step for step in steps if step > middle]
    alike = list(itertools.takewhile(lambda step: "train/kinetics700/loss" in wanted[step], later))
    assert len(alike) >= 4
    for step in alike:
        compared = {key: value for key, value in wanted[step].items() if not key.startswith("eval/")}
        hits = {key for key in compared if "retrieval" in key or "accuracy" in key}
        assert {"train/kinetics700/loss", "train/grad_norm"} <= compared.keys() - hits
        for key, value in compared.items():
            limit = 0.25 if key in hits else 1e-3 * max(1.0, abs(value))  # of few clips one may go over
            assert abs(ended[step][key] - value) <= limit, (step, key, ended[step][key], value)
    state, expected = (read_document(place / f"step_{STEPS:08d}") for place in (run, folder / "runs" / "straight"))
    for key in ("global_step", "read", "bad", "quarantine"):
        assert state[key] == expected[key]


def fed(folder: Path, recipe: Path, *overrides: str) -> tuple[list[Any], Indexes]:
    """What a run trains and is evaluated on, without the run: minibatches as bytes, and the indexes."""
    config = load_config(str(recipe), [f"storage={folder / 'runs'}", *overrides])
    indexes = build_indexes(config, folder / f"index-{len(list(folder.glob('index-*')))}")
    sizes = {name: len(scan.split("train")) for name, scan in indexes.scans.items()}
    feed = RayFeed(config, Plan(schedule_of(config), config.tasks, sizes, config.seed), indexes, 0, 1)
    minibatches = [minibatch for step in feed.train(1) for minibatch in step] + list(feed.evaluation())
    return [
        (
            each.step,
            each.task,
            each.rows,
            each.labels.tobytes(),
            [(k, a.tobytes()) for k, a in each.inputs.items()],
        )
        for each in minibatches
    ], indexes


@pytest.fixture(scope="module")
def from_files(folder: Path, recipe: Path) -> list[Any]:
    """Every minibatch of training and evaluation, from files in a folder."""
    minibatches, _ = fed(folder, recipe)
    assert len(minibatches) == STEPS + len(TASKS)
    return minibatches


def test_shards_of_videos_with_sound_give_the_same_minibatches(
    folder: Path, recipe: Path, straight: dict[str, Any], damaged: str, from_files: list[Any]
) -> None:
    """Original bytes in tar files, the damaged one among them; silent videos are left out as in the folder."""
    shards = folder / "shards"
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(["shard", str(recipe), "--out", str(shards), f"storage={folder / 'runs'}"]) == 0
    assert sorted(path.name for path in shards.iterdir() if path.is_dir()) == sorted(TASKS)
    places = [f"tasks.{name}.{key}" for name in TASKS for key in ("layout=webdataset", f"root={shards / name}")]
    minibatches, indexes = fed(folder, recipe, *places)
    assert minibatches == from_files
    train = indexes.scans["kinetics700"].split("train")
    assert len(train) == straight["tasks"]["kinetics700"]["train_examples"]
    assert any(Path(damaged).stem in example.key for example in train)


def test_a_bucket_gives_the_same_minibatches(folder: Path, recipe: Path, from_files: list[Any]) -> None:
    """Headers and videos are read from S3 (moto's), by range, and decoded by Ray's tasks, not by Ray Data."""
    with s3_server() as address:
        bucket, query = address.split("?")
        filesystem, path = pyarrow.fs.FileSystem.from_uri(f"{bucket}/data?{query}")
        pyarrow.fs.copy_files(str(folder / "data"), path, destination_filesystem=filesystem)
        keys = [f"data.root={bucket}/data?{query}", "feed.backend=ray_core"]
        minibatches, indexes = fed(folder, recipe, *keys)
    assert minibatches == from_files
    assert [len(indexes.scans[name].split("train")) for name in TASKS] == [22, 22]
