"""`polyvit extend` from end to end: a picture model learns sounds, and what that costs it is measured."""

import json
from pathlib import Path

import pytest
import torch
from pipelines_kit import pair_document
from small import write_yaml
from use_kit import write_checkpoint

from pipelines.extend import forgetting, main
from polyvit.checkpoint.state import load_trained
from polyvit.config import validate_config
from polyvit.deploy.predict import Predictor
from polyvit.model.polyvit import PolyViT


@pytest.fixture
def pictures(pair_root: Path, tmp_path: Path) -> Path:
    """A checkpoint that knows `shapes` alone."""
    document = pair_document(pair_root)
    document["tasks"].pop("sounds")
    document["storage"] = str(tmp_path / "runs")
    config = validate_config(document)
    return write_checkpoint(
        tmp_path / "old" / "step_00000001", PolyViT(config.model, config.tasks, seed=4), config
    )


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_model_of_pictures_learns_sounds(
    pictures: Path, pair_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_yaml(tmp_path / "pair.yaml", pair_document(pair_root))
    kept = tmp_path / "report.json"
    given = [str(pictures), str(config), f"storage={tmp_path}/runs", "tasks.sounds.steps=4", "--name", "more"]
    assert main([*given, "--json", str(kept)]) == 0
    report = json.loads(kept.read_text())
    assert report["changed_parameters"] == []
    assert report["frozen"] == ["shared"]
    assert list(report["new"]) == ["sounds"]
    assert report["old"]["shapes"]["change"] == 0.0
    assert report["old"]["shapes"]["examples"] > 0
    old, _, _ = load_trained(pictures)
    extended = Path(report["extended"])
    model, whole, document = load_trained(extended)
    assert list(whole.tasks) == ["shapes", "sounds"]
    tensors = model.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in old.state_dict().items())
    assert document["global_step"] == 1 + 4
    (evaluation,) = document["evaluations"]
    measured = {name: result["value"] for name, result in evaluation["tasks"].items()}
    assert measured == {"shapes": report["old"]["shapes"]["after"], "sounds": report["new"]["sounds"]["value"]}
    sound = next((pair_root / "sounds").rglob("*.wav"))
    (answer,) = Predictor.load(extended).predict([sound])
    assert list(answer["tasks"]) == ["sounds"]
    assert "no old parameter changed, to the last bit" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs" / "more" / "forgetting.json").read_text()) == report


def test_what_is_refused(
    pictures: Path, pair_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_yaml(tmp_path / "pair.yaml", pair_document(pair_root)))
    for given, said in [
        (["--only", "shapes"], "no task that the model lacks (it has shapes)"),
        (["--freeze", "heart"], "--freeze heart: give shared, tokenizers, adaptors, heads"),
        (["--rehearse", "cats"], "--rehearse cats: the model has no such task"),
        (["--old-root", str(tmp_path / "gone")], "gone"),
    ]:
        assert main([str(pictures), config, f"storage={tmp_path}/runs", *given]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_change_of_each_old_task() -> None:
    before = {
        "a": {"metric": "top1", "examples": 4, "value": 0.75},
        "b": {"metric": "map", "examples": 0, "value": None},
    }
    after = {"a": {"value": 0.5}, "b": {"value": None}}
    assert forgetting(before, after) == {
        "a": {"metric": "top1", "examples": 4, "before": 0.75, "after": 0.5, "change": -0.25},
        "b": {"metric": "map", "examples": 0, "before": None, "after": None, "change": None},
    }
