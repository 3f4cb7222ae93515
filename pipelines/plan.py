"""What a run would do, what it needs, and what stands in its way, before any time is spent.

    polyvit plan CONFIG [key=value ...] [--picture FILE.png] [--no-measure] [--json FILE]

Exit status 2, with all problems at once: data that cannot be trained on, memory or disk that does not suffice.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.runtime import command_line, console, gpus_here, with_workers
from polyvit.config import RunConfig, left_out_tasks, load_config
from polyvit.cost import Hardware, estimate, run_cost
from polyvit.data.index import Scan
from polyvit.data.isolation import isolation_report
from polyvit.data.loading import check_readable
from polyvit.errors import UserError
from polyvit.model import parameters_of, training_flops
from polyvit.reports import draw_schedule
from polyvit.schedule import Schedule, schedule_of
from polyvit.training import init_problems

SUMS = ("all transformers", "total")
"""Rows of the table by role that are sums."""
CORES = (2, 4, 8, 16)
"""Decoding cores of each GPU for which its idle share is predicted."""


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit plan`."""
    parser = command_line.parser("plan", "What a run would do, and what stands in its way.")
    command_line.add_config(parser)
    parser.add_argument("--no-measure", action="store_true", help="no steps are timed on this machine")
    parser.add_argument("--picture", metavar="FILE", type=Path, help="draw the schedule as a PNG")
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    config = load_config(arguments.config, arguments.overrides, arguments.only)
    if words := left_out_tasks(arguments.config):
        console.print(words, style="yellow")
    config = with_workers(config, config.train.workers or gpus_here() or 1)
    schedule = schedule_of(config)
    scans, problems = scan_given_data(config)
    problems += init_problems(config)
    document = {**plan_document(config, schedule, scans), "needs": worker_needs(config, schedule)}
    print_plan(config, document, checked=bool(scans))
    print_worker_needs(document["needs"])
    if not arguments.no_measure:
        problems += measure_here(config, schedule, document)
    console.print(isolation_report())
    if arguments.picture:
        draw_schedule(schedule, config, arguments.picture)
        console.print(f"schedule drawn in {arguments.picture}")
    if problems:
        raise UserError("this run cannot start:", problems)
    return document


def measure_here(config: RunConfig, schedule: Schedule, document: dict[str, Any]) -> list[str]:
    """Time a few real steps on the device at hand; put them into the document, print them. Returns problems."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() and config.train.use_gpu is not False else "cpu")
    console.print("timing a few steps of each modality on this machine ...")
    predicted = estimate(config, schedule, device)
    document["estimate"] = {**asdict(predicted), "problems": predicted.problems()}
    table = Table(
        title=f"measured on {predicted.device}, for each of {config.train.workers} workers on such a device"
    )
    for column in ("task", "s/step", "examples/s", "in all", "least memory of a step GB"):
        table.add_column(column, justify="left" if column == "task" else "right")
    counts = schedule.counts()
    for name, seconds in predicted.step_s.items():
        rate = config.tasks[name].batch / seconds
        least = (predicted.state_bytes + predicted.pass_bytes[name]) / 1e9
        table.add_row(name, f"{seconds:.3g}", f"{rate:.3g}", duration(counts[name] * seconds), f"{least:.3g}")
    console.print(table)
    console.print(conditions(predicted.threads, predicted.load))
    low, high = (duration(hours * 3600) for hours in predicted.hours_range)
    between = f" ({low} to {high}, by the fastest and slowest steps)" if low != high else ""
    console.print(
        f"about {duration(predicted.hours * 3600)}{between} of steps here, without evaluations and waiting for "
        f"data; "
        f"memory free {predicted.memory_free / 1e9:.3g} GB; checkpoints take {predicted.disk_bytes / 1e9:.3g} GB "
        f"of disk, free {predicted.disk_free / 1e9:.3g} GB"
    )
    return predicted.problems()


BUSY = 0.5
"""Load for each core from which on timings are not those of a quiet machine."""


def conditions(threads: int | None, load: float) -> str:
    """Under which conditions steps were timed, in a line. threads: None on a GPU. load: for each core."""
    of_torch = "" if threads is None else f"timed with {threads} of torch's threads, as a train worker has; "
    text = f"{of_torch}load of this machine {load:.1f} a core"
    if load < BUSY:
        return text
    return f"{text}: other programs are at work, a run alone is faster than this; plan again when it is quiet"


def duration(seconds: float) -> str:
    """In the unit that fits: 12 s, 3.4 min, 5.6 h, 7.8 days; "?" for NaN."""
    for limit, unit, size in ((100, "s", 1), (6000, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return "?" if seconds != seconds else f"{seconds / 86400:.3g} days"


def scan_given_data(config: RunConfig) -> tuple[Mapping[str, Scan], list[str]]:
    """The indexes, if the config says where data are, and every problem with them. No data named: neither."""
    from pipelines.index import build_indexes, task_roots  # start-up: Ray

    if config.data.root is None and all(task.root is None for task in config.tasks.values()):
        return {}, []
    try:
        check_readable(config)
        task_roots(config)
        with tempfile.TemporaryDirectory(prefix="polyvit-plan-") as folder:
            return build_indexes(config, Path(folder)).scans, []
    except UserError as error:
        return {}, list(error.problems) or [error.message]


def plan_document(config: RunConfig, schedule: Schedule, scans: Mapping[str, Scan]) -> dict[str, Any]:
    """The plan as data. Epochs are of the data at hand, else of the dataset's published size."""
    counts = schedule.counts()
    minibatches = sum(counts.values())
    parameters = parameters_of(config)
    tasks: dict[str, dict[str, Any]] = {}
    for name, task in config.tasks.items():
        scan = scans.get(name)
        examples = len(scan.split("train")) if scan else task.train_examples
        seen = counts[name] * task.batch
        coef = config.schedule.accumulating_lr_coef if config.schedule.kind == "accumulating" else task.lr_coef
        tasks[name] = {
            "modality": task.modality,
            "classes": task.num_classes,
            "loss": task.loss,
            "steps": counts[name],
            "probability": counts[name] / minibatches,
            "batch": task.batch,
            "lr": config.optim.lr * coef,
            "examples_seen": seen,
            "train_examples": examples,
            "epochs": seen / examples if examples else None,
            "tokens": config.model.num_tokens(task.modality) + 1,
            "train_gflops_per_example": training_flops(config.model, task.modality, task.num_classes) / 1e9,
        }
    total = sum(row["examples_seen"] * row["train_gflops_per_example"] for row in tasks.values())
    return {
        "name": config.name,
        "source": config.source,
        "schedule": config.schedule.kind,
        "schedule_hash": schedule.digest(),
        "steps": len(schedule),
        "known_steps": schedule.known,
        "warmup_steps": config.warmup_steps,
        "tasks": tasks,
        "parameters": {**parameters, "total": sum(parameters.values())},
        "sharing": config.model.sharing.model_dump(mode="json"),
        "train_exaflops": total / 1e9,
    }


