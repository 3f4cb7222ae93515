"""Everything that a GPU has to show, in one run that is bounded in time; on a CPU the same with a tiny model.

    polyvit bench gpu [CONFIG] [key=value ...] [--seconds 300] [--json FILE]

Sections, in the order of their worth: host (milliseconds that a step costs the host, arithmetic next to nothing),
tasks (a step of each modality at its own batch: milliseconds, MFU, peak memory, seconds to compile), mix (the
training loop over the schedule: MFU, the device's idle share, recompilations), attention (each kernel), peers
(timm and Hugging Face beside ours). What there is no time for is named in `left_out`. Minibatches are there before
the clock starts, in host memory: decoding is `polyvit bench feed`.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch.nn import functional as F

from pipelines.bench import kit, step
from pipelines.bench.gpu_counts import Operations, SilentCallbacks, outermost_operations
from pipelines.bench.step_peers import Case
from pipelines.runtime import command_line, console
from polyvit.checkpoint import TrainState, TrainUnit
from polyvit.config import Modality, RunConfig, load_config
from polyvit.data.loading import Minibatch
from polyvit.errors import UserError
from polyvit.model import (
    FORMULA,
    build_model,
    fast_kernels,
    grow_segments,
    training_flops,
    uses_bfloat16,
)
from polyvit.schedule import schedule_of
from polyvit.training import (
    SingleProcess,
    StepNumbers,
    TrainStep,
    build_optimiser,
    compile_ahead,
    compiled_graphs,
    compiles,
    derive_microbatches,
    train,
)

STEPS = (3, 60)
"""Fewest and most steps of one figure."""


@dataclass
class Bench:
    """What is measured, where, and until when (`time.monotonic`)."""

    config: RunConfig
    device: torch.device
    until: float
    peak: dict[str, Any]

    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()

    def sync(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit bench gpu`."""
    parser = command_line.parser("bench gpu", "Steps, mix, attention and peers on a GPU, bounded in time.")
    parser.add_argument(
        "config", metavar="CONFIG", nargs="?", default="polyvit-b-nine", help="default: polyvit-b-nine"
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="keys of the config to change")
    parser.add_argument("--seconds", type=float, default=300.0, help="no section begins after so many")
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.seconds <= 0:
        raise UserError("--seconds must be above 0")
    config = load_config(arguments.config, arguments.overrides, [])
    grow_segments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before, where = os.getloadavg()[0], kit.machine(device)
    precision = "bfloat16" if uses_bfloat16(device, config.train.precision) else "float32"
    bench = Bench(config, device, time.monotonic() + arguments.seconds, kit.peak_of(device, precision))
    sections: dict[str, Callable[[Bench], Any]] = {
        "host": host, "tasks": tasks, "mix": mix, "attention": attention, "peers": peers,
    }  # fmt: skip
    document: dict[str, Any] = {
        "benchmark": "gpu", "config": config.name, "precision": precision, "machine": where,
        "flop_formula": FORMULA, "mfu_is_a_share_of": bench.peak, "seconds": {}, "left_out": [],
    }  # fmt: skip
    with fast_kernels(device, config.train.precision):
        for name, section in sections.items():
            if bench.left() <= 0:
                document["left_out"].append(name)
                continue
            began = time.monotonic()
            document[name] = section(bench)
            document["seconds"][name] = time.monotonic() - began
    if document["left_out"]:
        console.print(f"left out for time: {', '.join(document['left_out'])}; --seconds gives more")
    document["claims"] = kit.claims(before)
    console.print(
        f"absolute numbers may be quoted: {document['claims']['absolute']} ({document['claims']['why']})"
    )
    return document


def host(bench: Bench) -> dict[str, Any]:
    """Milliseconds and operations that a step costs the host, of each modality, with a model that computes next to
    nothing: the time until `TrainStep.start` returns. Eager, and compiled where the model is (`train.compile`).

    outermost: operations that no other one calls; operations: all, below autograd; the latter of eager mode only.
    reads: numbers read from tensors; on a CPU AdamW reads its counts of steps, on a GPU there are none.
    """
    rows: dict[str, Any] = {}
    for modality, name in one_each(bench.config).items():
        rows[modality] = host_step(bench, name, compiled=False)
        if compiles(bench.config, bench.device) and bench.left() > 0:
            rows[modality]["compiled"] = host_step(bench, name, compiled=True)
    return rows


