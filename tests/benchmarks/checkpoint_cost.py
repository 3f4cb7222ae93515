"""What a checkpoint costs training: seconds held up, and slower steps while it is written.

    python tests/benchmarks/checkpoint_cost.py [--width 384] [--steps 12] [--rounds 3]

One process; rounds with and without a checkpoint under way take turns. The share is of 500 steps, the default
distance of checkpoints. Prints JSON.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from polyvit.checkpoint.async_writer import AsyncCheckpointWriter, Keep
from polyvit.checkpoint.state import TrainState, TrainUnit, checkpoint_data, training_tensors
from polyvit.checkpoint.store import LocalStore
from polyvit.config import RunConfig, load_config
from polyvit.data.loading.minibatch import Minibatch, multi_hot
from polyvit.model.polyvit import PolyViT
from polyvit.training.optim import build_optimiser
from polyvit.training.step import SingleProcess, train_step


def random_minibatch(config: RunConfig, batch: int) -> Minibatch:
    """Random pictures."""
    spec = config.model.image
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 256, (batch, config.model.num_tokens("image"), spec.patch_dim), dtype=np.uint8)
    task = next(name for name, task in config.tasks.items() if task.modality == "image")
    labels = multi_hot([(0,)] * batch, config.tasks[task].num_classes)
    return Minibatch(1, task, {"tokens": tokens}, labels, tuple(map(str, range(batch))), 0, batch)


def main() -> None:
    """Measure and print."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--width", type=int, default=384)
    given.add_argument("--steps", type=int, default=12)
    given.add_argument("--rounds", type=int, default=3)
    arguments = given.parse_args()
    width = arguments.width
    config = load_config(
        "images-only", [f"model.width={width}", f"model.num_heads={width // 64}", f"model.mlp_dim={4 * width}"]
    )
    model = PolyViT(config.model, config.tasks)
    optimiser = build_optimiser(dict(model.named_parameters()), config.optim)
    minibatch = random_minibatch(config, 4)

    def steps() -> float:
        began = time.perf_counter()
        for _ in range(arguments.steps):
            train_step(model, optimiser, [minibatch], 1e-4, config, SingleProcess())
        return time.perf_counter() - began

    steps()
    with tempfile.TemporaryDirectory() as folder:
        writer = AsyncCheckpointWriter(LocalStore(Path(folder)), Keep(last=1))
        alone, beside, blocked = [], [], []
        for i in range(arguments.rounds + 1):
            alone.append(steps())
            held = writer.blocked_s
            state = TrainState(global_step=i)
            writer.save(checkpoint_data(training_tensors(TrainUnit(model, optimiser)), state, config, {}))
            blocked.append(writer.blocked_s - held)
            beside.append(steps())
            writer.close()
    # The first checkpoint makes the buffers: a run pays that once.
    step_s = statistics.median(alone[1:]) / arguments.steps
    slower = statistics.median(b - a for a, b in zip(alone[1:], beside[1:], strict=True))
    held = statistics.median(blocked[1:])
    print(json.dumps({
        "parameters": sum(p.numel() for p in model.parameters()), "step_s": round(step_s, 3),
        "first_blocked_s": round(blocked[0], 3), "blocked_s": round(held, 3), "slower_s": round(slower, 3),
        "share_of_500_steps": round((held + max(0.0, slower)) / (500 * step_s), 5),
        "threads": torch.get_num_threads(), "load": os.getloadavg()[0],
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