def print_plan(config: RunConfig, document: dict[str, Any], checked: bool) -> None:
    """The plan as tables."""
    console.print(f"{document['name']}: {document['source']}")
    table = Table(title=f"{document['schedule']} schedule, {document['steps']:,} steps")
    for column in ("task", "modality", "classes", "loss", "steps", "probability", "batch", "peak lr",
                   "examples seen", "epochs", "tokens", "GFLOP/example"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("task", "modality", "loss") else "right")
    for name, row in document["tasks"].items():
        epochs = "?" if row["epochs"] is None else f"{row['epochs']:.1f}"
        cells = [
            name, row["modality"], str(row["classes"]), row["loss"], f"{row['steps']:,}",
            f"{row['probability']:.4f}", str(row["batch"]), f"{row['lr']:g}", f"{row['examples_seen']:,}",
            epochs, str(row["tokens"]), f"{row['train_gflops_per_example']:.3g}",
        ]  # fmt: skip
        table.add_row(*cells)
    console.print(table)
    if document["known_steps"] < document["steps"]:
        adaptive = config.schedule.adaptive
        console.print(
            f"known before the run: the tasks of steps 1 to {document['known_steps']:,}; the rest is decided at "
            f"evaluations (rule {adaptive.rule}), and the table says what comes of it if shares stay as they are. "
            f"A task's share can become {adaptive.min_factor:g} to {adaptive.max_factor:g} times that"
        )
    console.print(f"model {config.model.kind}, weights shared: {sharing_words(document['sharing'])}")
    roles = Table(title="parameters by role")
    roles.add_column("role")
    roles.add_column("parameters", justify="right")
    for role, count in role_rows(document["parameters"]):
        roles.add_row(role, f"{count:,}", style="bold" if role in SUMS else None)
    console.print(roles)
    console.print(
        f"warmup {document['warmup_steps']:,} steps, then cosine to 0; {config.optim.kind}, "
        f"training {document['train_exaflops']:.3g} EFLOP (forward and backward, 2 a multiply-add)"
    )
    if line := early_stopping_line(config):
        console.print(line)
    if line := config.long_warmup(document["steps"]):
        console.print(line, style="yellow")
    if not checked:
        console.print("data not read: epochs are of the published sizes; give data.root=DIR to check them")


def early_stopping_line(config: RunConfig) -> str | None:
    """When the run may end before the plan's last step; None where it may not."""
    settings = config.train.early_stopping
    if settings.patience is None:
        return None
    return (
        f"may end before the plan's steps (train.early_stopping): after {settings.patience} evaluations in a row,"
        f" one in {config.train.eval_every:,} steps, without a better {settings.metric}"
    )


