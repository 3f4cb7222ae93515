"""Models that share weights, exported and packaged: AVBert, and PolyViT with low-rank private factors."""

import json
from pathlib import Path

import avbert_small
import numpy as np
import pytest
import torch
from use_kit import media, trained

from pipelines.export import main
from polyvit.checkpoint.state import load_trained
from polyvit.config import SequenceInput
from polyvit.deploy.export import (
    TaskModel,
    accuracy,
    difference,
    example_inputs,
    export_onnx,
    export_torch,
    quantise,
    task_model,
    torch_runner,
)
from polyvit.deploy.package import write_package
from polyvit.deploy.predict import Predictor
from polyvit.deploy.sequence_model import SequenceTaskModel
from polyvit.errors import UserError
from polyvit.model import LowRankBlock, normalise

pytestmark = pytest.mark.usefixtures("one_thread")
LOW_RANK = ("model.sharing.modalities=low_rank", "model.sharing.rank=4")
MODES = [
    {},
    {"fusion": "early"},
    {"fusion": "late", "sharing": {"layers": "none", "roles": "low_rank_alone", "rank": 4}},
    {"sharing": {"layers": "none", "roles": "none"}},
    {"sharing": {"layers": 1, "roles": "full", "orthogonal": "cayley"}},
]


# -------------------------------------------------------------------------------------------------- AVBert


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_an_avberts_task_alone_answers_as_the_model_does(tmp_path: Path, mode: dict) -> None:
    """In every mode, from uint8 clips and float32 spectrograms; no other head, nothing that makes rotations."""
    _, model, config = avbert_small.trained(tmp_path, **mode)
    module = task_model(model, config, "two")
    assert isinstance(module, SequenceTaskModel)
    arrays = example_inputs(module.spec, 3)
    assert [(name, array.dtype.name) for name, array in arrays.items()] == [
        ("clips", "uint8"), ("spectrograms", "float32"),
    ]  # fmt: skip
    feed = {name: array.astype(spec.dtype) for (name, array), spec in zip(
        arrays.items(), module.spec.arrays.values(), strict=True)}  # fmt: skip
    with torch.inference_mode():
        wanted = model({name: normalise(torch.from_numpy(array)) for name, array in feed.items()}, "two")
    assert torch_runner(module)(*arrays.values()) == pytest.approx(wanted.numpy(), abs=1e-6)
    names = [name for name, _ in module.named_parameters()]
    assert not any("skew" in name or "heads.one" in name for name in names)
    assert [*model.state_dict()] == [*avbert_small.build_model(config).state_dict()]  # the model is as it was


@pytest.mark.slow
def test_an_avberts_files_answer_as_the_model_does(tmp_path: Path) -> None:
    """Late fusion, private low-rank factors; the default mode's files are the command's, below."""
    _, model, config = avbert_small.trained(tmp_path, **MODES[2])
    module = task_model(model, config, "one")
    reference = torch_runner(module)
    files = export_torch(module, tmp_path / "m.pt2"), export_onnx(module, tmp_path / "m.onnx")
    for run in files:
        for batch in (1, 5):
            assert run(*example_inputs(module.spec, batch).values()).shape == (batch, 5)
        assert difference(run, reference, module.spec) < 1e-5
    run = quantise(tmp_path / "m.onnx", tmp_path / "m.int8.onnx")
    assert 1e-7 < difference(run, reference, module.spec) < 0.1
    module.model.heads["one"].bias.data += 0.5  # a difference is seen
    assert difference(files[1], reference, module.spec) > 1e-2


@pytest.mark.slow
def test_the_command_exports_an_avbert(tmp_path: Path) -> None:
    checkpoint, _, _ = avbert_small.trained(tmp_path)
    kept = tmp_path / "e.json"
    given = [str(checkpoint), "--task", "one", "--out", str(tmp_path / "out"), "--int8", "--json", str(kept)]
    assert main(given) == 0
    files = json.loads(kept.read_text())["files"]
    assert list(files) == ["model", "one.pt2", "one.onnx", "one.int8.onnx"]
    assert max(files["one.pt2"]["difference"], files["one.onnx"]["difference"]) < 1e-5
    assert 1e-7 < files["one.int8.onnx"]["difference"] < 0.1
    told = json.loads((tmp_path / "out" / "task.json").read_text())
    assert [(each["name"], each["shape"], each["dtype"]) for each in told["inputs"]] == [
        ("clips", ["batch", 3, 4, 16, 16, 3], "uint8"),
        ("spectrograms", ["batch", 3, 16, 16], "float32"),
    ]
    assert told["output"]["shape"] == ["batch", 5]


