"""Contrastive pre-training on two ranks that talk by gloo against one process: loss, gradients, measures, FSDP."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from avbert_small import contrastive, minibatch
from ranks_kit import GlooWorld, SingleProcess, meet
from safetensors.torch import load_file, save_file

from polyvit.config import RunConfig
from polyvit.distributed import Communicator, full_state, load_parameters, shard
from polyvit.evaluation.evaluator import evaluate
from polyvit.model import MultiTaskModel, build_model
from polyvit.objectives.contrastive import info_nce
from polyvit.training import train_step
from polyvit.training.optim import build_optimiser

CONFIGS = {
    "similar": contrastive(dropout=0.2),
    "dissimilar": contrastive({"sampling": "dissimilar", "other_videos_only": True}, fusion="early"),
}


def built(config: RunConfig) -> MultiTaskModel:
    """A model whose residual branches count.

    As a model begins, they do not: clips whose stems are 0 at one place then embed alike, and which of two equal
    scores is larger is rounding.
    """
    model, generator = build_model(config, seed=config.seed), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_cnn." in name and name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
    return model


def steps(config: RunConfig, world: Communicator, rows: slice, path: Path, sharded: bool = False) -> None:
    """A step of plain SGD, whose change is the gradient; parameters, buffers and what was measured to a file."""
    model = built(config)
    if sharded:
        shard(model.sharding_units())
    optimiser = build_optimiser(dict(model.named_parameters()), config.optim)
    result = train_step(model, optimiser, [minibatch(config, "one", 1, rows)], 1.0, config, world)
    tensors, _ = full_state(model, optimiser)
    if sharded:  # one rank has a minibatch that is too small to be measured, and then none: it takes part
        mine = [minibatch(config, "one", 2), minibatch(config, "one", 3)] if rows.start == 0 else [
            minibatch(config, "one", 2, slice(0, 1))
        ]  # fmt: skip
        measured = evaluate(model, mine, config, world)[0]["one"]
        whole = built(config)
        load_parameters(whole, tensors)
        both = [minibatch(config, "one", 2), minibatch(config, "one", 3)]
        expected = evaluate(whole, both, config, SingleProcess())[0]["one"]
        assert measured.keys() == expected.keys()
        for key, value in expected.items():
            assert measured[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), key
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

    Sums are taken in another order: a gradient is within 2e-4 of the largest of its tensor. Hits are the same.
    """
    alone, mine, other = (load_file(folder / f"{name}_{who}") for who in ("alone", "0", "1"))
    start = built(CONFIGS[name]).state_dict()
    assert alone.keys() == mine.keys()
    for key, tensor in alone.items():
        assert torch.equal(mine[key], other[key]), key
        change = tensor - start[key] if key in start else tensor
        limit = 2e-4 * max(float(change.abs().max()), 1e-2)
        if key.startswith(("measure.retrieval", "measure.pair_accuracy")):
            limit = 0.0
        assert float((tensor - mine[key]).abs().max()) <= limit, key


@pytest.mark.parametrize("name", CONFIGS)
def test_no_score_is_so_near_another_that_rounding_tells_them_apart(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes the hits above comparable: 1e-3 is a thousand times what other orders of sums change."""
    margins: list[torch.Tensor] = []

    def watched(query: torch.Tensor, positive: torch.Tensor, negatives: torch.Tensor, temperature: float) -> Any:
        best = (negatives @ query[..., None])[..., 0].amax(1)
        margins.append(((query * positive).sum(-1) - best).detach())
        return info_nce(query, positive, negatives, temperature)

    monkeypatch.setattr("polyvit.objectives.pretraining.info_nce", watched)
    config = CONFIGS[name]
    model = built(config)
    optimiser = build_optimiser(dict(model.named_parameters()), config.optim)
    train_step(model, optimiser, [minibatch(config, "one", 1)], 1.0, config, SingleProcess())
    assert len(margins) == (4 if name == "similar" else 2)
    assert min(float(margin.abs().min()) for margin in margins) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_sharded_takes_the_same_step(folder: Path, name: str) -> None:
    whole, sharded = (load_file(folder / f"{name}{way}_0") for way in ("", "_sharded"))
    assert whole.keys() == sharded.keys()
    assert all(torch.allclose(whole[key], sharded[key], atol=2e-5) for key in whole)
