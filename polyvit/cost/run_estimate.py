"""What a run takes on this machine: a few real steps are timed, memory is counted, disk is added up.

One task of each modality is run at its own shapes with a few examples. The other tasks of the modality differ in
their heads only, so they are taken to need the same time an example. `cluster_model.py` predicts for a cluster.
"""

import os
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from polyvit.config import Modality, RunConfig
from polyvit.data.loading import Minibatch, blank_arrays
from polyvit.model import MultiTaskModel, build_model, training_flops
from polyvit.schedule import Schedule, mixes
from polyvit.training import (
    FakePass,
    SingleProcess,
    balancing_bytes,
    build_optimiser,
    drift_bytes,
    free_bytes,
    train_step,
)

STATE_BYTES = {"sgd": 4, "adamw": 8}
"""Optimiser state a parameter (momentum in bfloat16: half)."""


@dataclass(frozen=True)
class Estimate:
    """What one worker needs: seconds and bytes of each task's steps; hours and bytes of the whole run.

    step_s: of each task's local batch, the median. pass_bytes: of one pass over the fewest examples possible.
    hours: as the medians, `hours_range` as the fastest and the slowest steps say. threads: of the CPU, as a train
    worker has; None on a GPU. load: runnable processes for each core of this machine before the steps were timed.
    state_bytes: parameters, gradients, optimiser, the gradients that balancing keeps, the accounts of drift.
    disk_bytes: of the
    checkpoints that exist at one time.
    """

    device: str
    step_s: dict[str, float]
    pass_bytes: dict[str, int]
    hours: float
    hours_range: tuple[float, float]
    threads: int | None
    load: float
    state_bytes: int
    memory_free: int
    disk_bytes: int
    disk_free: int

    def problems(self) -> list[str]:
        """Why the run would fail: too little memory or disk. One line each."""
        problems = []
        for task, need in self.pass_bytes.items():
            if self.state_bytes + need > self.memory_free:
                problems.append(
                    f"tasks.{task}: a step needs {(self.state_bytes + need) / 1e9:.2f} GB at the least, "
                    f"{self.memory_free / 1e9:.2f} GB are free on {self.device}; "
                    "set train.activation_checkpointing=true, a smaller model, or train on more memory"
                )
        if self.disk_bytes > self.disk_free:
            problems.append(
                f"storage: checkpoints need {self.disk_bytes / 1e9:.2f} GB, {self.disk_free / 1e9:.2f} GB are "
                "free; lower train.keep_checkpoints, or give another storage or train.checkpoint_dir"
            )
        return problems


def threads_of_worker(config: RunConfig) -> int:
    """Threads of torch in a train worker: Ray gives a process as many as it has logical CPUs, at least 1."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else max(1, int(config.train.cpus_per_worker))


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def estimate(config: RunConfig, schedule: Schedule, device: torch.device, rounds: int = 3) -> Estimate:
    """Measure `rounds` steps on `device`; the config's workers are taken to have one such device each.

    On a CPU steps have as many threads as a train worker has.
    """
    threads = threads_of_worker(config) if device.type == "cpu" else None
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    model = build_model(config, seed=config.seed)
    parameters = sum(p.numel() for p in model.parameters())
    state_bytes = parameters * (8 + STATE_BYTES[config.optim.kind]) // _parts(config)
    state_bytes += balancing_bytes(model, config) + drift_bytes(model, config)
    fakes = {name: FakePass(config, name) for name in _one_each(config).values()}
    least = {m: fakes[name].peak(2 if mixes(config.tasks[name]) else 1) for m, name in _one_each(config).items()}
    free, fits = free_bytes(device), {m: state_bytes + need <= free_bytes(device) for m, need in least.items()}
    per_example: dict[Modality, tuple[float, float, float]] = {}
    if all(fits.values()):
        model = model.to(device)
        with _threads(threads):
            for modality, name in _one_each(config).items():
                per_example[modality] = _seconds_an_example(model, config, name, device, rounds)
    unknown = (float("nan"),) * 3
    low, step_s, high = (
        {
            name: per_example.get(task.modality, unknown)[place] * task.batch / config.train.known_workers
            for name, task in config.tasks.items()
        }
        for place in range(3)
    )
    kept = config.train.keep_checkpoints + config.train.keep_best + 1  # one is written before one goes
    weights = 4 + STATE_BYTES[config.optim.kind] + (4 if config.optim.ema_decay else 0)
    counts = schedule.counts()
    return Estimate(
        device="this CPU" if device.type == "cpu" else torch.cuda.get_device_name(device),
        step_s=step_s,
        pass_bytes={name: least[task.modality] for name, task in config.tasks.items()},
        hours=_hours(counts, step_s),
        hours_range=(_hours(counts, low), _hours(counts, high)),
        threads=threads,
        load=load,
        state_bytes=state_bytes,
        memory_free=free,
        disk_bytes=parameters * weights * kept,
        disk_free=_disk_free(config),
    )


def _hours(counts: Mapping[str, int], step_s: Mapping[str, float]) -> float:
    return sum(counts[name] * seconds for name, seconds in step_s.items()) / 3600


def _parts(config: RunConfig) -> int:
    return config.train.known_workers if config.train.sharding == "full" else 1


def _one_each(config: RunConfig) -> dict[Modality, str]:
    """The task of each modality that takes the most memory: the one with the largest head."""
    task_of: dict[Modality, str] = {}
    for name, task in sorted(config.tasks.items(), key=lambda item: item[1].num_classes):
        task_of[task.modality] = name
    return task_of


def _seconds_an_example(
    model: MultiTaskModel, config: RunConfig, name: str, device: torch.device, rounds: int
) -> tuple[float, float, float]:
    """The least, the median and the most over `rounds` steps of a few blank examples, after one that warms up; a
    pass that takes a CPU many seconds is timed once. NaN where that takes minutes.
    """
    task = config.tasks[name]
    heavy = training_flops(config.model, task.modality) if device.type == "cpu" else 0.0
    if heavy > 4e12:
        return (float("nan"),) * 3  # type: ignore[return-value]
    pair = 2 if mixes(task) else 1
    examples = min(task.batch, pair if heavy > 5e10 else 4 if device.type == "cpu" else 32)
    rounds = 0 if heavy > 5e11 else rounds
    spec = config.model.input(task.modality)
    blank = Minibatch(
        1, name, blank_arrays(spec, examples), np.zeros((examples, task.num_classes), np.uint8),
        ("",) * examples, 0, examples,
    )  # fmt: skip
    optimiser = build_optimiser(dict(model.named_parameters()), config.optim)
    taken = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        train_step(
            model, optimiser, [blank], 1e-9, config, SingleProcess()
        )  # ends with numbers read from the device
        taken.append(time.perf_counter() - began)
    timed = [seconds / examples for seconds in taken[1:] or taken]
    return min(timed), statistics.median(timed), max(timed)


def _disk_free(config: RunConfig) -> int:
    folder = Path(config.train.checkpoint_dir or config.storage)
    if "://" in str(folder):
        return 2**62  # an object store
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
