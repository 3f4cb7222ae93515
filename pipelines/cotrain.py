"""Ray Train: co-train one PolyViT on the tasks of a config.

    polyvit cotrain CONFIG [key=value ...] [--resume RUN] [--only TASK] [--name NAME] [--json FILE]
    python -m pipelines.cotrain ...                          the same, for `ray job submit`

A run is a folder `storage`/NAME (`training/run_dir.py`); `training/driver.py` says what happens in a run.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from rich.table import Table

from pipelines.runtime import command_line, console
from pipelines.training import find_run, new_run, resumed_config
from polyvit.config import RunConfig, left_out_tasks, load_config, text_override
from polyvit.data.loading import check_readable
from polyvit.errors import UserError
from polyvit.schedule import schedule_of


def print_results(document: dict[str, Any]) -> None:
    """The table at the end, where things are, and what to try next."""
    table = Table(title=f"{document['run']}: {document['steps']} steps on {document['workers']} workers")
    for column, side in [("task", "left"), ("modality", "left"), ("steps", "right"), ("examples seen", "right"),
                         ("epochs", "right"), ("eval on", "right"), ("metric", "left"), ("value", "right"),
                         ("chance", "right"), ("majority", "right"), ("skipped", "right")]:  # fmt: skip
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for name, row in document["tasks"].items():
        value = "-" if row["value"] is None else f"{row['value']:.3f}"
        majority = "" if row["majority"] is None else f"{row['majority']:.3f}"
        table.add_row(
            name, row["modality"], str(row["steps"]), str(row["examples_seen"]), f"{row['epochs']:.1f}",
            f"{row['eval_examples']} {row['eval_split']}", row["metric"], value, f"{row['chance']:.3f}", majority,
            str(len(row["skipped_files"])),
        )  # fmt: skip
    console.print(table)
    console.print(
        "chance: a guess; majority: always the most frequent training class; skipped: listed or read, not usable"
    )
    ended = document["ended"]
    if ended["reason"] == "early_stopping":
        console.print(
            f"ended       early, at step {ended['step']}: {ended['metric']} did not improve for"
            f" {ended['evaluations_since']} evaluation(s) (best at step {ended['best_step']})"
        )
    console.print(f"checkpoint  {document['checkpoint']}")
    if best := document["best"]:
        where = "" if best["checkpoint"] == document["checkpoint"] else f": {best['checkpoint']}"
        console.print(f"best        step {best['step']} ({best['metric']} {best['value']:.3f}){where}")
    console.print(f"MLflow      run {document['run_id']} in {document['mlflow_uri']}")
    if document["mlflow_uri"].startswith("sqlite:"):
        console.print(f"see it      {command_line.tool('mlflow')} ui --backend-store-uri {document['mlflow_uri']}")
        console.print(f"            then http://127.0.0.1:5000{document['mlflow_page']}")
    else:
        console.print(f"see it      {document['mlflow_uri']}{document['mlflow_page']}")


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit cotrain`."""
    parser = command_line.parser("cotrain", "Co-train one model on all tasks of a config.")
    command_line.add_config(parser, optional=True)
    parser.add_argument("--resume", metavar="RUN", help="go on with a run: its folder, or its name in `storage`")
    parser.add_argument("--name", help="the new run's name (default: recipe, time and four random digits)")
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    document = _resume(arguments) if arguments.resume else _start(arguments)
    print_results(document)
    polyvit = command_line.tool("polyvit")
    console.print(f"next        {polyvit} evaluate {document['checkpoint']}")
    if not arguments.resume and len(document["tasks"]) > 1:
        only = [f"--only {task}" for task in arguments.only]
        same = " ".join([arguments.config, *arguments.overrides, *only])
        console.print(
            f"            {polyvit} cotrain {same} schedule.kind=uniform   (another schedule, to compare)"
        )
    return document


def _start(arguments: argparse.Namespace) -> dict[str, Any]:
    if not arguments.config:
        raise UserError("give a CONFIG (a recipe's name or a YAML file), or --resume RUN; see `polyvit recipes`")
    config = load_config(arguments.config, arguments.overrides, arguments.only)
    for words in (left_out_tasks(arguments.config), config.long_warmup(len(schedule_of(config)))):
        if words:
            console.print(words, style="yellow")
    from pipelines.index import task_roots  # start-up: ray, where the config has no mistake

    check_readable(config)
    task_roots(config)  # before a run's folder is made
    if config.init.path:
        from polyvit.training import check_init  # start-up: torch, where nothing is read

        check_init(config)
    run_dir = new_run(config, arguments.name)
    console.print("starting Ray ...")
    with _cluster(config):
        from pipelines.training import cotrain  # start-up: torch, imported while Ray starts

        return cotrain(config, run_dir)


def _cluster(config: RunConfig) -> AbstractContextManager[None]:
    """A cluster for the run. What the driver needs is imported while Ray starts."""
    from pipelines.runtime import cluster, crowded  # start-up: ray, where the arguments have no mistake

    if words := crowded(config):
        console.print(words, style="yellow")
    driver = partial(importlib.import_module, "pipelines.training.driver")
    return cluster(config.train.workers, config.train.cpus_per_worker, driver)


def _resume(arguments: argparse.Namespace) -> dict[str, Any]:
    overrides = [*([arguments.config] if arguments.config else []), *arguments.overrides]
    if arguments.config and "=" not in arguments.config:
        raise UserError(f"--resume takes its config from the run; leave out {arguments.config!r}")
    if arguments.only or arguments.name:
        raise UserError("--resume goes on with a run as it is; leave out --only and --name")
    run_dir = find_run(arguments.resume, text_override(overrides, "storage", "runs"))
    run_id = run_dir.read(run_dir.record.name, "mlflow_run")["mlflow_run"]
    config = resumed_config(run_dir, overrides)
    console.print(f"going on with {run_dir.name}: starting Ray ...")
    with _cluster(config):
        from pipelines.training import cotrain  # start-up: torch, imported while Ray starts

        return cotrain(config, run_dir, run_id)


if __name__ == "__main__":
    sys.exit(main())