def host_step(bench: Bench, name: str, compiled: bool) -> dict[str, Any]:
    """A step of one task with the same layers and tensors, a hundredth of the width; examples of few tokens."""
    document = bench.config.model_dump(mode="json")
    model = {**document["model"], "width": 12, "mlp_dim": 24, "num_heads": 2, **step.SMALL_INPUTS}
    task = {**document["tasks"][name], "batch": 4, "root": None}
    null = RunConfig.model_validate(
        {**document, "model": model, "tasks": {name: task}, "sweep": {}, "schedule": {},
         "train": {**document["train"], "compile": compiled, "microbatch": None, "workers": 1,
                   "best_metric": "mean"}}
    )  # fmt: skip
    learner = built(null, bench.device)
    if compiled:
        compile_ahead(learner.model, null, SingleProcess(), {})
    run = TrainStep(learner.model, learner.optimiser, null, SingleProcess())
    minibatch = kit.random_minibatch(null, name)
    times = []
    for turn in range(25):
        bench.sync()
        began = time.perf_counter()
        run.start([minibatch], 1e-3)
        if turn >= 5:
            times.append((time.perf_counter() - began) * 1000)
    row = {
        "host_ms": statistics.median(times),
        "outermost": outermost_operations(lambda: run.start([minibatch], 1e-3)),
    }
    if not compiled:
        with Operations() as counted:
            run.start([minibatch], 1e-3)
        row |= {
            "operations": counted.total, "casts": counted.by_name["aten::_to_copy"],
            "detach": counted.by_name["aten::detach"], "reads": counted.by_name["aten::_local_scalar_dense"],
        }  # fmt: skip
    words = f"{null.tasks[name].modality}, compiled" if compiled else null.tasks[name].modality
    reads = f", {row['reads']} numbers read" if "reads" in row else ""
    console.print(f"host, {words}: {row['host_ms']:.1f} ms a step, {row['outermost']} operations{reads}")
    return row


def one_each(config: RunConfig) -> dict[Modality, str]:
    """The task of each modality with the most arithmetic a step."""
    task_of: dict[Modality, str] = {}
    for name, task in sorted(config.tasks.items(), key=lambda item: (item[1].batch, item[1].num_classes)):
        task_of[task.modality] = name
    return task_of


def built(config: RunConfig, device: torch.device) -> TrainUnit:
    """Model and optimiser as a worker has them, without a moving average."""
    model = build_model(config, seed=config.seed).to(device)
    model.activation_checkpointing = config.train.activation_checkpointing
    if compiles(config, device):
        model.compile_blocks()
    return TrainUnit(model, build_optimiser(dict(model.named_parameters()), config.optim))


