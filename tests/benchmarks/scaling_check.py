"""The scaling model of polyvit/cost/cluster_model.py against real processes on this machine.

    python tests/benchmarks/scaling_check.py [--workers 1,2,4] [--steps 12] [--rounds 5] [--json FILE]
    python tests/benchmarks/scaling_check.py --decode DATA        core-seconds of an example, by medium
    python tests/benchmarks/scaling_check.py --tables             the predictions of docs/scaling.md

1, 2 and 4 processes talk by gloo and take the same steps. Arithmetic is calibrated on one worker at two batch
sizes, the link on an all-reduce of its own; steps of two and four workers are predicted from those, bytes from
the config alone. Processes share the cores where there are fewer, which the model is told (`crowding`). Steps are
short and their least time is taken, since others' work disturbs every longer measurement; where the load is above
the number of cores, only bytes and CPU seconds are to be trusted.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

from ranks_kit import GlooWorld
from small import SIZES, ArrayFeed, fresh

from polyvit.config import RunConfig, load_config, validate_config
from polyvit.cost.cluster_model import Hardware, RunCost, StepCost, run_cost, step_cost, update_passes
from polyvit.distributed.reducer import Done
from polyvit.schedule.plan import Plan
from polyvit.schedule.schedule import build_schedule
from polyvit.training.step import train_step

NUMBERS = 4 * 4
"""Bytes beside the gradients: loss, bad examples, examples and the stop flag."""
MESSAGE = 2 * 2**20
"""Bytes of the all-reduce that the link is calibrated on."""


def config_of(workers: int) -> RunConfig:
    """Three modalities, steps of some 10 ms on one core."""
    return validate_config({
        "model": {
            "width": 96, "depth": 4, "num_heads": 4, "mlp_dim": 384, "l_adapt": 1,
            "image": {"size": 48, "patch_size": 16},
            "video": {"frames": 4, "size": 48, "tubelet_size": [2, 16, 16]},
            "audio": {"frames": 64, "mel_bins": 32, "patch_size": 16},
        },
        "tasks": {
            "picture": {"modality": "image", "layout": "imagefolder", "num_classes": 10, "steps": 1, "batch": 32},
            "clip": {"modality": "video", "layout": "kinetics", "num_classes": 10, "steps": 1, "batch": 16},
            "sound": {"modality": "audio", "layout": "csv", "num_classes": 10, "steps": 1, "batch": 16},
        },
        "schedule": {"kind": "task_by_task"},
        "train": {"workers": workers},
    })  # fmt: skip


class Metered(GlooWorld):
    """Counts what is reduced, the CPU of it, and the seconds from the moment when all ranks are there."""

    def __init__(self) -> None:
        super().__init__()
        self.sent, self.seconds, self.cpu_s = 0, 0.0, 0.0

    def sum_async(self, flat: torch.Tensor) -> Done:
        """At once: parts of a step that do not overlap can be told apart."""
        self.sum_(flat)
        return Done()

    def sum_(self, flat: torch.Tensor) -> None:
        cpu = time.thread_time()
        dist.barrier()
        began = time.perf_counter()
        super().sum_(flat)
        self.sent += flat.numel() * flat.element_size()
        self.seconds += time.perf_counter() - began
        self.cpu_s += time.thread_time() - cpu


def work(rank: int, workers: int, folder: str, steps: int) -> None:
    """One rank: measure the link, then every task's steps; rank 0 writes them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=workers)
    config, world = config_of(workers), Metered()
    model, optimiser, schedule = fresh(config)
    feed = ArrayFeed.__new__(ArrayFeed)
    feed.config, feed.rank, feed.size, feed.bad = config, rank, workers, frozenset()
    feed.plan = Plan(schedule, config.tasks, SIZES, config.seed)
    timings: dict[str, Any] = {"link": _least(lambda: world.sum_(torch.zeros(MESSAGE // 4)), world, 6)}
    for step in range(1, len(schedule) + 1):
        minibatches = [feed.minibatch(batch) for batch in feed.plan.at(step, rank, workers)]

        def one(minibatches: list = minibatches) -> None:
            train_step(model, optimiser, minibatches, 0.01, config, world)

        if workers == 1:  # a quarter of the batch, to tell what grows with it from what does not
            quarter = [feed.minibatch(batch) for batch in feed.plan.at(step, 0, 4)]
            timings[f"{minibatches[0].task}/4"] = _least(lambda m=quarter: one(m), world, steps)
        fed = sum(m.inputs["tokens"].nbytes + m.labels.nbytes for m in minibatches)
        timings[minibatches[0].task] = {**_least(one, world, steps), "feed_bytes": fed}
    if rank == 0:
        (Path(folder) / "timings.json").write_text(json.dumps(timings))
    dist.destroy_process_group()


def _least(do: Callable[[], None], world: Metered, times: int) -> dict[str, float]:
    """The least seconds of a call: wall from all ranks' start, of the reduction, CPU without it; its bytes."""
    do()
    best = {"wall_s": float("inf"), "reduce_s": float("inf"), "cpu_s": float("inf"), "sent": 0.0}
    for _ in range(times):
        dist.barrier()
        world.sent, world.seconds, world.cpu_s = 0, 0.0, 0.0
        wall, cpu = time.perf_counter(), time.thread_time()
        do()
        cpu_s = time.thread_time() - cpu - world.cpu_s
        measured = {"wall_s": time.perf_counter() - wall, "reduce_s": world.seconds, "cpu_s": cpu_s}
        best |= {key: min(best[key], value) for key, value in measured.items()}
        best["sent"] = world.sent
    return best


def measured(workers: int, steps: int) -> dict[str, Any]:
    """A run of `workers` processes."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (workers, folder, steps), nprocs=workers)
        return json.loads((Path(folder) / "timings.json").read_text())


def least(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The least of each number over repeated runs."""
    return {part: {key: min(run[part][key] for run in runs) for key in runs[0][part]} for part in runs[0]}


def predicted(task: str, workers: int, timings: dict[int, dict[str, Any]], key: str) -> StepCost:
    """From one worker's arithmetic, at two batch sizes by `key` (wall_s or cpu_s), and the link's own speed."""
    whole, quarter = timings[1][task][key], timings[1][f"{task}/4"][key]
    arithmetic = max(whole - quarter, 1e-9) * 4 / 3
    one = step_cost(config_of(1), task, 1, Hardware())
    passes = update_passes(config_of(1), 1) * one.gradient_bytes
    crowding = max(1.0, workers / (os.cpu_count() or 1)) if key == "wall_s" else 1.0
    sent = 2 * (workers - 1) / workers * MESSAGE
    hardware = Hardware(
        peak_flops={"float32": one.flops / arithmetic}, utilisation=1.0, launch_ms=0.0, workers_per_node=workers,
        link_gb_s=sent / max(timings[workers]["link"]["reduce_s"], 1e-9) / 1e9 if workers > 1 else 1.0,
        link_efficiency=1.0, hop_us=0.0, overlap=0.0, host_gb_s=1e9, crowding=crowding,
        memory_gb_s=passes / max(whole - arithmetic, 1e-9) / 1e9,
    )  # fmt: skip
    return step_cost(config_of(workers), task, workers, hardware)


def compare(timings: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each task and number of workers: what was measured, and measured / predicted."""
    rows = []
    for workers, run in sorted(timings.items()):
        for task in config_of(workers).tasks:
            wall, cpu = (predicted(task, workers, timings, key) for key in ("wall_s", "cpu_s"))
            got = run[task]
            rows.append({
                "workers": workers, "task": task,
                "reduced": got["sent"], "reduced_predicted": wall.gradient_bytes + NUMBERS if workers > 1 else 0,
                "fed": got["feed_bytes"], "fed_predicted": wall.feed_bytes,
                "cpu_ms": got["cpu_s"] * 1e3, "cpu_ratio": got["cpu_s"] / (cpu.compute_s + cpu.update_s),
                "reduce_ms": got["reduce_s"] * 1e3,
                "reduce_ratio": got["reduce_s"] / wall.reduce_s if workers > 1 else None,
                "wall_ms": got["wall_s"] * 1e3, "wall_ratio": got["wall_s"] / wall.step_s,
            })  # fmt: skip
    return rows


def decode_costs(data: Path, most: int = 40) -> dict[str, dict[str, float]]:
    """Least core-seconds over 3 of an example of each medium at each input size, mean over examples."""
    from arrays_kit import example_tokens

    from polyvit.data.layouts.scanner import scan
    from polyvit.data.loading.reader import load
    from polyvit.data.transforms.augment import example_rng

    torch.set_num_threads(1)
    nine = load_config("polyvit-b-nine")
    small = nine.model.image.model_copy(update={"size": (224, 224)})
    cases = {
        "image 224": ("imagenet", small), "image 384": ("imagenet", nine.model.image),
        "cifar 384": ("cifar10", nine.model.image), "video 32x224": ("kinetics400", nine.model.video),
        "audio 800x128": ("audioset", nine.model.audio),
    }  # fmt: skip
    timings = {}
    for name, (task, spec) in cases.items():
        entry = nine.tasks[task]
        examples = scan(entry, data / task, task).split("train")[:most]
        seconds, size = [], 0
        for example in examples:
            best = float("inf")
            for _ in range(3):
                began = time.process_time()
                media = load(example, data / task)
                rng = example_rng(0, task, 0, example.key)
                example_tokens(media, entry, spec, rng, example.start, example.end)
                best = min(best, time.process_time() - began)
            seconds.append(best)
            size += len(media) if isinstance(media, bytes) else media.nbytes
        mean = sum(seconds) / len(seconds)
        timings[name] = {"core_ms": mean * 1e3, "per_core_s": 1 / mean, "kB": size / len(examples) / 1e3}
    return timings


def nine(gpus: int) -> tuple[RunCost, list[str]]:
    """The nine-task recipe on so many H200, and the tasks of its first 20,000 steps.

    Batches of 64 (video, audio) are raised to the number of GPUs where there are more.
    """
    given = ["train.precision=bfloat16", f"train.workers={gpus}"]
    if gpus > 64:
        small = ("kinetics400", "moments_in_time", "audioset", "vggsound")
        given += [f"tasks.{task}.batch={gpus}" for task in small]
    config = load_config("polyvit-b-nine", given)
    schedule = build_schedule(config.schedule, config.tasks, config.seed)
    order = [schedule.tasks_at(step)[0][0] for step in range(1, 20_001)]
    return run_cost(config, schedule.counts(), gpus), order


def tables() -> str:
    """Markdown: a step of each kind of task, then the whole run, on 8, 64 and 256 GPUs."""
    kinds = {"imagenet": "image 384", "kinetics400": "video", "vggsound": "audio"}
    runs = {gpus: nine(gpus) for gpus in (8, 64, 256)}
    lines = [
        "| GPUs | step of | local batch | arithmetic ms | waits for network ms | step ms | feed MB | network MB | "
        "decoding cores | efficiency |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for gpus, (run, _) in runs.items():
        for task, kind in kinds.items():
            c = run.steps[task]
            lines.append(
                f"| {gpus} | {kind} | {c.local_batch} | {c.compute_s * 1e3:.1f} | {c.exposed_s * 1e3:.2f} | "
                f"{c.step_s * 1e3:.1f} | {c.feed_bytes / 1e6:.1f} | {c.wire_bytes / 1e6:.0f} | {c.cores:.1f} | "
                f"{c.efficiency:.2f} |"
            )
    lines += [
        "",
        "| GPUs | hours of steps | efficiency | decoding cores a GPU: every step / 64 / 1024 ahead / mean | "
        "feed GB/s, all GPUs | files GB/s, all GPUs | network GB/s a GPU, peak | checkpoint share |",
        "|---:|---:|---:|---|---:|---:|---:|---:|",
    ]
    for gpus, (run, order) in runs.items():
        ahead = [cores_for(order, run.steps, n) for n in (64, 1024)]
        lines.append(
            f"| {gpus} | {run.hours:.2f} | {run.efficiency:.2f} | {run.cores_peak:.1f} / {ahead[0]:.1f} / "
            f"{ahead[1]:.1f} / {run.cores_mean:.1f} | {run.feed_gb_s_mean * gpus:.1f} | "
            f"{run.read_gb_s_mean * gpus:.2f} | {run.network_gb_s_peak:.0f} | {run.checkpoint_share:.1%} |"
        )
    return "\n".join(lines)


def cores_for(tasks: Sequence[str], costs: Mapping[str, StepCost], ahead: int) -> float:
    """Decoding cores for each worker so that these steps never wait, with `ahead` minibatches decoded ahead.

    The heaviest run of `ahead` steps must be decoded in the time in which the same number is trained.
    """
    work, time = (np.array([getattr(costs[task], key) for task in tasks]) for key in ("decode_s", "step_s"))
    ahead = min(ahead, len(tasks))
    sums = [np.convolve(values, np.ones(ahead), "valid") for values in (work, time)]
    return float((sums[0] / sums[1]).max())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decode", type=Path)
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.tables:
        print(tables())
        return
    if arguments.decode:
        for name, row in decode_costs(arguments.decode).items():
            print(
                f"{name:14s} {row['core_ms']:8.2f} ms {row['per_core_s']:8.0f} a core-second {row['kB']:8.0f} kB"
            )
        return
    counts = [int(n) for n in arguments.workers.split(",")]
    runs: dict[int, list[dict[str, Any]]] = {n: [] for n in counts}
    for _ in range(arguments.rounds):
        for n in counts:
            runs[n].append(measured(n, arguments.steps))
    rows = compare({n: least(timings) for n, timings in runs.items()})
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f}")
    for row in rows:
        print("  ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps({"cores": os.cpu_count(), "load": load, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
