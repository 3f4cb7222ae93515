"""`save_pretrained`, `from_pretrained`: the same answers, in a folder that the hub understands."""

import json
from pathlib import Path

import pytest
import yaml
from use_kit import CLASSES, media, trained

from polyvit.checkpoint.store import damage
from polyvit.deploy.predict import Predictor
from polyvit.deploy.pretrained import save_pretrained
from polyvit.deploy.trained_model import from_pretrained
from polyvit.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_answers_as_before_and_says_what_it_is(tmp_path: Path) -> None:
    checkpoint, _, _ = trained(tmp_path)
    folder = save_pretrained(str(checkpoint), tmp_path / "saved")
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "state.json", "manifest.json", "config.json", "README.md",
    }  # fmt: skip
    assert not damage(folder)
    files = media(tmp_path / "media")
    given = [files[name] for name in ("image", "clip", "song")]
    assert list(from_pretrained(folder).predict(given)) == list(Predictor.load(checkpoint).predict(given))
    told = json.loads((folder / "config.json").read_text())
    assert (told["model_type"], told["architectures"], told["model"]["width"]) == ("polyvit", ["PolyViT"], 16)
    assert [*told["tasks"]["picture"]["id2label"].values()] == CLASSES["picture"]
    assert [*told["tasks"]["word"]["id2label"].values()] == ["0", "1", "2"]
    assert told["tasks"]["picture"]["problem_type"] == "multi_label_classification"
    _, front, card = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "polyvit",
        "tags": ["image-classification", "video-classification", "audio-classification"],
    }
    assert card.strip().startswith("# small: one Vision Transformer for 4 tasks")


def test_one_message_for_what_is_not_ours(tmp_path: Path) -> None:
    checkpoint, _, _ = trained(tmp_path)
    with pytest.raises(
        UserError, match=r"has no config.json; give a folder of save_pretrained or hf://ORG/NAME, or use"
    ):
        from_pretrained(checkpoint)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match=r"is not of polyvit \(library_name: None\)"):
        from_pretrained(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_pretrained(checkpoint, tmp_path / "file")
    with pytest.raises(UserError, match="is the folder of a checkpoint, whose files would be lost"):
        save_pretrained(checkpoint, checkpoint)
    (run := tmp_path / "another").mkdir()
    (run / "run.json").write_text("{}")
    with pytest.raises(UserError, match="is the folder of a run, whose files would be lost"):
        save_pretrained(checkpoint, run)
    assert [path.name for path in run.iterdir()] == ["run.json"]
    with pytest.raises(UserError, match="neither a checkpoint nor a run"):
        save_pretrained(tmp_path / "nothing", tmp_path / "out")
