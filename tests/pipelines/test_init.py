"""`init.path`: refused before anything starts, read by every rank of a new run and by none that goes on."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_kit import save_checkpoint
from mlflow.tracking import MlflowClient
from pipelines_kit import pair_config, pair_document
from safetensors.torch import load_file
from small import write_yaml

from pipelines import cli
from pipelines.training.worker import initialise_all, newest_step, starting_point
from polyvit.checkpoint.state import TrainState, TrainUnit
from polyvit.checkpoint.store import LocalStore
from polyvit.config import ImageInput, ImageTask, RunConfig
from polyvit.errors import UserError
from polyvit.model.polyvit import PolyViT
from polyvit.model.pretrained.convert import state_to_official
from polyvit.training.initialisation import check_init, init_problems
from polyvit.training.optim import build_optimiser
from polyvit.training.step import SingleProcess


def write_vit(path: Path, config: RunConfig, **changes: Any) -> Path:
    """A ViT that fits the encoder of `config` unless `changes` say otherwise, all random, as Scenic's .npz."""
    image = ImageInput(size=48, patch_size=config.model.audio.patch_size)
    model = config.model.model_copy(update={"image": image, "l_adapt": 0, **changes})
    source = PolyViT(model, {"pictures": ImageTask(layout="imagefolder", num_classes=3, steps=1, batch=1)})
    generator = torch.Generator().manual_seed(0)
    tree = {}
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.1, generator=generator)
    for name, array in state_to_official(source.state_dict(), model).items():
        name = name.replace("tokenizer/tokenizer2d/posembed_input", "Transformer/posembed_input")
        name = name.replace("tokenizer/tokenizer2d/", "").replace("vit_encoder/", "Transformer/")
        tree[name.replace("classification_head_pictures/output_projection", "head")] = array
    np.savez(path, **tree)
    return path


@pytest.fixture
def config(tmp_path: Path, pair_root: Path) -> RunConfig:
    """Pictures in the patches of the sounds, so that one ViT fits both."""
    return pair_config(pair_root, tmp_path, "model.image.patch_size=16", f"init.path={tmp_path}/vit.npz")


def test_nothing_to_start_from_is_no_problem(tmp_path: Path, pair_root: Path) -> None:
    assert init_problems(pair_config(pair_root, tmp_path)) == []
    check_init(pair_config(pair_root, tmp_path))


def test_a_vit_that_fits(config: RunConfig, tmp_path: Path) -> None:
    write_vit(tmp_path / "vit.npz", config)
    check_init(config)


def test_a_vit_that_does_not_fit_names_every_key(config: RunConfig, tmp_path: Path) -> None:
    write_vit(tmp_path / "vit.npz", config, depth=3, mlp_dim=48)
    assert init_problems(config) == [
        "init.path: the checkpoint's depth is 3, model.depth is 2; set model.depth=3",
        "init.path: the checkpoint's mlp_dim is 48, model.mlp_dim is 32; set model.mlp_dim=48",
    ]
    with pytest.raises(UserError, match=r"this run cannot start from init\.path=.*vit\.npz:"):
        check_init(config)


@pytest.mark.parametrize("command", ["cotrain", "plan"])
def test_a_missing_file_ends_the_command_before_it_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, pair_root: Path, command: str
) -> None:
    recipe, storage = write_yaml(tmp_path / "pair.yaml", pair_document(pair_root)), tmp_path / "runs"
    root = [] if command == "cotrain" else ["data.root=null"]  # a plan without data needs no Ray
    given = [f"init.path={tmp_path}/none.npz", f"storage={storage}", *root]
    assert cli.main([command, str(recipe), *given]) == 2
    err = capsys.readouterr().err
    assert "none.npz" in err
    assert "Traceback" not in err
    assert not storage.exists()


