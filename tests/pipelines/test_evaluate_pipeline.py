"""`polyvit evaluate` end to end: a checkpoint on disk, real files, Ray Data; what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_kit import save_checkpoint
from pipelines_kit import pair_config, planned, scanned

from pipelines import cli
from pipelines.feed.worker_feed import make_decoder
from polyvit.checkpoint.state import TrainState, TrainUnit, load_trained
from polyvit.config import RunConfig
from polyvit.data.index.io import write_index
from polyvit.data.loading.requests import InlineFeed, Requests
from polyvit.evaluation.evaluator import evaluate
from polyvit.model.polyvit import PolyViT
from polyvit.training.optim import build_optimiser

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster", "one_thread")]

VIEWS = ("tasks.sounds.eval_clips=3", "tasks.sounds.eval_average=probabilities")
MINE = "tasks.sounds.metric=map"


@pytest.fixture(scope="module")
def run(pair_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as two workers leave it; its model is random, but no head is zero."""
    folder = tmp_path_factory.mktemp("trained")
    config = pair_config(pair_root, folder, "train.workers=2", f"storage={folder}")
    model = PolyViT(config.model, config.tasks, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.2
    optimiser = build_optimiser(dict(model.named_parameters()), config.optim)
    place = folder / "run"
    save_checkpoint(place / "step_00000028", TrainUnit(model, optimiser), TrainState(global_step=28), config, {})
    for name, found in scanned(config).scans.items():
        write_index(found, place / "index" / f"{name}.parquet")
    return place


class Rank:
    """One of two ranks: keeps what it would send, receives what the other one kept."""

    def __init__(self, rank: int, others: list[Any]) -> None:
        self.rank, self.size, self.others, self.sent = rank, 2, others, None

    def sum_(self, flat: torch.Tensor) -> None:
        raise AssertionError("an evaluation sums nothing")

    def gather(self, value: Any) -> list:
        self.sent = value
        return [value, *self.others]


def in_training(run: Path, config: RunConfig) -> dict[str, dict[str, Any]]:
    """What the evaluation at the end of training gives: both workers, without Ray."""
    model, _, _ = load_trained(run)
    indexes, results, sent = scanned(config), {}, []
    for rank in (1, 0):
        requests = Requests.of(config, planned(config, indexes), indexes.scans, rank, 2)
        world = Rank(rank, sent)
        feed = InlineFeed(requests, make_decoder(config, indexes))
        results, _ = evaluate(model, feed.evaluation(), config, world)
        sent = [world.sent]
    return results


def evaluated(tmp_path: Path, *arguments: str | Path) -> dict[str, Any]:
    """The JSON of a command that must succeed."""
    as_data = tmp_path / "evaluation.json"
    assert cli.main(["evaluate", *map(str, arguments), "--json", str(as_data)]) == 0
    return json.loads(as_data.read_text())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The message of a command that must end with status 2 and no traceback."""
    capsys.readouterr()
    assert cli.main(["evaluate", *map(str, arguments)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    return err


def same(row: dict[str, Any], result: dict[str, Any]) -> bool:
    exact = {key: pytest.approx(v, rel=1e-9) if isinstance(v, float) else v for key, v in result.items()}
    return all(row[key] == value for key, value in exact.items())


def test_the_numbers_of_training(
    run: Path, pair_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = evaluated(tmp_path, run)
    out, err = capsys.readouterr()
    assert err == ""
    config = pair_config(pair_root, tmp_path, "train.workers=2")
    expected = in_training(run, config)
    assert (document["step"], document["checkpoint"]) == (28, str(run / "step_00000028"))
    assert list(document["tasks"]) == ["shapes", "sounds"]
    for name, row in document["tasks"].items():
        assert same(row, expected[name])
        assert (row["examples"], row["skipped"], row["eval_split"]) == (12, 0, "validation")
        assert row["chance"] == pytest.approx(1 / 3)
        (line,) = [line for line in out.splitlines() if f"│ {name} " in line]
        for cell in (row["modality"], row["metric"], f"{row['value']:.3f}", f"{row['loss']:.3f}", row["protocol"]):
            assert cell in line
    assert not list(run.parent.glob("polyvit-evaluate-*"))  # nothing stays behind


def test_several_views_one_task_another_metric(run: Path, pair_root: Path, tmp_path: Path) -> None:
    document = evaluated(tmp_path, run / "step_00000028", *VIEWS, MINE, "--only", "sounds")
    config = pair_config(pair_root, tmp_path, "train.workers=2", *VIEWS, MINE)
    (row,) = document["tasks"].values()
    assert same(row, in_training(run, config)["sounds"])
    assert row["value"] == row["map"]
    assert row["protocol"] == "3 clips, probabilities averaged"


def test_another_split_names_what_it_skips(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = evaluated(tmp_path, run, "--split", "train")
    rows = document["tasks"]
    assert {name: (row["examples"], row["skipped"]) for name, row in rows.items()} == {
        "shapes": (23, 1), "sounds": (24, 0),
    }  # fmt: skip
    (skipped,) = rows["shapes"]["skipped_files"]
    assert skipped["reason"].startswith("image: ")
    assert f"shapes: not usable: {skipped['path']}" in capsys.readouterr().out


def test_data_without_a_train_split(
    run: Path, pair_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out data alone, tasks and places from a recipe, relative to where the user stands."""
    shutil.copytree(pair_root / "shapes" / "val", tmp_path / "held" / "shapes" / "val")
    names = sorted(path.name for path in (pair_root / "shapes" / "val").iterdir())
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")
    pair_config(pair_root, tmp_path)
    monkeypatch.chdir(tmp_path)
    overrides = ("data.root=held", "tasks.shapes.classes=classes.txt", f"storage={tmp_path}/none")
    row = evaluated(tmp_path, run, "pair.yaml", *overrides, "--only", "shapes")["tasks"]["shapes"]
    assert same(row, in_training(run, pair_config(pair_root, tmp_path, "train.workers=2"))["shapes"])
    assert row["chance"] == pytest.approx(1 / 3)


def test_labels_that_mean_something_else(
    run: Path, pair_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted((path.name for path in (pair_root / "shapes" / "val").iterdir()), reverse=True)
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")
    err = refused(capsys, run, f"tasks.shapes.classes={tmp_path}/classes.txt", "--only", "shapes")
    assert f"tasks.shapes: label 0 is {names[0]!r} in these data and {names[-1]!r} in those of training" in err


def test_data_with_more_classes_than_the_head_and_an_empty_split(
    run: Path, pair_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(pair_root / "shapes", tmp_path / "shapes")
    picture = next((tmp_path / "shapes" / "train").rglob("*.png"))
    (tmp_path / "shapes" / "train" / "zigzag").mkdir()
    shutil.copy(picture, tmp_path / "shapes" / "train" / "zigzag" / "z.png")
    err = refused(capsys, run, f"tasks.shapes.root={tmp_path}/shapes", "tasks.sounds.eval_split=test")
    assert "has 4 classes, tasks.shapes.num_classes is 3" in err
    assert "tasks.sounds: eval_split=test is empty (found: train 24, validation 12, test 0)" in err
    assert "or name the other tasks with --only" in err


def test_what_is_refused_before_ray_is_asked(
    run: Path, pair_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "models:/best@champion cannot be fetched from" in refused(capsys, "models:/best@champion")
    assert "neither a checkpoint nor a run with one" in refused(capsys, tmp_path)
    assert "neither a checkpoint nor a run with one" in refused(capsys, tmp_path / "nowhere")
    err = refused(capsys, run, "model.width=32", "tasks.shapes.num_classes=4", "tasks.sounds.modality=video")
    assert "tasks.sounds.mixup_alpha: unknown key" in err
    err = refused(capsys, run, "model.width=32", "tasks.shapes.num_classes=4")
    assert "model: its keys describe the checkpoint" in err
    assert "tasks.shapes.num_classes=4: the checkpoint was trained with 3" in err
    assert "tasks.cifar10: the checkpoint has no such task (it has shapes, sounds)" in refused(
        capsys, run, "demo", "--only", "cifar10"
    )
    assert "--only shape: there is no such task; there are shapes, sounds" in refused(
        capsys, run, "--only", "shape"
    )
    assert "tasks.sounds.eval_clip: unknown key; did you mean eval_clips?" in refused(
        capsys, run, "tasks.sounds.eval_clip=3"
    )
    assert "there is no task petz; there are shapes, sounds" in refused(capsys, run, "tasks.petz.eval_clips=3")
    (tmp_path / "a file").touch()
    for place in (tmp_path / "a file", "/proc/no"):
        assert f"--report {place} cannot be written" in refused(capsys, run, "--report", place)
    assert f"{tmp_path}/gone/shapes is not a folder" in refused(capsys, run, f"data.root={tmp_path}/gone")


def test_a_report_shows_what_is_behind_the_numbers(run: Path, tmp_path: Path) -> None:
    kept = tmp_path / "told.json"
    out = tmp_path / "report"
    assert cli.main(["evaluate", str(run), "--report", str(out), "--json", str(kept)]) == 0
    told = json.loads(kept.read_text())
    assert told["report"]["report"] == str(out / "report.html")
    for name in ("shapes", "sounds"):
        head, *rows = [line.split(",") for line in (out / f"confusion_{name}.csv").read_text().splitlines()]
        counts = [[int(count) for count in row[1:]] for row in rows]
        right, whole = sum(counts[k][k] for k in range(3)), sum(map(sum, counts))
        assert whole == told["tasks"][name]["examples"]
        assert right / whole == pytest.approx(told["tasks"][name]["top1"])
        assert head[1:] == [row[0] for row in rows]
        worst = told["worst"][name]
        assert [each["loss"] for each in worst] == sorted((each["loss"] for each in worst), reverse=True)
        assert all(each["path"] and each["key"] for each in worst)
        assert (out / f"worst_{name}.jpg").stat().st_size < 500_000
