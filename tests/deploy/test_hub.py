"""One task of a PolyViT in timm and Hugging Face: the same logits, from their own loaders, configs and processors.

Tolerance: the same PyTorch kernels but for fused against separate q, k, v and a linear layer against a strided
convolution, in float32 over three blocks: 1e-5 of the largest logit. AST normalises twice before its head:
norm_eps against a variance of about 1 adds 1e-6.
"""

import json
from pathlib import Path
from typing import Any

import avbert_small
import numpy as np
import pytest
import timm
import torch
import transformers
import yaml
from PIL import Image
from use_kit import CLASSES, media, trained

from pipelines.export import main
from polyvit.checkpoint.store import damage
from polyvit.config import RunConfig
from polyvit.data.decode.image import eval_image
from polyvit.data.decode.video import eval_video
from polyvit.deploy import hub
from polyvit.deploy.export import TaskModel, difference, torch_runner
from polyvit.deploy.hub import library_runner, write_for_library
from polyvit.deploy.hub_config import Library, check_portable, timm_documents
from polyvit.deploy.predict import Predictor, pad_names, prepare
from polyvit.errors import UserError
from polyvit.model.polyvit import PolyViT

pytestmark = pytest.mark.usefixtures("one_thread")
ROUNDING = 1e-5
FORMS: dict[str, tuple[str, ...]] = {
    "adaptors": (),
    "exact-gelu-no-adaptors": ("model.l_adapt=0", "model.gelu=erf", "model.mlp_dim=29"),
    "all-private": ("model.l_adapt=3",),
    "low-rank": ("model.sharing.modalities=low_rank", "model.sharing.rank=4"),
    "one-layer-shared": ("model.sharing.layers=all", "model.l_adapt=0"),
    "oblong": (
        "model.image.size=[16, 24]", "model.image.patch_size=[8, 4]", "model.video.size=[16, 24]",
        "model.audio.stride=[8, 5]", "model.audio.frames=33", "model.audio.mel_bins=23", "model.audio.channels=1",
        "model.audio.mean=-4.0", "model.audio.std=2.5",
    ),
}  # fmt: skip
PATHS: list[tuple[str, Library]] = [
    ("picture", "timm"), ("picture", "huggingface"), ("clip", "huggingface"), ("sound", "huggingface"),
]  # fmt: skip


def distinct(model: PolyViT) -> PolyViT:
    """Every vector and token away from its initial 0 or 1, so that none can be forgotten unseen."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def written(tmp_path: Path, model: PolyViT, config: RunConfig, task: str, library: Library) -> tuple[Path, dict]:
    folder = tmp_path / f"{task}-{library}"
    folder.mkdir()
    names = pad_names(CLASSES.get(task, []), config.tasks[task].num_classes)
    return folder, write_for_library(model, config, task, names, library, folder)


@pytest.mark.parametrize(("task", "library"), PATHS)
@pytest.mark.parametrize("form", FORMS)
def test_logits_are_the_models(tmp_path: Path, form: str, task: str, library: Library) -> None:
    _, model, config = trained(tmp_path, *FORMS[form])
    folder, result = written(tmp_path, distinct(model), config, task, library)
    spec = config.model.input(config.tasks[task].modality)
    reference = torch_runner(TaskModel(model, config, task).eval())
    assert difference(library_runner(folder, library, spec), reference, spec, batch=5) < ROUNDING
    assert result["difference"] < ROUNDING
    if task == "sound":
        assert result["unmasked"] > 10 * ROUNDING  # what the mask is for


@pytest.mark.parametrize(("task", "library"), PATHS)
def test_the_python_of_the_readme_answers_as_predict_does(tmp_path: Path, task: str, library: Library) -> None:
    """From a file of the model's size, so that no processor has to resize; 5e-3 for sound, rounded to halves."""
    _, model, config = trained(
        tmp_path, "model.video.size=[32, 48]", "tasks.clip.augment.resize_side=32", "model.image.size=[24, 20]",
        "model.image.patch_size=4",
    )  # fmt: skip
    distinct(model)
    folder, _ = written(tmp_path, model, config, task, library)
    file = media(tmp_path / "media")[{"picture": "image", "clip": "silent", "sound": "song"}[task]]
    text = (folder / "README.md").read_text()
    scope: dict[str, Any] = {}
    code = text.partition("```python\n")[2].partition("```")[0]
    exec(code.replace("path/to/this/folder", str(folder)).replace("path/to/a/file", str(file)), scope)
    prepared = prepare(file.read_bytes(), config, [task])
    wanted = Predictor(model, config).logits([prepared])[0][task].numpy()
    assert np.abs(scope["logits"][0].detach().numpy() - wanted).max() < (5e-3 if task == "sound" else 1e-4)
    assert scope["label"] == CLASSES[task][int(wanted.argmax())]
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == ("timm" if library == "timm" else "transformers")
    assert front["pipeline_tag"] == f"{config.tasks[task].modality}-classification"


