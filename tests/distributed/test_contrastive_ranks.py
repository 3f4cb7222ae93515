"""Contrastive pre-training on two ranks that talk by gloo against one process: loss, gradients, measures, FSDP."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from avbert_small import contrastive, minibatch
from ranks_kit import GlooWorld, SingleProcess, meet
from safetensors.torch import load_file, save_file

from polyvit.config import RunConfig
from polyvit.distributed import Communicator, full_state, shard
from polyvit.model import build_model
from polyvit.training import train_step
from polyvit.training.optim import build_optimiser

CONFIGS = {
    "similar": contrastive(dropout=0.2),
    "dissimilar": contrastive({"sampling": "dissimilar", "other_videos_only": True}, fusion="early"),
}


def steps(config: RunConfig, world: Communicator, rows: slice, path: Path, sharded: bool = False) -> None:
    """A step of plain SGD, whose change is the gradient; parameters, buffers and what was measured to a file."""
    model = build_model(config, seed=config.seed)
    if sharded:
        shard(model.sharding_units())
    optimiser = build_optimiser(dict(model.named_parameters()), config.optim)
    result = train_step(model, optimiser, [minibatch(config, "one", 1, rows)], 1.0, config, world)
    tensors, _ = full_state(model, optimiser)
    measures = {f"measure.{name}": torch.tensor(value) for name, value in result.measures["one"].items()}
    loss = {"loss": torch.tensor(result.losses[0])}
    save_file({n: t.contiguous() for n, t in {**tensors, **measures, **loss}.items()}, path)


def work(rank: int, folder: str) -> None:
    """Two of four examples; then with FSDP."""
    meet(rank, 2, folder)
    for name, config in CONFIGS.items():
        rows = slice(0, 2) if rank == 0 else slice(2, 4)
        steps(config, GlooWorld(), rows, Path(folder, f"{name}_{rank}"))
        steps(config, GlooWorld(), rows, Path(folder, f"{name}_sharded_{rank}"), sharded=True)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
    for name, config in CONFIGS.items():
        steps(config, SingleProcess(), slice(None), folder / f"{name}_alone")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_two_ranks_take_the_step_of_one(folder: Path, name: str) -> None:
    """Negatives come from both ranks, and gradients go back to both; batch norm counts all clips.

    Sums are taken in another order: a gradient is within 2e-4 of the largest of its tensor.
    """
    alone, mine, other = (load_file(folder / f"{name}_{who}") for who in ("alone", "0", "1"))
    start = build_model(CONFIGS[name], seed=CONFIGS[name].seed).state_dict()
    assert alone.keys() == mine.keys()
    for key, tensor in alone.items():
        assert torch.equal(mine[key], other[key]), key
        change = tensor - start[key] if key in start else tensor
        limit = 2e-4 * max(float(change.abs().max()), 1e-2)
        if key.startswith("measure.retrieval"):
            limit = 0.25  # one of four clips, whose scores are alike at first, may be found or not by rounding
        assert float((tensor - mine[key]).abs().max()) <= limit, key


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_sharded_takes_the_same_step(folder: Path, name: str) -> None:
    whole, sharded = (load_file(folder / f"{name}{way}_0") for way in ("", "_sharded"))
    assert whole.keys() == sharded.keys()
    assert all(torch.allclose(whole[key], sharded[key], atol=2e-5) for key in whole)
