"""How many train workers there are where the config leaves it open. Neither Ray nor torch is loaded.

In: a config, this machine's devices. Out: a config with a number of workers.
"""

import os
from pathlib import Path

from polyvit.config import RunConfig, validate_config

DEVICES = Path("/dev")


def gpus_here() -> int:
    """NVIDIA GPUs of this machine that may be used."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1", "NoDevFiles")])
    return len(list(DEVICES.glob("nvidia[0-9]*")))


def with_workers(config: RunConfig, workers: int) -> RunConfig:
    """The config with so many train workers, checked again. Raises UserError where it does not allow them."""
    if config.train.workers == workers:
        return config
    document = config.model_dump(mode="json")
    document["train"]["workers"] = workers
    return validate_config(document)


def crowded(config: RunConfig) -> str | None:
    """A warning where train workers on CPUs of this machine outnumber them; None where a cluster is named, whose
    nodes Ray knows."""
    train, have = config.train, os.cpu_count() or 1
    on_gpus = train.use_gpu or (train.use_gpu is None and gpus_here())
    if os.environ.get("RAY_ADDRESS") or on_gpus or train.workers is None:
        return None
    wanted = train.workers * train.cpus_per_worker
    if wanted <= have:
        return None
    return (
        f"train.workers={train.workers} want {wanted:g} CPUs and share this machine's {have}: nothing is gained"
        f" over train.workers={max(1, int(have // train.cpus_per_worker))}"
    )
