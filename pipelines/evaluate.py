"""Ray Data: evaluate a checkpoint, as a batch job.

    polyvit evaluate MODEL [CONFIG] [key=value ...] [--split SPLIT] [--only TASK] [--report DIR]
    python -m pipelines.evaluate ...                          the same, for `ray job submit`

MODEL is a checkpoint's folder, a run's (its newest checkpoint), or `models:/name@alias`. The config stored in it
says what to evaluate and where the data are; CONFIG takes `tasks` and `data` from a recipe instead, and
overrides change either, such as tasks.kinetics400.eval_clips=4. Decoding runs on any CPU of the cluster; the
model runs on a GPU if the cluster has one, else in this process. With the views of training the numbers are
those that training printed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from rich.table import Table

from pipelines.runtime import command_line, console
from pipelines.tracking import model_folder
from polyvit.checkpoint import load_trained
from polyvit.config import RunConfig, apply_override, read_recipe, validate_config, with_absolute_paths
from polyvit.data.index import Split
from polyvit.data.loading import check_readable
from polyvit.errors import UserError
from polyvit.storage import output_folder


def evaluation_config(
    trained: RunConfig,
    recipe: str | None,
    overrides: Sequence[str],
    split: Split | None = None,
    only: Sequence[str] = (),
) -> RunConfig:
    """The checkpoint's config with what the user changes about it.

    trained: the checkpoint's. recipe: where to take `tasks` and `data` from instead. overrides: key=value.
    split: replaces each task's eval_split. only: the tasks to keep.

    Raises UserError for a config that is wrong in itself, or that the checkpoint has no heads for.
    """
    document = trained.model_dump(mode="json")
    if recipe:
        other = read_recipe(recipe)
        document["tasks"] = other.get("tasks")
        document["data"] |= other.get("data") or {}
    for override in overrides:
        task = override.split(".")[1] if override.startswith("tasks.") and override.count(".") > 1 else None
        if task and task not in (document["tasks"] or {}):
            raise UserError(f"{override}: there is no task {task}; there are {', '.join(document['tasks'] or {})}")
        apply_override(document, override)
    if only:
        tasks = document["tasks"] or {}
        if missing := [name for name in only if name not in tasks]:
            raise UserError(f"--only {missing[0]}: there is no such task; there are {', '.join(tasks)}")
        document["tasks"] = {name: task for name, task in tasks.items() if name in only}
    config = with_absolute_paths(validate_config(document))
    if problems := _head_problems(trained, config):
        raise UserError("the config does not fit the checkpoint:", problems)
    if split:
        changed = {name: task.model_copy(update={"eval_split": split}) for name, task in config.tasks.items()}
        config = config.model_copy(update={"tasks": changed})
    return config


def _head_problems(trained: RunConfig, config: RunConfig) -> list[str]:
    """Tasks that the checkpoint has no head for, and keys that cannot differ from what was trained."""
    problems = []
    if config.model != trained.model:
        problems.append("model: its keys describe the checkpoint; leave them as they are")
    for name, task in config.tasks.items():
        known = trained.tasks.get(name)
        if known is None:
            have = ", ".join(trained.tasks)
            problems.append(f"tasks.{name}: the checkpoint has no such task (it has {have}); see --only")
            continue
        for key in ("modality", "num_classes"):
            value, trained_value = getattr(task, key), getattr(known, key)
            if value != trained_value:
                problems.append(f"tasks.{name}.{key}={value}: the checkpoint was trained with {trained_value}")
    return problems


def print_results(document: dict[str, Any]) -> None:
    """The table, and the first of what was skipped."""
    table = Table(title=f"{document['checkpoint']}: step {document['step']}")
    for column, side in [("task", "left"), ("modality", "left"), ("metric", "left"), ("value", "right"),
                         ("top5", "right"), ("loss", "right"), ("examples", "right"), ("skipped", "right"),
                         ("left out", "right"), ("chance", "right"), ("protocol", "left")]:  # fmt: skip
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for name, row in document["tasks"].items():
        figures = ["-" if row.get(key) is None else f"{row[key]:.3f}" for key in ("value", "top5", "loss")]
        table.add_row(
            name, row["modality"], row["metric"], *figures, f"{row['examples']} {row['eval_split']}",
            str(row["skipped"]), str(sum(row["left_out"].values())), f"{row['chance']:.3f}", row["protocol"],
        )  # fmt: skip
    console.print(table)
    console.print("skipped: cannot be decoded; left out: listed in any split, not usable; chance: a guess")
    for name, row in document["tasks"].items():
        for first in row["skipped_files"][:1]:
            more = f" (and {len(row['skipped_files']) - 1} more, in --json)" if row["skipped_files"][1:] else ""
            console.print(f"{name}: not usable: {first['path']}: {first['reason']}{more}")


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit evaluate`."""
    parser = command_line.parser("evaluate", "Evaluate a checkpoint on the tasks of its config.")
    parser.add_argument(
        "model", metavar="MODEL", help="a checkpoint's folder, a run's, models:/name@alias or hf://ORG/NAME"
    )
    command_line.add_config(parser, optional=True)
    parser.add_argument("--split", choices=get_args(Split), help="instead of each task's eval_split")
    parser.add_argument("--no-mlflow", action="store_true", help="do not log the results to MLflow")
    parser.add_argument(
        "--report", type=Path, metavar="DIR",
        help="write report.html there: scores of each class, confusion, reliability, the examples of the highest"
        " loss; and the same as CSV and pictures",
    )  # fmt: skip
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    recipe, overrides = arguments.config, arguments.overrides
    if recipe and "=" in recipe:
        recipe, overrides = None, [recipe, *overrides]
    checkpoint = model_folder(arguments.model)
    model, trained, state = load_trained(checkpoint)
    check_readable(trained)
    config = evaluation_config(trained, recipe, overrides, arguments.split, arguments.only)
    from pipelines.batch import evaluate_checkpoint  # start-up: ray, where the arguments have no mistake
    from pipelines.index import task_roots  # start-up: ray
    from pipelines.runtime import cluster  # start-up: ray

    task_roots(config)  # before anything is started
    report = output_folder(arguments.report, "--report") if arguments.report else None
    console.print("starting Ray ...")
    with cluster(1, config.train.cpus_per_worker):
        details: dict[str, Any] | None = {} if arguments.report else None
        rows = evaluate_checkpoint(model, config, checkpoint, details)
    document = {
        "model": arguments.model,
        "checkpoint": str(checkpoint),
        "step": state["global_step"],
        "tasks": rows,
    }
    print_results(document)
    if report:
        from polyvit.reports.evaluation import write_report  # start-up: matplotlib

        title = f"{checkpoint.parent.name}: evaluation after step {document['step']}"
        files = write_report(details or {}, rows, title, report)
        document["report"] = {name: str(path) for name, path in files.items()}
        document["worst"] = {n: [each.document() for each in d.worst] for n, d in (details or {}).items()}
        console.print(f"report      {files['report']}")
    if not arguments.no_mlflow:
        from pipelines.tracking import log_measurement  # start-up: MLflow

        run, line = log_measurement(config, "evaluation", arguments.model, checkpoint, state["global_step"], rows)
        console.print(line, style=None if run else "yellow")
        document["mlflow_run"] = run
    return document


if __name__ == "__main__":
    sys.exit(main())
