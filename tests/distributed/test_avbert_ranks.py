"""AVBert on two ranks that talk by gloo: what each reduces, running averages, FSDP against whole parameters."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from model.test_avbert import minibatch, tiny
from ranks_kit import GlooWorld, meet
from safetensors.torch import load_file, save_file

from polyvit.config import RunConfig
from polyvit.distributed import full_state, shard
from polyvit.model import build_model
from polyvit.training import train_step
from polyvit.training.optim import build_optimiser

SHARINGS: dict[str, dict[str, Any]] = {
    "method": {"rank": 4},
    "plain": {"layers": "none", "roles": "none"},
    "alone": {"layers": "none", "roles": "low_rank_alone", "rank": 4},
}


def work(rank: int, folder: str, configs: dict[str, RunConfig]) -> None:
    """Three steps of two of four sequences, plain and sharded; then a rank that has none of them."""
    meet(rank, 2, folder)
    for name, config in configs.items():
        for way in ("whole", "sharded"):
            model = build_model(config, seed=config.seed)
            model.activation_checkpointing = way == "whole"
            if way == "sharded":
                shard(model.sharding_units())
            optimiser = build_optimiser(dict(model.named_parameters()), config.optim)
            halves = [slice(0, 2), slice(2, 4)]
            for step in (1, 2, 3):
                part = minibatch(config, "one", step, halves[rank])
                train_step(model, optimiser, [part], 1e-2, config, GlooWorld())
            tensors, _ = full_state(model, optimiser)
            save_file({n: t.contiguous() for n, t in tensors.items()}, f"{folder}/{name}_{way}_{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    configs = {name: tiny(sharing=sharing, dropout=0.1) for name, sharing in SHARINGS.items()}
    torch.multiprocessing.spawn(work, (str(folder), configs), nprocs=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARINGS)
def test_ranks_end_with_the_same_bits(states: Path, name: str) -> None:
    """Parameters, and the mean of the running averages; and those did move."""
    for way in ("whole", "sharded"):
        mine, other = (load_file(states / f"{name}_{way}_{rank}.safetensors") for rank in (0, 1))
        assert mine.keys() == other.keys()
        assert all(torch.equal(tensor, other[key]) for key, tensor in mine.items())
        assert mine["audio_cnn.stem.0.norm.running_mean"].abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARINGS)
def test_sharded_is_whole_to_rounding(states: Path, name: str) -> None:
    """Activation checkpointing on the one side, FSDP on the other. AdamW divides a gradient by its own size, so
    rounding of a gradient near zero (a key's bias has none but that) moves a parameter by as much as a step: 3e-2
    in three; everything else within 1e-3.
    """
    whole, sharded = (load_file(states / f"{name}_{way}_0.safetensors") for way in ("whole", "sharded"))
    assert whole.keys() == sharded.keys()
    for key, tensor in whole.items():
        limit = 6e-2 if key.endswith("key.bias") else 1e-3
        assert float((tensor - sharded[key]).abs().max()) <= limit, key


def test_one_rank_has_the_statistics_of_its_own_examples() -> None:
    """Local statistics, as the release: half a batch alone gives other running averages than the whole."""
    config = tiny()
    found = []
    for rows in (slice(0, 2), slice(0, 4)):
        model = build_model(config, seed=1)
        part = minibatch(config, "one", 1, rows)
        inputs = {name: torch.from_numpy(np.asarray(a)).float() for name, a in part.inputs.items()}
        model(inputs, "one")
        found.append(model.get_buffer("visual_cnn.stem.norm.running_mean").clone())
    assert not torch.allclose(found[0], found[1])
