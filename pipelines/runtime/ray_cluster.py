"""Attach to a Ray cluster, or start one on this machine.

In: how many train workers there will be. Out: a cluster for as long as a block lasts.
"""

import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import psutil
import ray
import ray.exceptions

from pipelines.runtime.workers import gpus_here
from polyvit.errors import UserError

# Ray reads these when its processes start. A parked iterator (a long evaluation, a rare task) is no stall.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "-1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process more; nothing of ours listens to it
    "RAY_prestart_worker_first_driver": "0",  # a process for each CPU, which actors of Ray Train cannot use
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
STARTS = 3
"""How often we try to start a Ray node. It ends itself where the machine is so busy that its agent takes over 15
s."""
ANSWER_S = 10.0
"""How long we wait for a cluster at RAY_ADDRESS to answer."""
FOLDER_BYTES = 40
"""A socket's path has at most 107 bytes, and Ray adds 66 to its folder's."""

T = TypeVar("T")


@contextlib.contextmanager
def cluster(
    workers: int | None = 1, cpus_per_worker: float = 1.0, meanwhile: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Attach to the cluster that RAY_ADDRESS names; else start one on this machine for as long as the block lasts.

    On this machine Ray is told of more logical CPUs than there are, by those of the train workers: a train worker
    must not take a CPU from the decoding tasks, and the operating system shares the real cores among them.

    workers: train workers of the job; None: one for each GPU of this machine. cpus_per_worker: logical CPUs of
    each. meanwhile: called in a thread while Ray starts, for imports that take seconds; it has ended when the
    block begins.
    """
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):  # its own progress stays in its log files
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        meanwhile()
        yield
        return
    with ThreadPoolExecutor(1) as thread:
        imported = thread.submit(meanwhile)
        _attach_or_start(workers or gpus_here() or 1, cpus_per_worker)
    try:
        imported.result()
        yield
    finally:
        ray.shutdown()


def _attach_or_start(workers: int, cpus_per_worker: float) -> None:
    if address := os.environ.get("RAY_ADDRESS"):
        _attach(address)
        return
    cpus = math.ceil(workers * cpus_per_worker) + max(2, os.cpu_count() or 1)
    # Idle processes that are kept: a feed through Ray Data has one more than CPUs (feed/ray_data.py).
    os.environ.setdefault("RAY_num_workers_soft_limit", str(cpus + workers + 1))
    _use_short_folder()
    start_node(
        lambda: ray.init(
            address="local",  # not one that somebody else happens to run on this machine
            num_cpus=cpus,
            include_dashboard=_has_dashboard(),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    )


def _attach(address: str) -> None:
    """Raises UserError where nothing answers at the address, or what answers refuses us.

    Ray itself would try for minutes.
    """
    advice = "start that cluster, correct RAY_ADDRESS, or unset it to start Ray on this machine"
    if reason := unreachable(address, ANSWER_S):
        raise UserError(f"RAY_ADDRESS={address}: nothing answers there ({reason}); {advice}")
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"RAY_ADDRESS={address}: this cluster cannot be used ({why}); {advice}") from None


def unreachable(address: str, patience_s: float) -> str:
    """Why no TCP connection to `host:port` or `ray://host:port` is made; '' for one, and for other addresses."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return ""
    until = time.monotonic() + patience_s
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=patience_s).close()
        except (OSError, OverflowError) as error:
            if time.monotonic() > until - 1:
                return str(error)
            time.sleep(1)
        else:
            return ""


def _use_short_folder() -> None:
    """Have Ray keep its sockets in /tmp where TMPDIR or RAY_TMPDIR would make their paths too long."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(folder)) > FOLDER_BYTES:
        os.environ["RAY_TMPDIR"] = "/tmp"


def start_node(start: Callable[[], T]) -> T:
    """Call `start`, which starts a Ray node on this machine, up to STARTS times while Ray says that it took too
    long.

    Returns what `start` returns. Raises UserError where no try was fast enough.
    """
    for _ in range(STARTS):
        before = set(psutil.Process().children())
        try:
            return start()
        except Exception as error:  # Ray's own is a plain Exception
            if "timed out during startup" not in str(error):
                raise
        for process in set(psutil.Process().children()) - before:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    busy = f"load {os.getloadavg()[0]:.0f} on {os.cpu_count()} CPUs"
    raise UserError(
        f"Ray did not start within 30 s, {STARTS} times: this machine is too busy ({busy}); try again later"
    )


def _has_dashboard() -> bool:
    # The dashboard brings the state API, through which a stopped trial's placement group is cleaned up.
    return os.environ.get("POLYVIT_RAY_DASHBOARD", "0") == "1"
