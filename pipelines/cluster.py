"""Attach to a Ray cluster, or start one on this machine; check that it can hold the job."""

import contextlib
import logging
import math
import os
from collections.abc import Iterator

import ray
import ray.data

from polyvit.config import RunConfig
from polyvit.errors import UserError

# Ray reads these when its processes start. A parked iterator (a long evaluation, a rare task) is no stall.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "-1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@contextlib.contextmanager
def cluster(workers: int = 1, cpus_per_worker: float = 1.0) -> Iterator[None]:
    """The cluster that RAY_ADDRESS names; else one on this machine for as long as the block lasts.

    On this machine Ray is told of one logical CPU a train worker on top of the real ones: a train worker must
    not starve the decoding tasks, and the operating system shares the real cores among them.
    """
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    quiet_ray_logs()
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        cpus = math.ceil(workers * cpus_per_worker) + max(2, os.cpu_count() or 1)
        ray.init(
            num_cpus=cpus,
            include_dashboard=_has_dashboard(),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    try:
        yield
    finally:
        ray.shutdown()


def quiet_ray_logs() -> None:
    """Ray's own progress and plans go to its log files; ours go to the terminal."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _has_dashboard() -> bool:
    # With the dashboard comes the state API, by which a stopped trial's placement group is cleaned up.
    return os.environ.get("POLYVIT_RAY_DASHBOARD", "0") == "1"


def use_gpu(config: RunConfig) -> bool:
    """Whether each train worker gets a GPU: `train.use_gpu`, else if the cluster has enough."""
    if config.train.use_gpu is not None:
        return config.train.use_gpu
    return ray.cluster_resources().get("GPU", 0) >= config.train.workers * config.train.gpus_per_worker


def one_worker(config: RunConfig) -> RunConfig:
    """The config with one worker, for a job that needs no more than one process for the model."""
    return config.model_copy(update={"train": config.train.model_copy(update={"workers": 1})})


def check_resources(config: RunConfig) -> None:
    """Raises UserError where the cluster can never hold the workers and one decoding task.

    A job that cannot be placed would wait for ever otherwise.
    """
    train, have = config.train, ray.cluster_resources()
    needs = {"CPU": train.workers * train.cpus_per_worker + config.data.decode_cpus}
    if use_gpu(config):
        needs["GPU"] = train.workers * train.gpus_per_worker
    problems = [
        f"{name}: needs {need:g}, the cluster has {have.get(name, 0):g}"
        for name, need in needs.items()
        if have.get(name, 0) < need
    ]
    if problems:
        raise UserError(
            f"the Ray cluster is too small for train.workers={train.workers} and one decoding task of "
            f"data.decode_cpus={config.data.decode_cpus:g}; lower them or add nodes",
            problems,
        )
