"""`polyvit.load`: whatever holds the same pixels or samples gets the same answer, that of `polyvit predict`."""

import io
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from use_kit import CLASSES, media, trained

import polyvit
from pipelines.predict import main
from polyvit.data.decode.image import decode_image
from polyvit.data.decode.video import read_clip
from polyvit.deploy.predict import Predictor, as_json_line
from polyvit.deploy.trained_model import TrainedModel, load
from polyvit.errors import BadMedia, UserError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("model"), "tasks.clip.eval_clips=2", "tasks.clip.eval_crops=3")[0]


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> TrainedModel:
    return load(checkpoint.parent, "cpu")


def pictures(path: Path) -> dict[str, Any]:
    """The same picture in every form that is taken."""
    pixels = decode_image(path.read_bytes())
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    with Image.open(path) as picture:
        copy = picture.copy()
    return {
        "str": str(path), "path": path, "bytes": path.read_bytes(), "bytearray": bytearray(path.read_bytes()),
        "lazy": Image.open(path), "picture": copy, "array": pixels, "floats": pixels / np.float32(255),
        "tensor": tensor, "to_tensor": tensor / 255, "alpha": np.dstack([pixels, pixels[..., 0]]),
    }  # fmt: skip


def test_the_same_picture_in_any_form_gets_the_answer_of_polyvit_predict(
    checkpoint: Path, model: TrainedModel, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    forms = pictures(files["image"])
    one = model.predict(files["image"])
    for name, x in forms.items():
        assert model.predict(x) == one, name
        np.testing.assert_array_equal(model.embed(x), model.embed(files["image"]), err_msg=name)
    # A minibatch of another size may round otherwise.
    together = model.predict([files["image"], *forms.values()])
    assert together == [together[0]] * (1 + len(forms))
    assert len(together[0]["tasks"]["picture"]) == 5
    assert one == next(iter(Predictor.load(checkpoint).predict([files["image"]])))
    assert main([str(checkpoint), str(files["image"])]) == 0
    assert json.loads(as_json_line({"path": str(files["image"]), **one})) == json.loads(capsys.readouterr().out)


def test_grey_pictures_are_taken_as_files_of_them_are(model: TrainedModel) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (20, 24), dtype=np.uint8)
    for array, mode in [(grey, "L"), (grey.astype(np.uint16) * 257, "I;16")]:
        picture = Image.frombytes(mode, grey.shape[::-1], array.tobytes())
        written = io.BytesIO()
        picture.save(written, "PNG")
        wanted = model.predict(written.getvalue())
        assert model.predict(picture) == wanted, mode
        assert model.predict(grey) == model.predict(grey[..., None]) == wanted
        assert model.predict(torch.from_numpy(grey)) == wanted


def test_all_frames_of_a_video_get_the_answer_of_its_file(model: TrainedModel, files: dict[str, Path]) -> None:
    frames_THWC = read_clip(files["silent"].read_bytes(), 9, 1)
    tensor = torch.from_numpy(frames_THWC).permute(0, 3, 1, 2)
    wanted = model.predict(files["silent"])
    assert wanted["modality"] == "video"
    assert model.predict(frames_THWC) == model.predict(tensor) == wanted


def test_samples_with_their_rate_get_the_answer_of_their_file(
    model: TrainedModel, files: dict[str, Path], tmp_path: Path
) -> None:
    wanted = model.predict(files["song"])
    floats, rate = soundfile.read(files["song"], dtype="float32")
    whole, _ = soundfile.read(files["song"], dtype="int16")
    for samples in (floats, floats.astype(np.float64), whole, torch.from_numpy(floats)[None]):
        assert model.predict((samples, rate)) == wanted
    rng = np.random.default_rng(1)
    stereo = (rng.standard_normal((9000, 2)) * 3000).astype(np.int16)
    soundfile.write(tmp_path / "stereo.wav", stereo, 22050)
    wanted = model.predict(tmp_path / "stereo.wav", "sound")
    assert list(wanted["tasks"]) == ["sound"]
    assert model.predict((stereo, 22050), "sound") == model.predict((stereo.T, 22050), ["sound"]) == wanted


