"""What mixing tasks costs: N weighted co-training steps against the same steps run task by task, in one process.

    polyvit bench cotrain [CONFIG] [key=value ...] [--steps N] [--rounds N] [--threads N] [--json FILE]

The minibatches are there before the clock starts (no feed), so the difference is what switching tasks costs the
step: caches, allocator, graphs, optimiser. Both orders take turns, and each starts from the same parameters.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch

from pipelines.bench import kit
from pipelines.bench.kit import random_minibatch
from pipelines.runtime import command_line, console
from polyvit.config import RunConfig, load_config
from polyvit.errors import UserError
from polyvit.model import PolyViT
from polyvit.schedule import schedule_of
from polyvit.training import SingleProcess, TrainStep, build_optimiser, compiles

LIMIT = 1.03
"""The most that co-training may take, as a multiple of its tasks run one after another."""


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit bench cotrain`."""
    parser = command_line.parser("bench cotrain", "Co-training's steps against the same steps run task by task.")
    parser.add_argument("config", metavar="CONFIG", nargs="?", default="tiny-nine", help="default: tiny-nine")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="keys of the config to change")
    parser.add_argument("--steps", type=int, default=90, help="steps of each order in a round")
    parser.add_argument("--rounds", type=int, default=7, help="repetitions; medians count")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    if min(arguments.steps, arguments.rounds, arguments.threads) < 1:
        raise UserError("--steps, --rounds and --threads must be at least 1")
    config = load_config(arguments.config, arguments.overrides, [])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    before, where = os.getloadavg()[0], kit.machine(device)
    try:
        document = measure(config, arguments.steps, arguments.rounds, device)
    finally:
        torch.set_num_threads(threads)
    claims = kit.claims(before)
    console.print(
        f"{document['steps']} steps of {len(document['counts'])} tasks: "
        f"co-training {document['cotraining_ms']:.0f} ms, task by task "
        f"{document['task_by_task_ms']:.0f} ms, ratio {document['ratio']:.3f} (limit {LIMIT})"
    )
    console.print(f"absolute numbers may be quoted: {claims['absolute']} ({claims['why']})")
    return {"benchmark": "cotrain", "machine": where, "claims": claims, "rounds": arguments.rounds, **document}


def measure(config: RunConfig, count: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Milliseconds of both orders, medians over rounds, and the median of their ratio within a round."""
    schedule = schedule_of(config)
    stride = max(1, schedule.known // count)
    mixed = [name for step in range(1, schedule.known + 1, stride) for name, _ in schedule.tasks_at(step)][:count]
    minibatches = {name: random_minibatch(config, name) for name in config.tasks}
    model = PolyViT(config.polyvit, config.tasks).to(device)
    if compiles(config, device):
        model.compile_blocks()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def run(steps: TrainStep, order: list[str]) -> None:
        for name in order:
            steps.start([minibatches[name]], 1e-3)

    times: dict[str, list[float]] = {"mixed": [], "sorted": []}
    orders = {"mixed": mixed, "sorted": sorted(mixed)}
    for turn in range(rounds + 1):
        for key in ("mixed", "sorted") if turn % 2 else ("sorted", "mixed"):
            model.load_state_dict(start)
            optimiser = build_optimiser(dict(model.named_parameters()), config.optim)
            steps = TrainStep(model, optimiser, config, SingleProcess())
            run(steps, list(config.tasks))  # momentum of every parameter is there before the clock starts
            took = kit.clock(lambda key=key, steps=steps: run(steps, orders[key]), device)  # type: ignore[misc]
            if turn:  # the first round warms up
                times[key].append(took)
    ratio = kit.ratio(times["mixed"], times["sorted"])
    return {
        "config": config.name, "schedule": config.schedule.kind, "steps": len(mixed),
        "counts": {name: mixed.count(name) for name in config.tasks},
        "cotraining_ms": statistics.median(times["mixed"]), "task_by_task_ms": statistics.median(times["sorted"]),
        "ratio": ratio, "limit": LIMIT, "within_limit": ratio <= LIMIT,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
