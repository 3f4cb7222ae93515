"""What the benchmarks share: where they ran, whether absolute numbers may be quoted, timing in interleaved
rounds, tables.

In: functions to time. Out: milliseconds, ratios and what a reader must know of the machine. R: rounds, I: items.
"""

import importlib.metadata
import importlib.util
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from rich.table import Table

from pipelines.runtime import console
from polyvit.config import RunConfig
from polyvit.data.loading import Minibatch, multi_hot
from polyvit.model import peak_flops

STEP_PACKAGES = ("torch", "timm", "transformers", "numpy")
DECODE_PACKAGES = (
    "simplejpeg", "opencv-python-headless", "pillow", "av", "decord", "soundfile", "soxr", "torchaudio",
    "torchvision", "torchcodec", "numpy", "torch",
)  # fmt: skip
Runs = Mapping[str, Callable[[int], object]]
"""Contender -> what it does with item i."""
Rows = dict[str, dict[str, Any]]
"""Contender -> figures."""


def machine(device: torch.device) -> dict[str, Any]:
    """Names, versions, threads, and the load that others put on the machine."""
    return {
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "clock": clock_name(device),
        "python": platform.python_version(),
        "versions": {n: importlib.metadata.version(n) for n in STEP_PACKAGES if importlib.util.find_spec(n)},
        "load_average": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def decode_machine() -> dict[str, Any]:
    """As `machine`, with the packages and the clock of the decode benchmark."""
    versions = {}
    for name in DECODE_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {**machine(torch.device("cpu")), "versions": versions, "clock": "CPU time of the process"}


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:  # noqa: PTH123
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def claims(before: float) -> dict[str, Any]:
    """Whether times in milliseconds mean anything. They do not where others keep the machine busy; ratios still
    do.

    before: the load average before the benchmark.
    """
    load, cores = max(before, os.getloadavg()[0]), os.cpu_count() or 1
    own = 1.0 + torch.get_num_threads()
    if load > max(cores, own):
        return {
            "absolute": False,
            "why": f"load average {load:.1f} on {cores} cores: quote the ratios, not milliseconds or MFU",
        }
    return {"absolute": True, "why": f"load average {load:.1f} on {cores} cores"}


def clock_name(device: torch.device) -> str:
    """What `clock` measures."""
    if device.type == "cuda":
        return "CUDA events"
    return "CPU time of the process" if torch.get_num_threads() == 1 else "wall clock"


def clock(run: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call.

    On a GPU: between two events of its stream. On a CPU: CPU time of this process where torch has one thread,
    since other processes disturb it less; else the wall clock.
    """
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = now()
    run()
    return (now() - began) * 1000


def interleaved(
    runs: Mapping[Any, Callable[[], object]], rounds: int, device: torch.device, seed: int = 0
) -> dict[Any, list[float]]:
    """Milliseconds of every run in every round, after one warm-up; the order is drawn anew for each round."""
    for run in runs.values():
        run()
    shuffled, times = random.Random(seed), {key: [] for key in runs}  # type: ignore[var-annotated]
    for _ in range(rounds):
        order = list(runs)
        shuffled.shuffle(order)
        for key in order:
            times[key].append(clock(runs[key], device))
    return times


def ratio(times: list[float], to: list[float]) -> float:
    """The median over rounds of the ratio within a round, which a changing load on the machine disturbs least."""
    return statistics.median(a / b for a, b in zip(times, to, strict=True))


def peak_of(device: torch.device, precision: str) -> dict[str, Any]:
    """The peak FLOP/s for MFU: the maker's figure where it is known, else measured with a large matrix product."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    if known := peak_flops(name, precision):
        return {"flops": known, "source": f"{name}, dense {precision}, the maker's figure"}
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    side = 1024 if device.type == "cpu" else 8192
    a = torch.randn(side, side, device=device, dtype=dtype)
    times = interleaved({"product": lambda: a @ a}, 7, device)["product"]
    return {
        "flops": 2 * side**3 / min(times) * 1000,
        "source": f"{side} x {side} product, the best of 7, measured",
    }


def timed_items(runs: Runs, items: int, rounds: int, seed: int) -> Rows:
    """Time every contender on every item in every round, by CPU time of the process; the order is drawn anew.

    Returns for each contender median_ms and min_ms: over rounds for each item, then the mean over items; and
    speed: how many times faster than the first contender, the median over rounds of the ratio within a round.
    """
    for run in runs.values():
        run(0)
    shuffled = random.Random(seed)
    spent_RI = {name: np.zeros((rounds, items)) for name in runs}
    for turn in range(rounds):
        for item in range(items):
            for name in shuffled.sample(list(runs), len(runs)):
                began = time.process_time()
                runs[name](item)
                spent_RI[name][turn, item] = (time.process_time() - began) * 1000
    first_R = next(iter(spent_RI.values())).sum(axis=1)
    return {
        name: {
            "median_ms": float(np.median(times_RI, axis=0).mean()),
            "min_ms": float(times_RI.min(axis=0).mean()),
            "speed": statistics.median((first_R / times_RI.sum(axis=1)).tolist()),
        }
        for name, times_RI in spent_RI.items()
    }


def psnr(actual: np.ndarray, expected: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 arrays of the same shape; 99 where they are equal."""
    error = float(np.mean((actual.astype(np.float64) - expected) ** 2))
    return min(99.0, 10 * float(np.log10(255**2 / error))) if error else 99.0


def print_table(title: str, rows: Rows) -> None:
    """Print one table of `timed_items`; the last columns show quality, where it was measured."""
    table = Table(title=title)
    quality = [
        key for key in ("psnr_antialias", "psnr_bilinear", "identical") if any(key in r for r in rows.values())
    ]
    for column in ("", "median ms", "best ms", f"x {next(iter(rows))}", *quality):
        table.add_column(column, justify="right" if column else "left")
    for name, row in rows.items():
        cells = [f"{row['median_ms']:.2f}", f"{row['min_ms']:.2f}", f"{row['speed']:.2f}"]
        for key in quality:
            value = row.get(key, "")
            cells.append(f"{value[0]:.1f} ({value[1]:.1f})" if isinstance(value, list) else str(value))
        table.add_row(name, *cells)
    console.print(table)


def random_minibatch(config: RunConfig, name: str) -> Minibatch:
    """A minibatch of a task's shapes and global batch with random content and each class in turn."""
    task, rng = config.tasks[name], np.random.default_rng(0)
    inputs = {}
    for key, each in config.model.input(task.modality).arrays.items():
        numbers = rng.integers(0, 255, (task.batch, *each.shape), dtype=np.uint8)
        inputs[key] = numbers if each.dtype == "uint8" else (numbers / np.float32(128) - 1).astype(each.dtype)
    labels = multi_hot([[i % task.num_classes] for i in range(task.batch)], task.num_classes)
    return Minibatch(1, name, inputs, labels, ("",) * task.batch, 0, task.batch)