def test_embeddings_are_the_mean_of_the_features_of_all_views(model: TrainedModel, files: dict[str, Path]) -> None:
    rows = model.embed([files["clip"], files["image"], files["song"], files["image"]])
    assert (rows.shape, rows.dtype) == ((4, 16), np.float32)
    views_VNP = model.transform("clip")(files["clip"])
    assert isinstance(views_VNP, torch.Tensor)
    with torch.no_grad():
        features = model.module.forward_features({"tokens": views_VNP}, "video")
    assert len(views_VNP) == 6
    np.testing.assert_allclose(rows[0], features.mean(0).numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(rows[1], rows[3])
    assert model.embed([]).shape == (0, 16)


@pytest.mark.parametrize(("task", "name"), [("picture", "image"), ("clip", "clip"), ("sound", "song")])
def test_what_transform_gives_the_model_takes(
    model: TrainedModel, files: dict[str, Path], task: str, name: str
) -> None:
    transform = pickle.loads(pickle.dumps(model.transform(task)))
    batch = torch.stack([transform(files[name]), transform(files[name].read_bytes())])
    with torch.no_grad():
        logits_BK = model(batch, task)
    assert model.predictor.config.tasks[task].num_classes == logits_BK.shape[1]
    best = model.predict(files[name], task, top_k=1)["tasks"][task][0]
    softmax = model.config.tasks[task].loss == "softmax"
    probabilities = logits_BK.softmax(-1) if softmax else logits_BK.sigmoid()
    assert int(logits_BK[0].argmax()) == best["index"]
    assert float(probabilities[1, best["index"]]) == pytest.approx(best["probability"], abs=1e-5)
    assert model(batch, task).requires_grad  # features for a loop of one's own
    with pytest.raises(UserError, match=rf"task {task} takes \['B', .*, as transform gives them"):
        model(batch[:, None], task)


def test_it_says_what_it_is(model: TrainedModel) -> None:
    assert model.tasks == {"picture": "image", "clip": "video", "sound": "audio", "word": "audio"}
    assert model.classes("clip") == CLASSES["clip"]
    assert model.classes("word") == ["0", "1", "2"]
    assert repr(model).startswith("TrainedModel('small' on cpu: picture (image, 5 classes), clip (video, 4")
    assert repr(model.transform("picture")) == "TaskTransform('picture': image -> tokens [4, 192])"


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        ("absent.png", "file is missing"),
        (b"<html>404</html>", "not a known picture"),
        (np.zeros((4, 5, 7), np.uint8), r"uint8\[4, 5, 7\] is neither a picture \[H, W, C\] nor a video"),
        (np.zeros((4, 5, 3), np.int64), "give uint8 from 0 to 255, or floats from 0 to 1"),
        (np.full((4, 5, 3), -1.2), "from -1.2 to -1.2: floats are taken from 0 to 1, not normalised"),
        (np.full((4, 5, 3), np.nan), "floats are taken from 0 to 1"),
        (np.zeros(7), "a recording is \\(samples, rate in Hz\\)"),
        (torch.zeros(5, 9, 3), r"a tensor \[5, 9, 3\] is neither .*: give x.numpy\(\)"),
        ((np.zeros(0), 16000), "neither mono"),
        ((np.zeros(9), 10**6), "1000000 samples a second; at most"),
        ((np.full(9, np.nan), 16000), "NaN or infinite"),
        ((np.zeros(9), 0), "with the rate 0; give a number such as 16000"),
        ((np.zeros(9), "16000"), "with the rate '16000'"),
        ((np.zeros(9, np.int64), 16000), "samples of int64"),
    ],
)
def test_what_cannot_be_used_is_refused_alone_and_named_in_a_list(
    model: TrainedModel, files: dict[str, Path], x: Any, reason: str
) -> None:
    with pytest.raises(BadMedia, match=reason):
        model.predict(x)
    bad, good = model.predict([x, files["image"]])
    assert list(bad) == ["error"]
    assert good == model.predict(files["image"])
    with pytest.raises(BadMedia, match="input 1 of the list: "):
        model.embed([files["image"], x])


def test_mistakes_get_one_message(model: TrainedModel, files: dict[str, Path], tmp_path: Path) -> None:
    for wrong in (7, None, [3.5], {"path": "a.png"}):
        with pytest.raises(UserError, match="is no input of a model; give a path, a file's bytes"):
            model.predict(wrong)
    with files["image"].open("rb") as file, pytest.raises(UserError, match="of an open file give the path"):
        model.predict(file)
    with pytest.raises(UserError, match="item 1 of the list: a NoneType is no input"):
        model.predict([files["image"], None])
    for top_k in (0, -1, 1.5, "2"):
        with pytest.raises(UserError, match="give a whole number of 1 or more"):
            model.predict(files["image"], top_k=top_k)
    for device in ("gpu", "cuda:77"):
        with pytest.raises(UserError, match=f"device='{device}' cannot be used"):
            load(model.folder, device)
    for call in (model.predict, model.embed):
        with pytest.raises(UserError, match="has no task 'pets'; it has picture"):
            call(files["image"], "pets")
    with pytest.raises(UserError, match="has no task"):
        model.classes("pets")
    with pytest.raises(BadMedia, match="no task for this file: it is image; asked for: sound"):
        model.predict(decode_image(files["image"].read_bytes()), "sound")
    with pytest.raises(UserError, match="neither a checkpoint nor a run"):
        load(tmp_path)
    with pytest.raises(UserError, match="give a folder of a run or a checkpoint, models:/NAME@ALIAS or hf"):
        load("runs:/0123/model")


def test_a_registered_model_is_loaded_by_its_alias(
    checkpoint: Path, model: TrainedModel, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("pipelines.tracking.model_folder", lambda name: asked.append(name) or checkpoint)
    assert polyvit.load("models:/polyvit@champion").predict(files["image"]) == model.predict(files["image"])
    assert asked == ["models:/polyvit@champion"]


def test_importing_it_loads_nothing_heavy() -> None:
    """0.3 s at most: neither torch nor numpy, which take most of the time, are needed before the first call."""
    heavy = ("torch", "numpy", "pydantic", "ray", "mlflow")
    code = f"import sys, polyvit; assert polyvit.__all__; print(*(m for m in {heavy} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
