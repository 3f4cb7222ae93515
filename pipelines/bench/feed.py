"""The feed against a torch DataLoader with as many processes and the same decode function, in interleaved rounds.

    polyvit bench feed [CONFIG] [key=value ...] [--workers N] [--rounds N] [--seconds S] [--steps N] [--quick]
                       [--sections delivered,host,memory,decode] [--json FILE]

delivered: minibatches for a consumer that does nothing, for images, clips, audio and the weighted mix of all
tasks:
    examples/s, seconds to the first minibatch on a warm cluster, CPU ms for each example. A ratio is the median
    over rounds of the ratio within a round: above 1 we are faster. None is given where the load before was above
    half the cores: a side with more processes gets more of a busy machine.
host: the cost of everything but decoding: steps/s of the feed alone, with tiny arrays and with arrays of real
size,
    of the training loop's own code, and of both with a step that takes 5 ms.
memory: MB of all processes without shared memory (the object store) during `--steps` steps, for one task and for
all. decode: every decoder on one core against its peers (`pipelines/bench/decode.py`).
Data: `data.root=DIR`, which holds the tasks' folders. Without it synthetic data are written: photos of 500 x 375,
clips of 10 s, FLACs.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from rich.table import Table

from pipelines.bench import kit
from pipelines.bench.decode import decode_section
from pipelines.bench.feed_sides import SIDES, Stub, memory_mb, sides, timed, write_data
from pipelines.feed import RayFeed, make_decoder
from pipelines.index import Indexes, build_indexes
from pipelines.runtime import cluster, command_line, console
from polyvit.checkpoint import TrainState, TrainUnit
from polyvit.config import RunConfig, load_config
from polyvit.data.loading import Decoder, Minibatch, Request, Requests
from polyvit.errors import UserError
from polyvit.model import PolyViT
from polyvit.schedule import Plan, build_schedule, schedule_of
from polyvit.training import SingleProcess, StepNumbers, build_optimiser, train

SECTIONS = ("delivered", "host", "memory", "decode")
TARGETS = {"ray_core": 1.0, "ray_data": 0.95}
"""Of the DataLoader's rate."""
FIRST_S = 0.5
STEP_S = 0.005


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit bench feed`."""
    parser = command_line.parser(
        "bench feed", "The feed against a torch DataLoader with the same decode function."
    )
    parser.add_argument(
        "config", metavar="CONFIG", nargs="?", default="polyvit-b-nine", help="default: polyvit-b-nine"
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="keys of the config to change")
    parser.add_argument("--workers", type=int, default=8, help="measure the feed of one train worker of so many")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions; medians count")
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long a pass takes")
    parser.add_argument(
        "--steps", type=int, default=2000, help="steps of the memory section; the host section takes a fifth"
    )
    parser.add_argument("--sections", default=",".join(SECTIONS), help="comma-separated")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="2 rounds of 2 s, 200 steps; without the decode section about 2 minutes",
    )
    return command_line.run(parser, _body, argv)


@dataclass(frozen=True)
class Bench:
    """What all sections need.

    config, indexes: the tasks and their data. workers: train workers of the run of which one is measured.
    rounds: of every comparison. seconds: about how long a pass takes. processes: how many decode, on every side.
    quiet: whether the machine was idle before, so that sides can be compared.
    """

    config: RunConfig
    indexes: Indexes
    workers: int
    rounds: int
    seconds: float
    processes: int
    quiet: bool = True

    def case(self, tasks: Sequence[str], steps: int) -> tuple[RunConfig, Decoder, Iterator[Request]]:
        """One train worker's requests of the first `steps` steps of a weighted schedule over these tasks."""
        chosen = {name: self.config.tasks[name] for name in tasks}
        schedule = self.config.schedule.model_copy(update={"steps": None, "kind": "weighted"})
        config = self.config.model_copy(update={"tasks": chosen, "schedule": schedule})
        sizes = {name: len(self.indexes.scans[name].split("train")) for name in chosen}
        order = build_schedule(schedule, chosen, config.seed)
        requests = Requests.of(
            config, Plan(order, chosen, sizes, config.seed), self.indexes.scans, 0, self.workers
        )
        case_requests = (request for step in range(1, min(steps, len(order)) + 1) for request in requests.at(step))
        return config, make_decoder(config, self.indexes), case_requests


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    sections = arguments.sections.split(",")
    if unknown := [name for name in sections if name not in SECTIONS]:
        raise UserError(f"--sections {unknown[0]}: choose from {', '.join(SECTIONS)}")
    if min(arguments.workers, arguments.rounds, arguments.steps) < 1 or arguments.seconds <= 0:
        raise UserError("--workers, --rounds, --steps and --seconds must be above 0")
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.steps = 2, 2.0, 200
    config = load_config(arguments.config, arguments.overrides, [])
    before, where = os.getloadavg()[0], kit.machine(torch.device("cpu"))
    began, document = time.monotonic(), {}
    with tempfile.TemporaryDirectory(prefix="polyvit-bench-") as folder, cluster(workers=0):
        indexes = _indexes(config, Path(folder), arguments.quick)
        processes = max(1, int(ray.cluster_resources()["CPU"] / config.data.decode_cpus))
        quiet = before <= 0.5 * (os.cpu_count() or 1)
        bench = Bench(config, indexes, arguments.workers, arguments.rounds, arguments.seconds, processes, quiet)
        for name in sections:
            document[name] = {
                "delivered": lambda: delivered(bench), "host": lambda: host(bench, arguments.steps // 5),
                "memory": lambda: memory(bench, arguments.steps),
                "decode": lambda: decode(bench, Path(folder), arguments.quick),
            }[name]()  # fmt: skip
    claims = kit.claims(before)
    if not bench.quiet:
        console.print(f"no ratios: the load was {before:.1f} before; wait until it is below half the cores")
    console.print(f"absolute numbers may be quoted: {claims['absolute']} ({claims['why']})")
    return {
        "benchmark": "feed", "config": config.name, "data": config.data.root or "made", "quick": arguments.quick,
        "rounds": bench.rounds, "workers": bench.workers, "processes": processes, "machine": where,
        "claims": claims, "seconds": time.monotonic() - began, **document,
    }  # fmt: skip


def _indexes(config: RunConfig, folder: Path, quick: bool) -> Indexes:
    if config.data.root or all(task.root for task in config.tasks.values()):
        return build_indexes(config, folder / "index")
    console.print("no data.root: making photos, clips and recordings of realistic size ...")
    return write_data(folder, config, clips=4 if quick else 16)


def cases(config: RunConfig) -> dict[str, list[str]]:
    """A task of each modality, the first of it, and the mix of all."""
    first = {task.modality: name for name, task in reversed(config.tasks.items())}
    alone: dict[str, list[str]] = {m: [first[m]] for m in config.modalities}
    return {**alone, "mix": list(config.tasks)} if len(config.tasks) > 1 else alone


# -------------------------------------------------------------------------------------------- delivered


def delivered(bench: Bench) -> dict[str, Any]:
    """Every case: rates of every side, and ratios to the DataLoader."""
    results = {name: delivered_case(bench, tasks) for name, tasks in cases(bench.config).items()}
    table = Table(title=f"delivered by {bench.processes} processes, medians of {bench.rounds} rounds")
    for column in ("", "examples", "side", "examples/s", "x DataLoader", "first s", "CPU ms/example", "load"):
        table.add_column(column, justify="right" if column not in ("", "side") else "left")
    for name, case in results.items():
        for side, row in case["sides"].items():
            table.add_row(
                name, str(case["examples"]), side, f"{row['examples_per_s']:.1f}",
                "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
                f"{row['first_s']:.2f}", f"{row['cpu_ms_per_example']:.2f}", f"{max(case['load']):.1f}",
            )  # fmt: skip
    console.print(table)
    return results


def delivered_case(bench: Bench, tasks: Sequence[str]) -> dict[str, Any]:
    """One case. A pass is as many requests as the processes decode in about `bench.seconds`."""
    config, decoder, requests = bench.case(tasks, 10**9)
    sample, costs = [], {name: [0.0, 0] for name in tasks}  # seconds and number of a task's requests decoded here
    spent, until = 0.0, time.perf_counter() + max(2.0, bench.seconds)
    while spent < bench.seconds * bench.processes and (request := next(requests, None)) is not None:
        sample.append(request)
        cost = costs[request.task]
        if not cost[1]:
            decoder.decode(request)  # imports, caches
        if not cost[1] or time.perf_counter() < until:
            began = time.perf_counter()
            decoder.decode(request)
            cost[0], cost[1] = cost[0] + time.perf_counter() - began, cost[1] + 1
        spent += cost[0] / cost[1]
    contenders = sides(decoder, config, bench.processes)
    return {"tasks": list(tasks), "examples": sum(len(r.examples) for r in sample), "requests": len(sample),
            **compared(contenders, sample, bench)}  # fmt: skip


def compared(contenders: dict[str, Any], requests: Sequence[Request], bench: Bench) -> dict[str, Any]:
    """Time passes of every side in turn, after one that warms up; the order changes from round to round."""
    passes: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    loads = []
    for turn in range(bench.rounds + 1):
        names = list(contenders)[turn % len(contenders) :] + list(contenders)[: turn % len(contenders)]
        for name in names:
            figures = timed(contenders[name], requests[: max(4, len(requests) // 2)] if not turn else requests)
            if turn:
                passes[name].append(figures)
        loads.append(os.getloadavg()[0])
    rows: dict[str, dict[str, Any]] = {}
    for name, entries in passes.items():
        rows[name] = {key: statistics.median(entry[key] for entry in entries) for key in entries[0]}
        own, theirs = ([entry["examples_per_s"] for entry in passes[side]] for side in (name, SIDES[0]))
        ratio = kit.ratio(own, theirs) if bench.quiet else None
        rows[name] |= {"ratio": ratio, "rounds": entries}
        if name in TARGETS:
            reached = None if ratio is None else ratio >= TARGETS[name]
            rows[name] |= {"target": TARGETS[name], "reached": reached}
            rows[name] |= {"first_reached": rows[name]["first_s"] < FIRST_S}
    return {"sides": rows, "load": loads}


# -------------------------------------------------------------------------------------------------- host


def host(bench: Bench, steps: int) -> dict[str, Any]:
    """Steps/s where nothing is decoded and nothing is computed."""
    config, decoder, stream = bench.case(list(bench.config.tasks), steps)
    requests = list(stream)
    results: dict[str, Any] = {}
    for kind, count in (("tiny", steps), ("real_size", max(8, steps // 6))):
        contenders = sides(Stub.of(decoder, real_size=kind == "real_size"), config, bench.processes)
        results[f"feed_{kind}"] = compared(contenders, requests[:count], bench)
    results["loop"] = {
        "alone": loop_rate(bench, config, 2 * steps, 0.0, stubbed=False),
        "with_feed": loop_rate(bench, config, 2 * steps, 0.0, stubbed=True),
        "with_feed_and_5_ms_step": loop_rate(bench, config, steps, STEP_S, stubbed=True),
    }
    table = Table(title="nothing decoded, nothing computed: steps/s")
    for column in ("", *SIDES):
        table.add_column(column, justify="right" if column else "left")
    for kind in ("tiny", "real_size"):
        rows = results[f"feed_{kind}"]["sides"]
        table.add_row(f"feed, {kind}", *(f"{rows[side]['minibatches_per_s']:.0f}" for side in SIDES))
    console.print(table)
    for name, rate in results["loop"].items():
        console.print(f"loop {name.replace('_', ' ')}: {rate:.0f} steps/s ({1000 / rate:.2f} ms a step)")
    return results


class _NoCallbacks:
    """The training loop's callbacks, which do nothing."""

    def progress(self, snapshot: dict[str, Any]) -> None: ...
    def metrics(self, step: int, values: dict[str, float]) -> None: ...
    def evaluated(self, step: int, scores: dict[str, float]) -> None: ...
    def checkpoint(self, state: TrainState, last: bool) -> None: ...
    def stop_requested(self) -> bool:
        return False

    def anomaly(self, minibatch: Minibatch) -> str | None:
        return None


class _StubFeed(RayFeed):
    """The feed of one of `workers` ranks with a stub for a decoder, or (not `stubbed`) with nothing behind it."""

    stubbed = True

    def train(self, start_step: int) -> Iterator[list[Minibatch]]:
        """Minibatches of tiny arrays."""
        self.decoder = Stub.of(self.decoder, real_size=False)
        if self.stubbed:
            yield from super().train(start_step)
            return
        templates = {name: self.decoder.decode(Request(0, name, (), global_batch=1)) for name in self.config.tasks}
        for step in range(start_step, self.schedule.known + 1):
            ((name, _),) = self.requests.plan.schedule.tasks_at(step)
            yield [Minibatch(**{**vars(templates[name]), "step": step})]

    def evaluation(self) -> Iterator[Minibatch]:
        """Nothing."""
        return iter(())


def loop_rate(bench: Bench, config: RunConfig, steps: int, step_s: float, stubbed: bool) -> float:
    """Steps/s of the training loop with a step that only sleeps; the first tenth of the steps does not count.

    bench, config: what is measured. steps: of the loop. step_s: how long a step sleeps.
    stubbed: whether the feed runs, with a decoder that does nothing; else there is no feed.
    """
    schedule = config.schedule.model_copy(update={"steps": steps})
    config = config.model_copy(update={"schedule": schedule})
    sizes = {name: len(bench.indexes.scans[name].split("train")) for name in config.tasks}
    plan = Plan(schedule_of(config), config.tasks, sizes, config.seed)
    feed = _StubFeed(config, plan, bench.indexes, 0, bench.workers)
    feed.stubbed = stubbed
    small = config.polyvit.model_copy(
        update={"width": 16, "num_heads": 2, "mlp_dim": 16, "depth": 1, "l_adapt": 0}
    )
    model = PolyViT(small, config.tasks)
    learner = TrainUnit(model, build_optimiser(dict(model.named_parameters()), config.optim))
    began: list[float] = []

    def null_step(minibatches: Sequence[Minibatch], lr: float, flag: float) -> StepNumbers:
        time.sleep(step_s)
        began.append(time.perf_counter())
        examples = sum(minibatch.global_batch for minibatch in minibatches)
        losses_and_bad = [0.0] * 2 * len(minibatches)
        values = torch.tensor([*losses_and_bad, examples, flag, 0.0])
        return StepNumbers(values, tuple(minibatch.task for minibatch in minibatches))

    train(
        learner, plan.schedule, feed, config, SingleProcess(), TrainState(), _NoCallbacks(), start_step=null_step
    )
    skipped = len(began) // 10
    return (len(began) - 1 - skipped) / (began[-1] - began[skipped])


# ------------------------------------------------------------------------------------------------ memory


def memory(bench: Bench, steps: int) -> dict[str, Any]:
    """MB during `steps` steps of small minibatches, and how many MB 1,000 steps add in the second half of them."""
    tiny = load_config("tiny-nine", [], []).model
    workers = 4 * bench.workers  # small minibatches: it is steps that count here
    small = Bench(bench.config.model_copy(update={"model": tiny}), bench.indexes, workers, 1, 1, bench.processes)
    results: dict[str, Any] = {}
    all_tasks = list(bench.config.tasks)
    for kind, tasks in (("one_task", all_tasks[:1]), ("all_tasks", all_tasks)):
        config, decoder, stream = small.case(tasks, steps)
        requests = list(stream)
        for name, side in sides(decoder, config, bench.processes).items():
            if name != SIDES[0]:
                results[f"{name}, {kind}"] = _growth(side(requests), len(requests))
    for name, row in results.items():
        console.print(
            f"{name}: {row['start_mb']:.0f} MB after {row['steps'] // 10} steps, {row['end_mb']:.0f} MB after "
            f"{row['steps']}; {row['mb_per_1000_steps']:+.1f} MB per 1,000 steps in the second half"
        )
    return results


def _growth(stream: Iterator[int], steps: int) -> dict[str, Any]:
    every, samples = max(10, steps // 20), []
    for step, _ in enumerate(stream, start=1):
        if step % every == 0:
            samples.append((step, memory_mb()))
    late = np.array(samples[len(samples) // 2 :])
    slope = np.polyfit(late[:, 0], late[:, 1], 1)[0] if len(late) > 1 else 0.0
    return {
        "steps": steps, "start_mb": samples[1][1], "end_mb": samples[-1][1],
        "mb_per_1000_steps": float(slope) * 1000, "samples": samples,
    }  # fmt: skip


def decode(bench: Bench, folder: Path, quick: bool) -> dict[str, Any]:
    """What `pipelines.bench.decode` measures, on the same data."""
    root = bench.config.data.root
    return decode_section(Path(root) if root else folder, *((2, 8, 1) if quick else (bench.rounds,)))


if __name__ == "__main__":
    sys.exit(main())
