"""The train workers' process group: made by the workers themselves, so that only they import torch.

Ray Train's own `TorchConfig` makes its controller import torch too: two seconds before the first worker starts.
The controller gets a `WorkersOwnGroup` instead, which asks nothing of it. Kept free of torch for that reason.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import ray.train
import ray.util
from ray.train.backend import BackendConfig
from ray.train.collective import broadcast_from_rank_zero

if TYPE_CHECKING:
    import torch

TIMEOUT = timedelta(minutes=30)
"""Of a collective operation, as Ray Train's default."""


@dataclass
class WorkersOwnGroup(BackendConfig):
    """In place of `TorchConfig`: nothing is set up before the train function runs."""

    backend: str = "by the workers"


@contextmanager
def process_group(device: "torch.device") -> Iterator[None]:
    """torch.distributed's default process group over all train workers of this run: NCCL for GPUs, else gloo.

    One worker needs none. Called on every worker, within a train function. Where the block fails the group is left
    as it is: a rank may have died, and Ray Train ends the processes.
    """
    import torch
    import torch.distributed as dist  # not above: the controller would import it

    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=_store(rank, size),
            rank=rank,
            world_size=size,
            timeout=TIMEOUT,
        )
    yield
    if size > 1:
        dist.destroy_process_group()


def _store(rank: int, size: int) -> "torch.distributed.TCPStore":
    """Where the ranks meet: a port of rank 0's node that the system chose."""
    from torch.distributed import TCPStore

    here = None
    if rank == 0:
        host = ray.util.get_node_ip_address()
        store = TCPStore(host, 0, size, is_master=True, timeout=TIMEOUT, wait_for_workers=False)
        here = (host, store.port)
    host, port = broadcast_from_rank_zero(here)
    return store if rank == 0 else TCPStore(host, port, size, is_master=False, timeout=TIMEOUT)