def sharing_words(sharing: Mapping[str, Any]) -> str:
    """`model.sharing` in a line, without the keys that count with low rank only where there is none."""
    low_rank = any(str(value).startswith("low_rank") for value in sharing.values())
    shown = {key: value for key, value in sharing.items() if low_rank or key not in ("rank", "orthogonal")}
    return ", ".join(f"{key}={value}" for key, value in shown.items())


def role_rows(parameters: Mapping[str, int]) -> list[tuple[str, int]]:
    """The rows of the table by role. Of several transformers (AVBert) also their sum, which papers quote."""
    rows, parts = list(parameters.items()), [role for role in parameters if role.startswith("transformers/")]
    if parts:
        after = 1 + max(i for i, (role, _) in enumerate(rows) if role in parts)
        rows.insert(after, (SUMS[0], sum(parameters[role] for role in parts)))
    return rows


# ------------------------------------------------------------------------ each worker, on a cluster


def worker_needs(config: RunConfig, schedule: Schedule) -> dict[str, Any]:
    """What each train worker needs, as data: decoding cores, feed, network, checkpoints. Seconds, bytes, GB/s.

    Figures are predictions of `polyvit.cost` for H200 machines; docs/scaling.md says how far to trust them.
    """
    hardware = Hardware()
    run = run_cost(config, schedule.counts(), config.train.known_workers, hardware)
    steps = {
        name: {**asdict(cost), "step_s": cost.step_s, "cores": cost.cores, "efficiency": cost.efficiency}
        for name, cost in run.steps.items()
    }
    peak = hardware.peak_of(config.train.precision)
    assumed = (
        f"H200, {hardware.utilisation:.0%} of {peak / 1e12:g} TFLOP/s ({config.train.precision}), "
        f"{hardware.workers_per_node} a node"
    )
    idle = {str(cores): run.idle_share(cores) for cores in CORES}
    return {**asdict(run), "steps": steps, "assumed": assumed, "idle_share": idle}


def _network(cost: Mapping[str, Any]) -> float:
    """Bytes that a worker sends in a step."""
    return cost["wire_bytes"] + cost["exchange_bytes"]


def print_worker_needs(document: Mapping[str, Any]) -> None:
    """`worker_needs` as a table and a few lines."""
    workers = document["workers"]
    table = Table(title=f"each of {workers} train workers, predicted for {document['assumed']}")
    for column in ("task", "local batch", "step ms", "waits for network ms", "network MB/step", "feed MB/step",
                   "decoding cores", "efficiency"):  # fmt: skip
        table.add_column(column, justify="left" if column == "task" else "right")
    for name, cost in document["steps"].items():
        table.add_row(
            name, str(cost["local_batch"]), f"{cost['step_s'] * 1e3:.1f}",
            f"{(cost['exposed_s'] + cost['exchange_s']) * 1e3:.2f}",
            f"{_network(cost) / 1e6:,.0f}", f"{cost['feed_bytes'] / 1e6:,.1f}", f"{cost['cores']:.1f}",
            f"{cost['efficiency']:.2f}",
        )  # fmt: skip
    console.print(table)
    for name, cost in document["steps"].items():
        if cost["exchange_sums"] > 1:
            console.print(
                f"{name}: {cost['exchange_bytes'] / 1e6:,.0f} of its {_network(cost) / 1e6:,.0f} MB/step are "
                f"embeddings of all workers' clips and batch norm's statistics, in {cost['exchange_sums']} sums "
                f"that nothing hides: {cost['exchange_s'] * 1e3:.2f} ms; masks and negatives are drawn, not sent"
            )
    console.print(
        f"CPU cores per GPU needed to decode: {document['cores_peak']:.1f} so that no step ever waits, "
        f"{document['cores_mean']:.1f} on average over the schedule"
    )
    shares = ", ".join(f"{share:.0%} with {cores}" for cores, share in document["idle_share"].items())
    console.print(f"GPU idle for want of data, by cores that decode for it: {shares}")
    console.print(
        f"each worker: feed {document['feed_gb_s_mean']:.2g} GB/s (at most {document['feed_gb_s_peak']:.2g}), "
        f"files read {document['read_gb_s_mean']:.2g} GB/s, "
        f"network at most {document['network_gb_s_peak']:.3g} GB/s each way"
    )
    console.print(
        f"a checkpoint of {document['checkpoint_bytes'] / 1e9:.3g} GB; about {document['hours']:.3g} hours "
        f"of steps, at {document['efficiency']:.0%} of even arithmetic"
    )


if __name__ == "__main__":
    sys.exit(main())
