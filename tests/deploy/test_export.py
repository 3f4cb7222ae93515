"""Exported tasks: the same logits, from media; patches in the feed's order; int8 measured on data."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from pipelines_kit import pair_document
from use_kit import CLASSES, media, trained, write_checkpoint

from pipelines.export import main
from polyvit.checkpoint.store import damage, read_manifest
from polyvit.config import AudioInput, ImageInput, InputSection, VideoInput, validate_config
from polyvit.data.transforms.patchify import patchify_audio, patchify_image, patchify_video
from polyvit.deploy.export import (
    TaskModel,
    _patchify,
    difference,
    example_media,
    export_onnx,
    export_torch,
    media_of,
    onnx_runner,
    quantise,
    torch_runner,
)
from polyvit.deploy.predict import Predictor, prepare
from polyvit.model.polyvit import PolyViT

pytestmark = pytest.mark.usefixtures("one_thread")
SPECS: list[InputSection] = [
    ImageInput(size=(8, 12), patch_size=(4, 6)),
    ImageInput(size=(9, 12), patch_size=(4, 4), stride=(2, 3)),
    VideoInput(frames=4, size=(8, 4), tubelet_size=(2, 4, 2)),
    VideoInput(frames=5, size=(8, 4), tubelet_size=(2, 4, 2), stride=(1, 2, 2)),
    AudioInput(frames=16, mel_bins=8, patch_size=(4, 4), mean=-3.0, std=2.0),
    AudioInput(frames=16, mel_bins=8, patch_size=(4, 4), stride=(3, 2), mean=1.0, std=0.5),
]


def feed_tokens(array: np.ndarray, spec: InputSection) -> np.ndarray:
    if isinstance(spec, AudioInput):
        normal = ((array - np.float32(spec.mean)) / np.float32(spec.std)).astype(np.float16)
        return patchify_audio(normal, spec.patch_size, spec.stride)
    if isinstance(spec, VideoInput):
        return patchify_video(array, spec.tubelet_size, spec.stride)
    return patchify_image(array, spec.patch_size, spec.stride)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{type(spec).__name__}-{spec.stride}")
def test_patches_are_cut_as_the_feed_cuts_them_and_put_together_again(spec: InputSection) -> None:
    arrays = example_media(spec, 2)
    tokens = np.stack([feed_tokens(array, spec) for array in arrays])
    if isinstance(spec, AudioInput):
        normal = ((torch.from_numpy(arrays) - spec.mean) / spec.std).half()[..., None]
        patches = _patchify(normal, spec.patch, spec.strides)
    else:
        patch = spec.tubelet_size if isinstance(spec, VideoInput) else spec.patch_size
        patches = _patchify(torch.from_numpy(arrays), patch, spec.strides)
    assert np.array_equal(patches.numpy(), tokens)
    back = media_of(tokens, spec)
    assert back.shape == arrays.shape
    assert np.array_equal(np.stack([feed_tokens(array, spec) for array in back]), tokens)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("picture", "image"),
        pytest.param("clip", "clip", marks=pytest.mark.slow),
        pytest.param("sound", "song", marks=pytest.mark.slow),
    ],
)
def test_torch_and_onnx_files_answer_as_the_model_does(tmp_path: Path, task: str, name: str) -> None:
    _, model, config = trained(tmp_path)
    files = media(tmp_path / "media")
    predictor = Predictor(model, config)
    module = TaskModel(model, config, task).eval()
    prepared = prepare(files[name].read_bytes(), config, [task])
    arrays = media_of(prepared.groups[0].arrays["tokens"], module.spec)
    wanted = predictor.logits([prepared])[0][task].numpy()
    for run in (
        torch_runner(module),
        export_torch(module, tmp_path / "m.pt2"),
        export_onnx(module, tmp_path / "m.onnx", {"task": task, "classes": CLASSES[task]}),
    ):
        assert np.abs(run(arrays)[0] - wanted).max() < 1e-5
        assert [len(run(example_media(module.spec, batch))) for batch in (1, 5)] == [1, 5]
        assert difference(run, torch_runner(module), module.spec) < 1e-5
    told = onnxruntime.InferenceSession(tmp_path / "m.onnx").get_modelmeta().custom_metadata_map
    assert (told["task"], json.loads(told["classes"])) == (task, CLASSES[task])
    module.head.bias.data += 0.5  # a difference is seen
    assert difference(onnx_runner(tmp_path / "m.onnx"), torch_runner(module), module.spec) > 1e-2


@pytest.mark.slow
def test_int8_weights_are_a_quarter(tmp_path: Path) -> None:
    _, model, config = trained(tmp_path, "model.width=128", "model.mlp_dim=512", "model.num_heads=4")
    module = TaskModel(model, config, "picture").eval()
    export_onnx(module, tmp_path / "m.onnx")
    run = quantise(tmp_path / "m.onnx", tmp_path / "m.int8.onnx")
    assert (tmp_path / "m.int8.onnx").stat().st_size < 0.35 * (tmp_path / "m.onnx").stat().st_size
    assert 1e-6 < difference(run, torch_runner(module), module.spec) < 0.1
    tensors = onnx.load(tmp_path / "m.int8.onnx").graph.initializer
    weights = [onnx.numpy_helper.to_array(t) for t in tensors if t.data_type == onnx.TensorProto.INT8]
    largest = max(int(np.abs(weight.astype(np.int16)).max()) for weight in weights)
    assert largest > 32
    assert 2 * 255 * largest < 2**15  # the sum of two products, on a CPU without VNNI


@pytest.mark.slow
@pytest.mark.parametrize(("to", "file"), [("torch", "picture.pt2"), ("onnx", "picture.onnx")])
def test_one_format_alone(tmp_path: Path, to: str, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, _, _ = trained(tmp_path)
    out, kept = tmp_path / "out", tmp_path / "e.json"
    given = [str(checkpoint), "--task", "picture", "--to", to, "--out", str(out)]
    assert main([*given, "--json", str(kept)]) == 0
    assert {path.name for path in out.iterdir() if path.suffix in (".pt2", ".onnx")} == {file}
    assert list(json.loads(kept.read_text())["files"]) == ["model", file]
    assert damage(out) is None
    if to == "torch":
        assert main([*given, "--int8"]) == 2
        assert "--int8 is an .onnx file; leave it out with --to torch" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_measures_on_data(pair_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = validate_config(pair_document(pair_root))
    model = PolyViT(config.model, config.tasks, seed=4)
    checkpoint = write_checkpoint(tmp_path / "run" / "step_00000001", model, config)
    kept = tmp_path / "e.json"
    given = [str(checkpoint), "--task", "shapes", "--out", str(tmp_path / "out"), "--int8", "--json", str(kept)]
    assert main([*given, "--data", str(pair_root)]) == 0
    files = json.loads(kept.read_text())["files"]
    assert list(files) == ["model", "shapes.pt2", "shapes.onnx", "shapes.int8.onnx"]
    assert files["model"]["value"] == files["shapes.onnx"]["value"] == files["shapes.pt2"]["value"]
    assert all(row["examples"] == files["model"]["examples"] > 0 for row in files.values())
    assert files["shapes.onnx"]["bytes"] == (tmp_path / "out" / "shapes.onnx").stat().st_size
    manifest = read_manifest(tmp_path / "out")
    assert manifest["files"].keys() == {"task.json", *files} - {"model"}
    assert not damage(tmp_path / "out")
    told = json.loads((tmp_path / "out" / "task.json").read_text())
    assert told["input"]["shape"] == ["batch", 16, 16, 3]
    assert told["output"]["probabilities"] == "softmax"
    assert len(told["classes"]) == 3
    for file in ("shapes.onnx", "shapes.int8.onnx"):
        session = onnxruntime.InferenceSession(tmp_path / "out" / file)
        carried = session.get_modelmeta().custom_metadata_map
        assert {
            key: value if isinstance(value, str) else json.dumps(value) for key, value in told.items()
        }.items() <= (carried.items())
    capsys.readouterr()
    for arguments, said in [
        (["--task", "cats", "--out", str(tmp_path)], "no task 'cats'; it has shapes, sounds"),
        (["--task", "shapes", "--out", str(tmp_path), "--data", str(tmp_path)], "there is no folder"),
        (["--task", "shapes", "--out", str(kept)], "cannot be written"),
    ]:
        assert main([str(checkpoint), *arguments]) == 2
        assert said in capsys.readouterr().err
