"""Training in real processes that talk by gloo; imported by name in the spawned processes."""

from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from small import ArrayFeed, Heard, fresh
from torch import Tensor

import polyvit.distributed.reducer
from polyvit.checkpoint.state import TrainState, TrainUnit
from polyvit.config import RunConfig
from polyvit.distributed import Communicator, ProcessGroupCommunicator, SingleProcess
from polyvit.training.loop import train
from polyvit.training.loss_weights import learned_weights

BAD = frozenset({("picture", 3), ("clip", 1), ("sound", 5)})


class GlooWorld(ProcessGroupCommunicator):
    """The process group of this process."""


def trained(config: RunConfig, world: Communicator) -> tuple[dict[str, Tensor], TrainState, Heard]:
    """Parameters, state and events after all steps of `config` on one rank of a world."""
    model, optimiser, schedule = fresh(config)
    feed, events = ArrayFeed(config, world.rank, world.size, BAD, schedule), Heard()
    unit = TrainUnit(model, optimiser, None, learned_weights(config, torch.device("cpu")))
    state = train(unit, schedule, feed, config, world, TrainState(), events)
    return {name: p.detach() for name, p in model.named_parameters()}, state, events


def meet(rank: int, world_size: int, folder: str) -> None:
    """The process group of a test, and buckets so small that a tiny model fills several."""
    torch.set_num_threads(1)
    polyvit.distributed.reducer.BUCKET_BYTES = 8192
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world_size)


def work(rank: int, world_size: int, folder: str, configs: dict[str, RunConfig]) -> None:
    """One rank: train every config, keep parameters, state and loss curve."""
    meet(rank, world_size, folder)
    for name, config in configs.items():
        parameters, state, events = trained(config, GlooWorld())
        save_file(parameters, f"{folder}/{name}_{rank}.safetensors")
        torch.save({"state": state, "losses": [s["loss"] for s in events.snapshots], "points": events.points},
                   f"{folder}/{name}_{rank}.pt")  # fmt: skip
    dist.destroy_process_group()


def run_ranks(world_size: int, folder: Path, configs: dict[str, RunConfig]) -> None:
    """`work` in `world_size` new processes; raises if one of them fails."""
    folder.mkdir()
    torch.multiprocessing.spawn(work, (world_size, str(folder), configs), nprocs=world_size)


def result_of(folder: Path, name: str, rank: int) -> tuple[dict[str, Tensor], dict]:
    """What a rank kept."""
    kept = torch.load(folder / f"{name}_{rank}.pt", weights_only=False)  # written by this test
    return load_file(folder / f"{name}_{rank}.safetensors"), kept


__all__ = ["BAD", "GlooWorld", "SingleProcess", "meet", "result_of", "run_ranks", "trained"]
