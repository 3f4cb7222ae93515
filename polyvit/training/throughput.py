"""How fast a run is and how much memory it takes: named timers of the loop, and the share of the peak FLOP/s."""

import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil
import torch

from polyvit.config import RunConfig
from polyvit.model import peak_flops, training_flops

TIMERS = ("data", "step", "evaluate", "checkpoint")
"""What the loop times: waiting for the minibatch, the optimiser step, evaluations, saving."""


def memory(device: torch.device) -> dict[str, float]:
    """rss_gb of this process, and on a GPU the peak that was allocated, in 10^9 bytes."""
    values = {"rss_gb": psutil.Process(os.getpid()).memory_info().rss / 1e9}
    if device.type == "cuda":
        values["gpu_peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return values


@dataclass
class _TaskTotals:
    steps: int = 0
    seconds: float = 0.0
    examples: int = 0


@dataclass
class ThroughputMeter:
    """Timings of the recent steps (for the live line) and since the last point of the curves.

    flops: training FLOP of one example, by task. peak: of all workers' devices together, None if unknown.
    """

    flops: Mapping[str, float]
    peak: float | None
    recent: deque[tuple[float, float, int]] = field(default_factory=lambda: deque(maxlen=50))
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TIMERS, 0.0))
    tasks: dict[str, _TaskTotals] = field(default_factory=dict)

    @classmethod
    def of(cls, config: RunConfig, device: torch.device, world_size: int) -> "ThroughputMeter":
        """For a run on `world_size` devices of one kind."""
        flops = {
            name: training_flops(config.model, task.modality, task.num_classes)
            for name, task in config.tasks.items()
        }
        peak = peak_flops(torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu", "bfloat16")
        return cls(flops, peak * world_size if peak else None)

    def add(self, data_s: float, step_s: float, examples: Mapping[str, int]) -> None:
        """One step: seconds waited for its data, seconds of the step itself, global examples by task."""
        self.recent.append((data_s, data_s + step_s, sum(examples.values())))
        self.spent["data"] += data_s
        self.spent["step"] += step_s
        share = step_s / len(examples)
        for task, count in examples.items():
            entry = self.tasks.setdefault(task, _TaskTotals())
            entry.steps += 1
            entry.seconds += share
            entry.examples += count

    def timed(self, timer: str, seconds: float) -> None:
        """Seconds of an evaluation or a checkpoint."""
        self.spent[timer] += seconds

    def line(self, steps_left: int) -> dict[str, float]:
        """Of the recent steps: examples_per_s, data_wait (0..1), step_s, eta_s."""
        waits, seconds, examples = (sum(column) for column in zip(*self.recent, strict=True))
        seconds = max(seconds, 1e-9)
        mean = seconds / len(self.recent)
        return {
            "examples_per_s": examples / seconds, "data_wait": waits / seconds, "step_s": mean,
            "eta_s": mean * steps_left,
        }  # fmt: skip

    def take(self) -> dict[str, float]:
        """Since the last point: seconds by timer, data_wait, examples_per_s, tflops (achieved, whole run), mfu
        where the device's peak is known; per task ms_per_step and examples_per_s. Starts again.
        """
        step_s = max(self.spent["step"], 1e-9)
        busy = max(self.spent["data"] + self.spent["step"], 1e-9)
        done = sum(self.flops[task] * entry.examples for task, entry in self.tasks.items())
        values = {f"{timer}_s": seconds for timer, seconds in self.spent.items()}
        values["data_wait"] = self.spent["data"] / busy
        values["examples_per_s"] = sum(entry.examples for entry in self.tasks.values()) / busy
        values["tflops"] = done / step_s / 1e12
        if self.peak:
            values["mfu"] = done / step_s / self.peak
        for task, entry in self.tasks.items():
            values[f"{task}/ms_per_step"] = 1000 * entry.seconds / entry.steps
            values[f"{task}/examples_per_s"] = entry.examples / max(entry.seconds, 1e-9)
        self.spent, self.tasks = dict.fromkeys(TIMERS, 0.0), {}
        return values
