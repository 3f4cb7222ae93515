"""What the benchmarks share: where they ran, whether absolute numbers may be claimed, interleaved timing."""

import importlib.metadata
import importlib.util
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from polyvit.model import peak_flops


def machine(device: torch.device) -> dict[str, Any]:
    """Names, versions, threads, and the load that others put on the machine."""
    packages = ("torch", "timm", "transformers", "numpy")
    return {
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "clock": clock_name(device),
        "python": platform.python_version(),
        "versions": {n: importlib.metadata.version(n) for n in packages if importlib.util.find_spec(n)},
        "load_average": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:  # noqa: PTH123
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def claims(before: float) -> dict[str, Any]:
    """Whether times in milliseconds mean anything: not where others keep the machine busy; ratios still do."""
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
    """Milliseconds of one call: between two events of a GPU's stream; of this process's CPU time where torch has
    one thread, which other processes disturb less; else of the wall clock.
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
    """Milliseconds of every run in every round; each round in another random order, after one warm-up."""
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
    """Median over rounds of the ratio within a round, which the load of the moment disturbs least."""
    return statistics.median(a / b for a, b in zip(times, to, strict=True))


def peak_of(device: torch.device, precision: str) -> dict[str, Any]:
    """FLOP/s that MFU is a share of: the maker's figure where known, else a large matrix product's, measured."""
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
