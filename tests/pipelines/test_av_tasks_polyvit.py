"""UCF-101, ESC-50, Charades and Kinetics-Sounds as tasks of a PolyViT: co-trained by name, probed, predicted."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sequence_kit import streams
from small import write_yaml

from pipelines import cli
from polyvit.synthetic.write import write_synthetic

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
TASKS = {"ucf101": "video", "esc50": "audio", "charades": "video", "kinetics_sounds": "video"}
CLASSES = {"ucf101": 101, "esc50": 50, "charades": 157, "kinetics_sounds": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("polyvit-av")
    write_synthetic(folder / "data", tasks=list(TASKS), classes=2, train=12, evaluation=6, side=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield folder


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Path:
    """Nothing is said of the tasks but how long they train: layouts, classes, losses and metrics are known."""
    return write_yaml(
        folder / "av.yaml",
        {
            "model": {
                "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32, "l_adapt": 1,
                "video": {"frames": 4, "size": 16, "tubelet_size": [2, 8, 8]},
                "audio": {"frames": 32, "mel_bins": 16, "patch_size": 16, "channels": 1},
            },
            "optim": {"kind": "adamw", "lr": 1e-3, "warmup_steps": 0},
            "tasks": {name: {"steps": 2, "batch": 4} for name in TASKS},
            "data": {"root": str(folder / "data")},
            "storage": str(folder / "runs"),
            "train": {"workers": 1, "checkpoint_every": 100},
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(folder: Path, recipe: Path) -> Path:
    assert cli.main(["cotrain", str(recipe), "--name", "four"]) == 0
    return folder / "runs" / "four"


def test_they_are_co_trained(run: Path) -> None:
    rows = json.loads((run / "result.json").read_text())["tasks"]
    assert {name: row["modality"] for name, row in rows.items()} == TASKS
    assert {name: row["metric"] for name, row in rows.items()} == {
        **dict.fromkeys(TASKS, "top1"),
        "charades": "map",
    }
    config = json.loads((run / "config.json").read_text())
    assert {name: task["num_classes"] for name, task in config["tasks"].items()} == CLASSES
    for name, row in rows.items():
        assert (row["steps"], row["examples_seen"]) == (2, 8), name
        assert row["eval_examples"] > 0
        assert 0 <= row["value"] <= 1


def test_they_are_probed(run: Path, recipe: Path, folder: Path) -> None:
    kept = folder / "probe.json"
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(["probe", str(run), str(recipe), "--json", str(kept)]) == 0
    rows = json.loads(kept.read_text())["tasks"]
    assert list(rows) == list(TASKS)
    assert all(0 <= row["value"] <= 1 for row in rows.values())


def test_files_of_them_are_predicted(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A video is of the three video tasks, its sound track of the audio task where that is asked for."""
    videos = sorted((folder / "data" / "kinetics_sounds").rglob("*.mp4"))
    video = next(path for path in videos if streams(path) == {"video", "audio"})
    sound = min((folder / "data" / "esc50").rglob("*.wav"))
    assert cli.main(["predict", str(run), str(video), str(sound)]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert list(first["tasks"]) == ["ucf101", "charades", "kinetics_sounds"]
    assert list(second["tasks"]) == ["esc50"]
    assert cli.main(["predict", str(run), str(video), "--task", "esc50"]) == 0
    assert list(json.loads(capsys.readouterr().out)["tasks"]) == ["esc50"]