def tasks(bench: Bench) -> dict[str, Any]:
    """A step of each modality at its task's own batch."""
    config, rows = bench.config, {}
    table = Table(title="a step of each modality")
    for column in ("task", "batch", "step ms", "examples/s", "MFU", "peak GB", "compile s"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for name in one_each(config).values():
        if bench.left() <= 0:
            break
        row = rows[name] = measure(bench, name)
        table.add_row(
            name, str(row["batch"]), f"{row['step_ms']:.1f}", f"{row['examples_per_s']:.0f}", f"{row['mfu']:.1%}",
            f"{row['peak_gb']:.2f}" if row["peak_gb"] else "-", f"{row['compile_s']:.1f}",
        )  # fmt: skip
    console.print(table)
    return rows


def measure(bench: Bench, name: str) -> dict[str, Any]:
    """A step of one task alone."""
    config, device = only(bench.config, name), bench.device
    learner, minibatch = built(config, device), kit.random_minibatch(config, name)
    microbatches = derive_microbatches(learner.model, config, SingleProcess(), device)
    began = time.monotonic()
    graphs = compile_ahead(learner.model, config, SingleProcess(), microbatches)
    compile_s = time.monotonic() - began
    run = TrainStep(learner.model, learner.optimiser, config, SingleProcess(), microbatches)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    first = min(kit.clock(lambda: run.start([minibatch], 1e-3), device) for _ in range(2))
    number = max(STEPS[0], min(STEPS[1], int(min(10.0, bench.left() / 6) * 1000 / first)))
    taken = statistics.median(kit.clock(lambda: run.start([minibatch], 1e-3), device) for _ in range(number))
    task, flops = config.tasks[name], step_flops(config, name)
    return {
        "modality": task.modality, "batch": task.batch, "microbatch": microbatches[name], "steps": number,
        "step_ms": taken, "examples_per_s": task.batch / taken * 1000, "flops": flops,
        "mfu": flops / taken * 1000 / bench.peak["flops"], "compile_s": compile_s, "graphs": graphs,
        "peak_gb": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
    }  # fmt: skip


def only(config: RunConfig, name: str) -> RunConfig:
    """The config with one of its tasks."""
    sweep = config.sweep.model_copy(update={"baselines": {}})
    train_section = config.train.model_copy(update={"best_metric": "mean", "workers": 1})
    update = {"tasks": {name: config.tasks[name]}, "sweep": sweep, "train": train_section}
    return config.model_copy(update=update)


class _Feed:
    """A minibatch of each task in host memory, again and again, in the schedule's order."""

    def __init__(self, config: RunConfig, order: list[list[str]]) -> None:
        self.order = order
        self.kept = {name: kit.random_minibatch(config, name) for names in order for name in names}

    def train(self, start_step: int) -> Iterator[list[Minibatch]]:
        """As `polyvit.training.loop.Feed.train`."""
        for number, names in enumerate(self.order[start_step - 1 :], start=start_step):
            yield [replace(self.kept[name], step=number) for name in names]

    def recent(self, step: int, count: int) -> Iterator[Minibatch]:
        """Nothing."""
        return iter(())

    def evaluation(self) -> Iterator[Minibatch]:
        """Nothing."""
        return iter(())


def mix(bench: Bench) -> dict[str, Any]:
    """The training loop over the schedule: what a run's steps take when data are always there."""
    config, device = without_evaluations(bench.config, STEPS[1]), bench.device
    learner, schedule = built(config, device), schedule_of(config)
    microbatches = derive_microbatches(learner.model, config, SingleProcess(), device)
    compile_ahead(learner.model, config, SingleProcess(), microbatches)
    run = TrainStep(learner.model, learner.optimiser, config, SingleProcess(), microbatches)
    marks: list[tuple[Any, Any]] = []

    def timed(minibatches: list[Minibatch], lr: float, flag: float) -> StepNumbers:
        if device.type != "cuda":
            return run.start(minibatches, lr, flag)
        marks.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
        marks[-1][0].record()
        numbers = run.start(minibatches, lr, flag)
        marks[-1][1].record()
        return numbers

    order = [[name for name, _ in schedule.tasks_at(n)] for n in range(1, schedule.known + 1)]
    feed, graphs, state = _Feed(config, order), compiled_graphs(), TrainState(microbatches=microbatches)
    bench.sync()
    began = time.perf_counter()
    train(
        learner, schedule, feed, config, SingleProcess(), state, SilentCallbacks(), start_step=timed
    )  # fmt: skip
    bench.sync()
    wall = time.perf_counter() - began
    names = [name for step_names in order for name in step_names]
    flops = sum(step_flops(config, name) for name in names)
    row = {
        "steps": len(order), "counts": {n: names.count(n) for n in dict.fromkeys(names)}, "wall_s": wall,
        "mfu": flops / wall / bench.peak["flops"], "recompilations": compiled_graphs() - graphs,
        # Between two events of the stream; what the copies of the next step take beside it is not in it.
        "idle_share": 1 - sum(a.elapsed_time(b) for a, b in marks) / 1000 / wall if marks else None,
    }  # fmt: skip
    idle = "" if row["idle_share"] is None else f", the device idle {row['idle_share']:.1%}"
    console.print(f"mix: {len(order)} steps in {wall:.1f} s, MFU {row['mfu']:.1%}{idle}")
    return row


def step_flops(config: RunConfig, name: str) -> float:
    """Of one step of a task at its batch."""
    task = config.tasks[name]
    return training_flops(config.model, task.modality, task.num_classes) * task.batch


def without_evaluations(config: RunConfig, steps: int) -> RunConfig:
    """The config for so many steps, without evaluations between; an adaptive schedule at its first shares."""
    kind = "weighted" if config.schedule.kind == "adaptive" else config.schedule.kind
    schedule = config.schedule.model_copy(update={"steps": steps, "kind": kind})
    section = config.train.model_copy(update={"eval_every": None, "checkpoint_every": steps, "log_every": 10})
    return config.model_copy(update={"schedule": schedule, "train": section})


def attention(bench: Bench) -> dict[str, Any]:
    """Milliseconds of attention, forward and backward, by kernel and modality's number of tokens."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    model, rows = bench.config.polyvit, {}
    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    for modality in bench.config.modalities:
        shape = (8, model.num_heads, model.num_tokens(modality) + 1, model.width // model.num_heads)
        q, k, v = (torch.randn(shape, device=bench.device, dtype=dtype, requires_grad=True) for _ in range(3))
        row: dict[str, float | None] = {}
        for name in ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"):
            with sdpa_kernel(getattr(SDPBackend, name)):
                try:
                    runs = {name: partial(_attend, q, k, v)}
                    row[name.lower()] = statistics.median(kit.interleaved(runs, 5, bench.device)[name])
                except RuntimeError:  # this device or shape has no such kernel
                    row[name.lower()] = None
        rows[modality] = {"tokens": shape[2], "ms": row}
    return rows


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    F.scaled_dot_product_attention(q, k, v).sum().backward()


def peers(bench: Bench) -> list[dict[str, Any]]:
    """timm and Hugging Face beside ours (see `polyvit bench step`), compiled on a GPU."""
    tables, on_gpu = [], bench.device.type == "cuda"
    for modality in bench.config.modalities:
        if bench.left() <= 0:
            break
        model = bench.config.polyvit.model_copy(update={"gelu": "erf", "l_adapt": 0})
        batch = step.BATCHES[bench.device.type][modality]
        precision = "bfloat16" if on_gpu else "float32"
        case = Case(modality, model, batch, precision, bench.device, on_gpu)
        tables.append(step.measure(case, 3, bench.peak))
        step.print_table(tables[-1])
    return tables


if __name__ == "__main__":
    sys.exit(main())
