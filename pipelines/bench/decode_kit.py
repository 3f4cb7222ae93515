"""What the decode benchmark shares: timing of items by contenders, PSNR, tables, versions."""

import importlib.metadata
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from rich.table import Table

from pipelines.bench import kit
from pipelines.runtime import console

PACKAGES = (
    "simplejpeg", "opencv-python-headless", "pillow", "av", "decord", "soundfile", "soxr", "torchaudio",
    "torchvision", "torchcodec", "numpy", "torch",
)  # fmt: skip
Runs = Mapping[str, Callable[[int], object]]
"""Contender -> what it does with item i."""
Rows = dict[str, dict[str, Any]]
"""Contender -> figures."""


def machine() -> dict[str, Any]:
    """As `bench_kit.machine`, with this benchmark's packages and clock."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    clock = "CPU time of the process"
    return {**kit.machine(torch.device("cpu")), "versions": versions, "clock": clock}


def timed(runs: Runs, items: int, rounds: int, seed: int) -> Rows:
    """median_ms, min_ms: of each item over rounds, then the mean over items. speed: how many times faster than the
    first run, the median over rounds of the ratio within a round.
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


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    """dB of uint8 arrays; 99 where they are equal."""
    error = float(np.mean((found.astype(np.float64) - expected) ** 2))
    return min(99.0, 10 * float(np.log10(255**2 / error))) if error else 99.0


def print_table(title: str, rows: Rows) -> None:
    """One table of `timed`; quality, where there is any, in the last columns."""
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
