"""`polyvit interference`: from a run's folder and data to a page; what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from checkpoint_kit import save_checkpoint
from pipelines_kit import pair_config

from pipelines.interference import main, measured_config
from polyvit.checkpoint.state import TrainState, TrainUnit
from polyvit.config import RunConfig
from polyvit.errors import UserError
from polyvit.model.build import build_model
from polyvit.synthetic.write import write_example_pair
from polyvit.training.drift import build_drift
from polyvit.training.optim import build_optimiser


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunConfig]:
    """A run of two checkpoints, the second with shared weights a tenth larger, and its config."""
    folder = tmp_path_factory.mktemp("interference")
    write_example_pair(folder / "data")
    config = pair_config(folder / "data", folder, "train.drift=true")
    model = build_model(config, seed=0)
    with torch.no_grad():
        for head in model.heads.values():
            head.weight.normal_(generator=torch.Generator().manual_seed(1))
    drift = build_drift(model, config)
    assert drift is not None
    unit = TrainUnit(model, build_optimiser(dict(model.named_parameters()), config.optim), drift=drift)
    drift.before()
    for step in (2, 4):
        save_checkpoint(folder / "run" / f"step_{step:08d}", unit, TrainState(global_step=step), config, {})
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.startswith("shared."):
                    parameter.mul_(1.1)
            drift.after("shapes")
    return folder / "run", config


def test_from_a_run_to_a_page(run: tuple[Path, RunConfig], tmp_path: Path) -> None:
    folder, config = run
    arguments = [str(folder), "--minibatches", "2", "--out", str(tmp_path / "out"), "--json", str(tmp_path / "j")]
    assert main(arguments) == 0
    document = json.loads((tmp_path / "j").read_text())
    assert json.loads((tmp_path / "out" / "interference.json").read_text()) == document
    assert set(document["tasks"]) == set(config.tasks)
    assert all(row["minibatches"] == 2 and row["grad_norm"] > 0 for row in document["tasks"].values())
    (pair,) = [pair for pair in document["pairs"] if pair["group"] == "shared"]
    assert -1 <= pair["interval"][0] <= pair["interval"][1] <= 1
    (interval,) = document["drift"]["intervals"]
    assert (interval["from"], interval["to"], sum(interval["steps"].values())) == (2, 4, 2)
    assert interval["moved"]["shared.norm"] == pytest.approx(0.1, abs=1e-4)
    page = (tmp_path / "out" / "interference.html").read_text()
    assert "What this suggests" in page
    assert "2 to 4" in page
    own = document["drift"]["by_task"]
    assert sum(own["steps"].values()) == 4
    assert own["tasks"]["shapes"]["cosine"] == pytest.approx(1)
    assert own["tasks"]["sounds"] == {"norm": 0, "cosine": None}
    assert own["groups"]["shared.norm"]["norm"] == pytest.approx(0.1 * 16**0.5, rel=1e-5)  # scales from 1 to 1.1
    assert "own steps moved shared weights" in page
    assert page.count("data:image/png") == 2
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_what_is_refused(run: tuple[Path, RunConfig]) -> None:
    _, config = run
    first = next(iter(config.tasks))
    with pytest.raises(UserError, match=f"interference is between tasks: {first} is one"):
        measured_config(config, None, [], [first])
    with pytest.raises(UserError, match=r"model\.width=8: gradients are of the model as it was trained"):
        measured_config(config, None, ["model.width=8"], [])
    with pytest.raises(UserError, match="the model was not trained on imagenet"):
        measured_config(config, "tiny-nine", [], [])
    with pytest.raises(UserError, match="not trained on nosuch"):
        measured_config(config, None, [], ["nosuch"])
    with pytest.raises(UserError) as caught:
        measured_config(config, None, [f"tasks.{first}.num_classes=9"], [])
    assert caught.value.problems == (f"tasks.{first}.num_classes=9: the model was trained with 3",)
    whole = measured_config(config, None, ["train.sharding=full", "train.drift=false"], [])
    assert whole.train.sharding == "full"  # of the run: its checkpoint is whole
    assert measured_config(config, "seed=5", ["optim.lr=2"], []).seed == 5  # CONFIG left out