def test_a_packaged_avbert_is_the_same_and_says_what_it_is(tmp_path: Path) -> None:
    checkpoint, model, config = avbert_small.trained(tmp_path)
    write_package(checkpoint, tmp_path / "release")
    again, same, _ = load_trained(tmp_path / "release")
    assert same == config
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    card = (tmp_path / "release" / "model_card.md").read_text()
    for words in (
        "one audio-visual transformer for 2 tasks", "An AVBert that classifies videos with their sound",
        "mid fusion, transformers of width 16, depth 2, 2 heads; shared over layers: all, over transformers: "
        "low_rank of rank 4", "| transformers/shared |",
    ):  # fmt: skip
        assert words in card, words


def test_the_figures_of_an_avberts_data_are_the_models(tmp_path: Path) -> None:
    """The feed's named arrays go into a file's runner as into the model."""
    _, model, config = avbert_small.trained(tmp_path)
    batch = avbert_small.minibatch(config, "one", 1)
    runner = torch_runner(task_model(model, config, "one"))
    with torch.inference_mode():
        inputs = {name: normalise(torch.from_numpy(array)) for name, array in batch.inputs.items()}
        wanted = model(inputs, "one").numpy()
    found = accuracy({"file": runner, "model": lambda *_: wanted}, [batch], config, "one")
    assert found["file"]["examples"] == 4
    assert found["file"]["value"] == found["model"]["value"]
    assert found["file"]["loss"] == pytest.approx(found["model"]["loss"], rel=1e-5)


def test_one_message_where_files_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SequenceInput, "codec", "polyvit.data.loading.codecs.not_there")
    checkpoint, model, config = avbert_small.trained(tmp_path)
    said = "this version cannot read files of audiovisual tasks yet"
    with pytest.raises(UserError, match=said):
        Predictor.load(checkpoint)
    with pytest.raises(UserError, match=said):
        Predictor(model, config)


# ------------------------------------------------------------------------------------- PolyViT, low rank


@pytest.mark.parametrize(("rank", "factors"), [(2, True), (4, True), (16, False)])
def test_a_low_rank_task_alone_answers_as_the_model_does(tmp_path: Path, rank: int, factors: bool) -> None:
    """Factors stay where they are fewer numbers than the map, and are multiplied out where they are not."""
    _, model, config = trained(tmp_path, LOW_RANK[0], f"model.sharing.rank={rank}", "model.l_adapt=1")
    files, predictor = media(tmp_path / "media"), Predictor(model, config)
    from polyvit.deploy.export import media_of
    from polyvit.deploy.predict import prepare

    for task, name in [("picture", "image"), ("clip", "clip"), ("sound", "song")]:
        module = task_model(model, config, task)
        assert isinstance(module, TaskModel)
        assert [isinstance(block, LowRankBlock) for block in module.blocks] == [False, factors, factors]
        prepared = prepare(files[name].read_bytes(), config, [task])
        arrays = media_of(prepared.groups[0].arrays["tokens"], module.spec)
        wanted = predictor.logits([prepared])[0][task].numpy()
        assert np.abs(torch_runner(module)(arrays)[0] - wanted).max() < 1e-5
        others = {"image", "video", "audio"} - {config.tasks[task].modality}
        assert not any(f".private.{other}." in n for n, _ in module.named_parameters() for other in others)


def test_a_packaged_low_rank_model_answers_alike(tmp_path: Path) -> None:
    checkpoint, model, config = trained(tmp_path, *LOW_RANK)
    write_package(checkpoint, tmp_path / "release")
    files = media(tmp_path / "media")
    given = [files[name] for name in ("image", "clip", "song")]
    again = Predictor.load(tmp_path / "release")
    assert list(again.predict(given)) == list(Predictor(model, config, again.classes).predict(given))
    card = (tmp_path / "release" / "model_card.md").read_text()
    assert "; a private factor of rank 4 for each modality in every shared map" in card


def test_a_layer_that_is_shared_is_exported_once(tmp_path: Path) -> None:
    _, model, config = trained(tmp_path, *LOW_RANK, "model.sharing.layers=all", "model.l_adapt=0")
    module = task_model(model, config, "picture")
    assert len(module.blocks) == 3  # type: ignore[arg-type]
    assert len({id(block) for block in module.blocks}) == 1  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [4, 16])
def test_low_rank_files_answer_as_the_model_does(tmp_path: Path, rank: int) -> None:
    _, model, config = trained(tmp_path, LOW_RANK[0], f"model.sharing.rank={rank}", "model.sharing.layers=all")
    module = task_model(model, config, "picture")
    reference = torch_runner(module)
    runs = export_torch(module, tmp_path / "m.pt2"), export_onnx(module, tmp_path / "m.onnx")
    for run in runs:
        assert difference(run, reference, module.spec) < 1e-5
    run = quantise(tmp_path / "m.onnx", tmp_path / "m.int8.onnx")
    assert 1e-7 < difference(run, reference, module.spec) < 0.2
