"""From files to labels: what a file is, the evaluation's own path, probabilities, releases."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from arrays_kit import evaluation_tokens
from PIL import Image
from safetensors.torch import load_file, save_file
from use_kit import CLASSES, media, trained

from polyvit.checkpoint.state import load_trained
from polyvit.data.decode.media_type import UNKNOWN, detect_modality
from polyvit.deploy.hub_card import readme
from polyvit.deploy.package import model_card, write_package
from polyvit.deploy.predict import Predictor, as_json_line, prepare
from polyvit.errors import BadMedia, UserError
from polyvit.model.tokenizer import normalise

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return media(tmp_path_factory.mktemp("media"))


def test_what_a_file_is_shows_in_its_content(files: dict[str, Path]) -> None:
    expected = {
        "image": "image", "photo": "image", "clip": "video", "silent": "video", "song": "audio", "flac": "audio",
        "sound": "audio",
    }  # fmt: skip
    assert {name: detect_modality(files[name].read_bytes()) for name in expected} == expected
    for form in ("GIF", "BMP", "WEBP", "TIFF", "PPM"):
        written = io.BytesIO()
        Image.new("RGB", (9, 7)).save(written, form)
        assert detect_modality(written.getvalue()) == "image", form
    # What sets an MP3 off: a tag, or a bare frame.
    assert detect_modality(b"ID3\x04" + bytes(99)) == detect_modality(b"\xff\xfb\x90\x64" + bytes(99)) == "audio"


@pytest.mark.parametrize(
    "hostile",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n(x) print",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x00" * 600,
        b"G" + b"x" * 400,
    ],
)
def test_playlists_scripts_and_noise_never_reach_a_decoder(hostile: bytes) -> None:
    with pytest.raises(BadMedia, match=UNKNOWN):
        detect_modality(hostile)


def test_answers_come_from_the_evaluation_path(tmp_path: Path, files: dict[str, Path]) -> None:
    checkpoint, model, config = trained(
        tmp_path,
        "tasks.clip.eval_clips=2",
        "tasks.clip.eval_crops=3",
        "tasks.clip.augment.frame_stride=1",
        "tasks.sound.eval_clips=3",
        "tasks.sound.eval_average=probabilities",
    )
    predictor = Predictor.load(checkpoint.parent)  # the run's folder
    names = ["image", "clip", "song"]
    prepared = [prepare(files[name].read_bytes(), config) for name in names]
    all_logits = predictor.logits(prepared)
    assert [list(logits) for logits in all_logits] == [["picture"], ["clip"], ["sound", "word"]]
    for name, logits in zip(names, all_logits, strict=True):
        for task, logits_K in logits.items():
            spec = config.model.input(config.tasks[task].modality)
            tokens = evaluation_tokens(files[name].read_bytes(), config.tasks[task], spec)
            with torch.no_grad():
                views_VK = model({"tokens": normalise(torch.from_numpy(tokens))}, task)
            mean = views_VK.mean(0)
            if task == "sound":  # sigmoid: the logit of the mean probability
                mean = torch.logit(views_VK.double().sigmoid().mean(0)).float()
            assert len(views_VK) == {"picture": 1, "clip": 6, "sound": 3, "word": 1}[task]
            torch.testing.assert_close(logits_K, mean, rtol=1e-4, atol=1e-5)


def test_tasks_that_see_a_file_alike_share_its_tokens(tmp_path: Path, files: dict[str, Path]) -> None:
    _, _, config = trained(tmp_path)
    (group,) = prepare(files["song"].read_bytes(), config).groups
    assert group.tasks == ("sound", "word")
    _, _, config = trained(tmp_path / "b", "tasks.word.eval_clips=2")
    assert [(g.tasks, len(g.arrays["tokens"])) for g in prepare(files["song"].read_bytes(), config).groups] == [
        (("sound",), 1),
        (("word",), 2),
    ]


def test_probabilities_of_softmax_and_sigmoid_heads(tmp_path: Path, files: dict[str, Path]) -> None:
    _, model, config = trained(tmp_path)
    with torch.no_grad():
        for head in model.heads.values():
            head.weight.zero_()
        model.heads["picture"].bias.copy_(torch.tensor([0.0, 2.0, -1.0, 2.0, 40.0]))
        model.heads["clip"].bias.copy_(torch.log(torch.tensor([0.1, 0.2, 0.3, 0.4])))
    predictor = Predictor(model, config, CLASSES)
    picture, clip = predictor.predict([files["image"], files["clip"]], ["picture", "clip"], top_k=3)
    assert [entry["label"] for entry in picture["tasks"]["picture"]] == ["elk", "bee", "dog"]
    sigmoid = [1.0, 1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(-2.0))]
    assert [e["probability"] for e in picture["tasks"]["picture"]] == pytest.approx(sigmoid, abs=1e-6)
    assert [(e["label"], e["index"]) for e in clip["tasks"]["clip"]] == [("fall", 3), ("jump", 2), ("run", 1)]
    assert [e["probability"] for e in clip["tasks"]["clip"]] == pytest.approx([0.4, 0.3, 0.2], abs=1e-6)


def test_a_file_that_cannot_be_used_spoils_no_other(tmp_path: Path, files: dict[str, Path]) -> None:
    checkpoint, _, _ = trained(tmp_path)
    predictor = Predictor.load(checkpoint)
    names = ["image", "page", "empty", "clip", "song"] * 5  # more than are held at once
    given: list[bytes | Path] = [*(files[name] for name in names), tmp_path / "absent.png", tmp_path]
    answers = list(predictor.predict(given))
    assert [answer.get("modality") for answer in answers] == [
        *["image", None, None, "video", "audio"] * 5,
        None,
        None,
    ]
    assert [answer.get("error") for answer in answers[1:3]] == [UNKNOWN, "the file is empty"]
    assert answers[-2]["error"] == "file is missing"
    assert "file cannot be read" in answers[-1]["error"]
    labels = [[entry["label"] for entry in answers[i]["tasks"]["picture"]] for i in (0, 5)]
    (alone,) = predictor.predict([files["image"].read_bytes()])  # bytes for a path
    assert labels == [[entry["label"] for entry in alone["tasks"]["picture"]]] * 2
    assert answers[4]["tasks"]["word"][0]["label"] == str(answers[4]["tasks"]["word"][0]["index"])
    line = json.loads(as_json_line({"path": "x", **answers[0]}))
    assert line["tasks"]["picture"][0]["probability"] == round(answers[0]["tasks"]["picture"][0]["probability"], 6)


def test_choice_of_tasks_and_modality(tmp_path: Path, files: dict[str, Path]) -> None:
    _, model, config = trained(tmp_path)
    predictor = Predictor(model, config)
    # Only audio tasks are named: the sound track of the video.
    assert next(predictor.predict([files["clip"]], ["word"]))["modality"] == "audio"
    assert list(next(predictor.predict([files["clip"]], modality="audio"))["tasks"]) == ["sound", "word"]
    assert "no sound track" in next(predictor.predict([files["silent"]], ["word"]))["error"]
    error = next(predictor.predict([files["image"]], ["clip", "word"]))["error"]
    assert error == "no task for this file: it is image; asked for: clip, word"
    with pytest.raises(UserError, match="no task 'cifar10'; it has picture, clip, sound, word"):
        predictor.predict([files["image"]], ["cifar10"])


def test_a_release_holds_the_weights_that_were_evaluated(tmp_path: Path) -> None:
    checkpoint, model, _ = trained(tmp_path, "optim.ema_decay=0.9")
    averaged = {name: tensor + 1.0 for name, tensor in model.state_dict().items()}
    save_file(averaged, checkpoint / "ema.safetensors")
    (checkpoint / "manifest.json").unlink()  # it names no such file
    write_package(checkpoint, tmp_path / "release")
    assert sorted(path.name for path in (tmp_path / "release").iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "model_card.md",
        "state.json",
    ]
    stored = load_file(tmp_path / "release" / "model.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in averaged.items())
    again, _, document = load_trained(tmp_path / "release")
    assert torch.equal(again.shared.norm.weight, averaged["shared.norm.weight"])
    assert document["classes"] == CLASSES
    assert document["averaged"] is True
    assert "quarantine" not in document
    # It is read on as any checkpoint.
    assert Predictor.load(tmp_path / "release").classes["word"] == ["0", "1", "2"]
    card = (tmp_path / "release" / "model_card.md").read_text()
    assert "| picture | image | 5 | top1 | 0.6250 | 8 | 1 view, whole image | not stated" in card
    assert "ab" * 32 in card
    assert f"| all | {sum(p.numel() for p in model.parameters()):,} |" in card
    assert "running average" in card


def test_the_model_card_says_where_data_are_synthetic(tmp_path: Path) -> None:
    """Toys have the names of real data sets; the marker beside them tells."""
    real = [f"tasks.word.root={tmp_path}/real", "tasks.word.licence=CC0", "tasks.clip.licence=CC1"]
    checkpoint, model, config = trained(tmp_path, f"data.root={tmp_path}/toys", *real, "source=trained on Birds")
    (tmp_path / "toys").mkdir()
    document = json.loads((checkpoint / "state.json").read_text())
    card = model_card(model, config, document)
    assert all(words in card for words in ("CC0", "CC1", "trained on Birds"))
    assert "ynthetic" not in card
    (tmp_path / "toys" / ".polyvit-synthetic.json").write_text("{}")
    card = model_card(model, config, document)
    assert "**Synthetic data:** the data of picture, clip, sound were drawn by `polyvit synth`" in card
    assert "CC0" in card
    assert "CC1" not in card
    assert "Birds" not in card
    assert "none: synthetic" in readme(config, "clip", "huggingface", 0.0, None)


def test_a_package_whose_bytes_were_changed_is_refused(tmp_path: Path) -> None:
    checkpoint, _, _ = trained(tmp_path)
    folder = tmp_path / "package"
    write_package(checkpoint, folder)
    (folder / "model_card.md").write_text("words of our own")
    Predictor.load(folder)
    for name in ("model.safetensors", "state.json"):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(good[:-9] + bytes([good[-9] ^ 0x40]) + good[-8:])
        with pytest.raises(UserError, match=f"is damaged: {name}"):
            Predictor.load(folder)
        (folder / name).write_bytes(good)


def test_an_answer_that_is_not_finite_is_an_error(tmp_path: Path, files: dict[str, Path]) -> None:
    checkpoint, _, _ = trained(tmp_path)
    predictor = Predictor.load(checkpoint)
    with torch.no_grad():
        predictor.model.heads["picture"].bias[0] = float("nan")
    answers = list(predictor.predict([files["image"], files["song"]]))
    assert answers[0] == {"error": "the model's answer is not finite (task picture); check its weights"}
    assert "tasks" in answers[1]
    with pytest.raises(ValueError):
        as_json_line({"tasks": {"picture": [{"label": "a", "index": 0, "probability": float("nan")}]}})


def test_files_that_are_none_cost_their_own_line_alone(
    tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device without end, a pipe that nobody writes to, a file of 20 GB, a name with NUL, a folder."""
    checkpoint, _, _ = trained(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "huge.mp4").open("wb") as file:
        file.truncate(20 * 10**9)
    given = [
        Path("/dev/zero"), tmp_path / "pipe", tmp_path / "huge.mp4", Path("a\0b.jpg"), tmp_path,
        tmp_path / ("x" * 300), files["image"],
    ]  # fmt: skip
    *bad, good = Predictor.load(checkpoint).predict(given)
    assert "tasks" in good
    device, pipe, huge, name, folder, long = [answer["error"] for answer in bad]
    assert device == pipe == "file is a device, a pipe or a socket; give a regular file"
    assert huge == "file has 20,000,000,000 bytes; at most 2,147,483,648 are read"
    assert "NUL" in name
    assert "cannot be read" in long
    assert folder.startswith("file ")