def photo(height: int, width: int) -> np.ndarray:
    """A smooth gradient with a bright square, uint8 [H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    picture = np.stack([255 * y / height, 255 * x / width, 255 * (x + y) / (height + width)], axis=-1)
    picture[height // 3 : height // 2, width // 4 : width // 2] = 250
    return picture.astype(np.uint8)


@pytest.mark.parametrize("size", ["[32, 32]", "[32, 48]"])
@pytest.mark.parametrize("how", ["square", "crop"])
def test_processors_make_our_pixels_of_a_picture(tmp_path: Path, how: str, size: str) -> None:
    """To one grey level, of the rounding between resizing and normalising, where ours filters as theirs do."""
    _, model, config = trained(
        tmp_path, f"model.image.size={size}", f"tasks.picture.augment.eval_resize={how}",
        "tasks.picture.augment.antialias=true",
    )  # fmt: skip
    picture = photo(90, 120)
    ours = eval_image(picture, config.model.image.size, config.tasks["picture"].augment).astype(float)
    folder, result = written(tmp_path, model, config, "picture", "huggingface")
    assert result["notes"] == [
        "Several classes may be right at once: probabilities are sigmoids of the logits, each alone."
    ]
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    theirs = processor(Image.fromarray(picture), return_tensors="np").pixel_values[0]
    assert np.abs((theirs.transpose(1, 2, 0) + 1) * 127.5 - ours).max() < 1.01
    folder, result = written(tmp_path, model, config, "picture", "timm")
    if how == "crop" and size == "[32, 48]":
        assert any("oblong crop" in note for note in result["notes"])
        return
    network = timm.create_model(f"local-dir:{folder}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    theirs = transform(Image.fromarray(picture)).numpy()
    assert np.abs((theirs.transpose(1, 2, 0) + 1) * 127.5 - ours).max() < 1.01


def test_processors_of_a_video_crop_where_ours_does(tmp_path: Path) -> None:
    """Ours resizes without a filter, so 3 grey levels of 255 on average; without resizing, the same pixels."""
    _, model, config = trained(tmp_path, "model.video.size=[16, 24]", "tasks.clip.augment.resize_side=20")
    folder, result = written(tmp_path, model, config, "clip", "huggingface")
    assert any("filters where it shrinks" in note for note in result["notes"])
    for size, most in (((60, 80), 3.0), ((20, 30), 0.01)):
        clip = np.stack([np.roll(photo(*size), i, axis=1) for i in range(4)])
        ours = eval_video(clip, (16, 24), config.tasks["clip"].augment).astype(float)
        images = transformers.VivitImageProcessor.from_pretrained(folder)
        videos = transformers.AutoVideoProcessor.from_pretrained(folder)
        for theirs in (images(list(clip), return_tensors="np"), videos(clip, return_tensors="np")):
            pixels = (np.asarray(theirs.pixel_values[0]).transpose(0, 2, 3, 1) + 1) * 127.5
            assert pixels.shape == ours.shape
            assert np.abs(pixels - ours).mean() < most


def test_the_extractor_of_sound_normalises_as_ours(tmp_path: Path) -> None:
    _, model, config = trained(tmp_path, "model.audio.mean=-4.0", "model.audio.std=2.5")
    folder, result = written(tmp_path, model, config, "sound", "huggingface")
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    log_mel = np.linspace(-13, 4, 20, dtype=np.float32)
    assert extractor.normalize(log_mel) == pytest.approx((log_mel + 4.0) / 2.5, abs=1e-6)
    assert (extractor.sampling_rate, extractor.num_mel_bins, extractor.max_length) == (16000, 16, 32)
    assert [note.split()[0] for note in result["notes"][:3]] == ["AST", "`ASTFeatureExtractor`", "The"]


def test_names_of_classes_travel(tmp_path: Path) -> None:
    _, model, config = trained(tmp_path)
    folder, _ = written(tmp_path, model, config, "picture", "timm")
    network = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert list(network.pretrained_cfg["label_names"]) == CLASSES["picture"]
    told = json.loads((folder / "config.json").read_text())
    plain = timm.create_model(told["architecture"], checkpoint_path=folder / hub.WEIGHTS, **told["model_args"])
    assert all(torch.equal(plain.state_dict()[name], t) for name, t in network.state_dict().items())
    for task, kind in (("picture", "multi_label"), ("word", "single_label"), ("clip", "single_label")):
        folder, _ = written(tmp_path, model, config, task, "huggingface")
        read = transformers.AutoConfig.from_pretrained(folder)
        names = pad_names(CLASSES.get(task, []), config.tasks[task].num_classes)
        assert [read.id2label[k] for k in range(read.num_labels)] == names
        assert read.label2id == {name: k for k, name in enumerate(names)}
        assert read.problem_type == f"{kind}_classification"


# -------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("task", "library", "overrides", "said"),
    [
        ("clip", "timm", (), "clip takes video, and timm has image models alone"),
        ("picture", "timm", ("model.norm_eps=1e-5",), "norm_eps=1e-05, and timm's ViT has 1e-06 for good"),
        ("picture", "timm", ("model.image.stride=4",), "patches that overlap"),
        ("clip", "huggingface", ("model.video.stride=[1, 8, 8]",), "patches that overlap"),
        ("sound", "huggingface", ("model.audio.patch_size=[16, 8]",), "patches of 16 x 8, and AST's are square"),
    ],
)
def test_what_has_no_counterpart_is_refused(
    tmp_path: Path, task: str, library: Library, overrides: tuple[str, ...], said: str
) -> None:
    _, model, config = trained(tmp_path, *overrides)
    with pytest.raises(UserError) as error:
        write_for_library(model, config, task, [], library, tmp_path / "nowhere")
    assert said in str(error.value)
    assert f"--to {library} cannot hold this model; without --to it becomes files" in str(error.value)


def test_an_avbert_is_refused(tmp_path: Path) -> None:
    _, _, config = avbert_small.trained(tmp_path)
    with pytest.raises(UserError, match="timm and Hugging Face have no AVBert; without --to"):
        check_portable(config, "one", "huggingface")


def test_weights_that_answer_otherwise_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, config = trained(tmp_path)
    right = timm_documents(config, "picture", CLASSES["picture"])
    right["config.json"]["model_args"]["act_layer"] = "gelu"  # the model's is the tanh form
    monkeypatch.setattr(hub, "timm_documents", lambda *_: right)
    distinct(model)
    with pytest.raises(UserError, match=r"in timm its logits differ from the model's by .* it is deleted"):
        written(tmp_path, model, config, "picture", "timm")
    assert not (tmp_path / "picture-timm" / hub.WEIGHTS).exists()


def test_one_message_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"transformers is not here: pip install 'polyvit\[hub\]'"):
        hub.require_library("huggingface")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, _, _ = trained(tmp_path)
    out, kept = tmp_path / "out", tmp_path / "e.json"
    given = [str(checkpoint), "--task", "sound", "--out", str(out), "--json", str(kept)]
    assert main([*given, "--to", "huggingface"]) == 0
    document = json.loads(kept.read_text())
    assert document["files"] == [hub.WEIGHTS, "config.json", "preprocessor_config.json", "README.md"]
    assert document["difference"] < ROUNDING < document["unmasked"]
    assert {path.name for path in out.iterdir()} == {*document["files"], "task.json", "manifest.json"}
    assert not damage(out)
    assert "without attention_mask logits differ by" in capsys.readouterr().out
    assert main([str(checkpoint), "--task", "picture", "--out", str(tmp_path / "p"), "--to", "timm"]) == 0
    assert "Its top1 was 0.6250 on 8 examples." in (tmp_path / "p" / "README.md").read_text()
    capsys.readouterr()
    for more, said in [
        (["--to", "timm"], "sound takes audio, and timm has image models alone"),
        (["--to", "huggingface", "--task", "picture"], f"--out {out} holds the export of sound, not of picture"),
        (["--to", "huggingface", "--out", str(checkpoint)], "is the folder of a checkpoint"),
        (["--to", "timm", "--int8"], "--int8 is of the .pt2 and .onnx files; leave it out with --to timm"),
    ]:
        assert main([*given, *more]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
