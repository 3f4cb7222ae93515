"""The visual or audio CNN of an AVBert alone: the same features for a real file, also without polyvit."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sequence_kit import BOTH, sequence_checkpoint, sequence_media
from use_kit import trained

from pipelines.export import main
from polyvit.checkpoint.state import load_trained
from polyvit.checkpoint.store import damage
from polyvit.data.loading import example_arrays
from polyvit.deploy.clip_cnn import PARTS, Part, cnn_alone
from polyvit.deploy.export import TOLERANCE, torch_runner
from polyvit.errors import UserError
from polyvit.model import normalise
from polyvit.model.avbert import AVBert

pytestmark = pytest.mark.usefixtures("one_thread")
ELSEWHERE = """
import sys, numpy as np, onnxruntime, torch
folder, part = sys.argv[1:]
media = np.load(folder + "/media.npy")
session = onnxruntime.InferenceSession(f"{folder}/{part}.onnx", providers=["CPUExecutionProvider"])
(given,), (answer,) = session.get_inputs(), session.get_outputs()
by_onnx = session.run([answer.name], {given.name: media})[0]
by_torch = torch.export.load(f"{folder}/{part}.pt2").module()(torch.from_numpy(media)).detach().numpy()
assert "polyvit" not in sys.modules
np.savez(folder + "/answers.npz", onnx=by_onnx, torch=by_torch)
print(given.name, answer.name)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sequence_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def clips(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Part, tuple[np.ndarray, np.ndarray]]:
    """By part: the clips of a real video, [B, ...], and what the whole model's CNN makes of them, [B, C]."""
    model, config, _ = load_trained(checkpoint)
    assert isinstance(model, AVBert)
    video = sequence_media(tmp_path_factory.mktemp("media"))["video"]
    task, spec = config.tasks[BOTH], config.model.input("audiovisual")
    arrays = example_arrays(video.read_bytes(), task, spec, None)
    inputs = {name: normalise(torch.from_numpy(array[:1])) for name, array in arrays.items()}
    with torch.inference_mode():
        embedded = model.eval().embed(*model.arrays(inputs))
    sound = arrays["spectrograms"][0].astype(np.float32)
    return {
        "visual_cnn": (arrays["clips"][0], embedded.visual_pooled.numpy()),
        "audio_cnn": (sound, embedded.audio_pooled.numpy()),
    }


@pytest.mark.parametrize("part", PARTS)
def test_it_is_the_models_own_cnn(checkpoint: Path, part: Part, clips: dict) -> None:
    """1e-6: nothing but the order of the sums over B may differ."""
    media, wanted = clips[part]
    module = cnn_alone(load_trained(checkpoint)[0], part)
    assert np.abs(torch_runner(module)(media) - wanted).max() <= 1e-6 * np.abs(wanted).max()
    assert {name.partition(".")[0] for name in module.state_dict()} == {"cnn"}


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_its_files_answer_where_polyvit_is_not(checkpoint: Path, part: Part, clips: dict, tmp_path: Path) -> None:
    """In a process that never imports polyvit, to the tolerance that `export` holds its files to."""
    media, wanted = clips[part]
    kept = tmp_path / "e.json"
    assert main([str(checkpoint), "--part", part, "--out", str(tmp_path), "--json", str(kept)]) == 0
    assert list(json.loads(kept.read_text())["files"]) == ["model", f"{part}.pt2", f"{part}.onnx"]
    assert not damage(tmp_path)
    described = json.loads((tmp_path / "part.json").read_text())
    assert described["input"]["shape"] == ["batch", *media.shape[1:]]
    assert described["input"]["dtype"] == str(media.dtype)
    assert described["output"] == {"name": "features", "shape": ["batch", wanted.shape[1]]}
    np.save(tmp_path / "media.npy", media)
    ran = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, str(tmp_path), part], capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.split()[-2:] == [described["input"]["name"], "features"]
    with np.load(tmp_path / "answers.npz") as answers:
        for name in ("onnx", "torch"):
            assert np.abs(answers[name] - wanted).max() <= TOLERANCE * max(1.0, np.abs(wanted).max())


def test_what_is_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"only a model.kind=avbert has CNNs; give --task NAME"):
        cnn_alone(trained(tmp_path)[1], "visual_cnn")
    out = ["--out", str(tmp_path / "out")]
    for given, said in [
        (["--part", "audio_cnn", "--int8"], "--int8 quantises matrix products, of which a CNN has none"),
        (["--part", "audio_cnn", "--data", str(tmp_path)], "--data measures classes; leave it out with --part"),
    ]:
        assert main([str(checkpoint), *given, *out]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert main([str(checkpoint), *out]) == 2
    assert "--task NAME" in " ".join(capsys.readouterr().err.split())
    for given in (["--part", "encoder"], ["--part", "audio_cnn", "--task", "both"]):
        with pytest.raises(SystemExit) as ended:
            main([str(checkpoint), *given, *out])
        assert ended.value.code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_task_that_reads_one_cnn_is_exported_too(checkpoint: Path, tmp_path: Path) -> None:
    """Both inputs stay in its files, though one of them does nothing."""
    kept = tmp_path / "e.json"
    assert main([str(checkpoint), "--task", "sound", "--out", str(tmp_path), "--json", str(kept)]) == 0
    files = json.loads(kept.read_text())["files"]
    assert max(row["difference"] for row in files.values()) < TOLERANCE
