"""A checkpoint is read by rank 0 alone; the others have its bits from there, and its errors too."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks_kit import GlooWorld, meet
from small import fresh, small_config

from polyvit.checkpoint.state import TrainState, TrainUnit, checkpoint_data, load_training, training_tensors
from polyvit.config import RunConfig
from polyvit.errors import UserError
from polyvit.training.ema import Ema

HASHES = {"schedule_hash": "s", "index_hash": {"a": "b"}}
KEYS = {
    "sgd": ("optim.momentum_dtype=bfloat16", "optim.ema_decay=0.9"),
    "adamw": ("optim.kind=adamw",),
}


def unit_of(config: RunConfig, seed: int) -> TrainUnit:
    """With a state of numbers that follow from the seed."""
    model, optimiser, _ = fresh(config.model_copy(update={"seed": seed}))
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    optimiser.step(0.01)
    return TrainUnit(model, optimiser, Ema(model, 0.9) if config.optim.ema_decay else None)


def write(folder: Path, config: RunConfig, unit: TrainUnit) -> None:
    folder.mkdir()
    state = TrainState(7, {"clip": 4}, {"clip": 1})
    checkpoint_data(training_tensors(unit), state, config, HASHES).write(folder)


def same(one: TrainUnit, other: TrainUnit) -> bool:
    mine, theirs = training_tensors(one), training_tensors(other)
    return mine.keys() == theirs.keys() and all(
        mine[file].keys() == theirs[file].keys()
        and all(torch.equal(mine[file][n], theirs[file][n]) for n in mine[file])
        for file in mine
    )


def work(rank: int, folder: str) -> None:
    """One rank: what it has after loading, and what it is told of a checkpoint that does not fit."""
    meet(rank, 2, folder)
    world, kept = GlooWorld(), {}
    for name, keys in KEYS.items():
        config = small_config(*keys)
        unit, expected = unit_of(config, 20 + rank), unit_of(config, 5)
        place = Path(folder) / name if rank == 0 else None
        differed = not same(unit, expected)
        state = load_training(place, unit, HASHES, world)
        kept[name] = (differed, same(unit, expected), state)
    try:
        load_training(Path(folder) / "sgd" if rank == 0 else None, unit, {"schedule_hash": "other"}, world)
    except UserError as error:
        kept["error"] = error.message
    torch.save(kept, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_rank_0_reads_and_all_have_it(tmp_path: Path) -> None:
    for name, keys in KEYS.items():
        write(tmp_path / name, small_config(*keys), unit_of(small_config(*keys), 5))
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        kept: dict[str, Any] = torch.load(tmp_path / f"{rank}.pt", weights_only=False)  # written by this test
        for name in KEYS:
            assert kept[name] == (True, True, TrainState(7, {"clip": 4}, {"clip": 1})), name
        assert "its schedule hash differs from this run's" in kept["error"]


@pytest.mark.parametrize("name", KEYS)
def test_one_process_alone(tmp_path: Path, name: str) -> None:
    config = small_config(*KEYS[name])
    write(tmp_path / name, config, unit_of(config, 5))
    unit = unit_of(config, 6)
    load_training(tmp_path / name, unit, HASHES)
    assert same(unit, unit_of(config, 5))
