"""What a run shows of its steps: points of curves, and the live line.

In: minibatches and the numbers of their steps. Out: values by name.
"""

from typing import Any

import torch

from polyvit.data.loading import Minibatch
from polyvit.training.readback import StepResult
from polyvit.training.throughput import ThroughputMeter, memory


class Curves:
    """Means since the last point: loss per task and what it weighs where that is learned, gradient norm, learning
    rate."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def add(self, minibatches: list[Minibatch], result: StepResult, lr: float) -> None:
        """One step's numbers."""
        for minibatch, loss in zip(minibatches, result.losses, strict=True):
            self.values.setdefault(f"train/{minibatch.task}/loss", []).append(loss)
            self.values.setdefault(f"train/{minibatch.task}/lr", []).append(lr)
        for minibatch, weight in zip(minibatches, result.weights, strict=False):
            self.values.setdefault(f"train/{minibatch.task}/loss_weight", []).append(weight)
        for task, measures in result.measures.items():
            for name, value in measures.items():
                self.values.setdefault(f"train/{task}/{name}", []).append(value)
        self.values.setdefault("train/grad_norm", []).append(result.grad_norm)

    def take(self) -> dict[str, float]:
        """The means, and start again."""
        means = {key: sum(values) / len(values) for key, values in self.values.items()}
        self.values = {}
        return means


def snapshot(
    minibatches: list[Minibatch], result: StepResult, total: int, meter: ThroughputMeter, lr: float
) -> dict[str, Any]:
    """The live line's numbers, and what a `StepReport` has besides."""
    step = minibatches[0].step
    task = minibatches[0].task if len(minibatches) == 1 else "all tasks"
    loss = sum(result.losses) / len(result.losses)
    losses = {minibatch.task: loss for minibatch, loss in zip(minibatches, result.losses, strict=True)}
    more = {"losses": losses, "lr": lr, "grad_norm": result.grad_norm}
    return {"step": step, "total": total, "task": task, "loss": loss, **more, **meter.line(total - step)}


def timings(meter: ThroughputMeter, device: torch.device) -> dict[str, float]:
    """Of a point of the curves."""
    return {f"pace/{key}": value for key, value in {**meter.take(), **memory(device)}.items()}