def test_every_rank_starts_from_the_file(config: RunConfig, tmp_path: Path) -> None:
    write_vit(tmp_path / "vit.npz", config)
    model = PolyViT(config.model, config.tasks, seed=1)
    head = model.heads["shapes"].weight.detach().clone()
    initialise_all(model, config, SingleProcess(), tmp_path / "init.txt", None)
    with np.load(tmp_path / "vit.npz") as tree:
        cls = tree["cls"]
    for tokenizer in model.tokenizers.values():
        assert np.array_equal(tokenizer.cls_token.detach().numpy(), cls)
    assert torch.equal(model.heads["shapes"].weight, head)
    table = (tmp_path / "init.txt").read_text()
    assert table.startswith(f"{tmp_path}/vit.npz: Flax .npz, width 16, 2 blocks")
    assert "left random  heads.shapes.weight" in table


class _OtherRankFails(SingleProcess):
    """A second rank, on a node where the file is missing."""

    size = 2

    def gather(self, value: object) -> list:
        return [value, UserError("no checkpoint at /none")]


def test_one_rank_that_cannot_read_stops_all(config: RunConfig, tmp_path: Path) -> None:
    write_vit(tmp_path / "vit.npz", config)
    model = PolyViT(config.model, config.tasks)
    with pytest.raises(UserError, match=r"init\.path on 1 of 2 workers: no checkpoint at /none"):
        initialise_all(model, config, _OtherRankFails(), tmp_path / "init.txt", None)
    assert not (tmp_path / "init.txt").exists()


def test_a_run_that_goes_on_does_not_read_the_file(config: RunConfig, tmp_path: Path) -> None:
    """The same call with and without a checkpoint; it is the checkpoint's weights that count."""
    write_vit(tmp_path / "vit.npz", config)
    trained, hashes = PolyViT(config.model, config.tasks, seed=5), {"schedule_hash": "s", "index_hash": {}}
    optimiser = build_optimiser(dict(trained.named_parameters()), config.optim)
    state = TrainState(global_step=3)
    save_checkpoint(tmp_path / "run" / "step_00000003", TrainUnit(trained, optimiser), state, config, hashes)
    weights, cls = {}, "tokenizers.image.cls_token"
    for folder in ("run", "empty"):
        store, report = LocalStore(tmp_path / folder), tmp_path / "init.txt"
        world = SingleProcess()
        step = newest_step(store, world)
        learner, state = starting_point(store, step, hashes, config, report, torch.device("cpu"), world, None)
        weights[state.global_step] = learner.model.state_dict()
    assert weights.keys() == {3, 0}
    assert all(torch.equal(value, weights[3][key]) for key, value in trained.state_dict().items())
    assert weights[3][cls].abs().max() == 0 < weights[0][cls].abs().max()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_starts_from_a_vit(tmp_path: Path, pair_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, a learning rate too small to move anything far: the trunk stays the file's."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    content = pair_document(pair_root)
    content["model"] |= {"l_adapt": 0, "image": {"size": 16, "patch_size": 16}}
    content |= {
        "optim": {"kind": "sgd", "lr": 1e-9, "warmup_steps": 0},
        "train": {"workers": 2, "max_failures": 0},
    }
    content["schedule"] = {"steps": 4}
    vit = write_vit(tmp_path / "vit.npz", pair_config(pair_root, tmp_path))
    recipe = write_yaml(tmp_path / "run.yaml", content)
    as_data, given = tmp_path / "out.json", [f"storage={tmp_path}/runs", f"init.path={vit}"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(["cotrain", str(recipe), "--name", "one", *given, "--json", str(as_data)]) == 0
    document = json.loads(as_data.read_text())
    place = Path(document["checkpoint"]).parent
    assert "shared.blocks.0..1" in (place / "init.txt").read_text()
    tracking = MlflowClient(tracking_uri=document["mlflow_uri"])
    assert "init.txt" in {found.path for found in tracking.list_artifacts(document["run_id"])}
    state = load_file(f"{document['checkpoint']}/model.safetensors")
    with np.load(vit) as tree:
        kernel_DM = tree["Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel"]
    assert np.allclose(state["shared.blocks.0.mlp.fc1.weight"].numpy().T, kernel_DM, atol=1e-6)
