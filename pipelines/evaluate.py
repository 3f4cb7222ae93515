"""Ray Data: evaluate a checkpoint, as a batch job.

    polyvit evaluate MODEL [CONFIG] [key=value ...] [--split SPLIT] [--only TASK] [--json FILE]
    python -m pipelines.evaluate ...                          the same, for `ray job submit`

MODEL is a checkpoint's folder, a run's (its newest checkpoint), or `models:/name@alias`. The config stored in it
says what to evaluate and where the data are; CONFIG takes `tasks` and `data` from a recipe instead, and
overrides change either, such as tasks.kinetics400.eval_clips=4. Decoding runs on any CPU of the cluster; the
model runs on a GPU if the cluster has one, else in this process. With the views of training the numbers are
those that training printed.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from rich.table import Table

from pipelines.runtime import command_line, console
from pipelines.tracking import model_folder
from polyvit.checkpoint import load_trained, read_document
from polyvit.config import RunConfig, apply_override, read_recipe, validate_config, with_absolute_paths
from polyvit.data.index import Scan, Split
from polyvit.data.loading import Minibatch, Quarantined, Request, split_requests
from polyvit.deploy import class_names
from polyvit.errors import UserError
from polyvit.evaluation import chance_level, evaluate
from polyvit.model import PolyViT
from polyvit.reports import label_shares
from polyvit.training import Alone


def evaluation_config(
    trained: RunConfig,
    recipe: str | None,
    overrides: Sequence[str],
    split: Split | None = None,
    only: Sequence[str] = (),
) -> RunConfig:
    """The checkpoint's config, with tasks and data of another recipe, overrides, another split, fewer tasks.

    Raises UserError for a config that is wrong in itself, or that the checkpoint has no heads for.
    """
    document = trained.model_dump(mode="json")
    if recipe:
        given = read_recipe(recipe)
        document["tasks"] = given.get("tasks")
        document["data"] |= given.get("data") or {}
    for override in overrides:
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
    """Tasks that the checkpoint has no head for, and keys that are part of what was trained."""
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
            given, wanted = getattr(task, key), getattr(known, key)
            if given != wanted:
                problems.append(f"tasks.{name}.{key}={given}: the checkpoint was trained with {wanted}")
    return problems


def class_problems(scans: Mapping[str, Scan], trained: Mapping[str, Sequence[str]]) -> list[str]:
    """Tasks whose data give a label another meaning than the data that the checkpoint was trained on.

    `trained`: its class names; where they lack a task, nothing is known and nothing is said.
    """
    problems = []
    for name, found in scans.items():
        pairs = enumerate(zip(found.classes, trained.get(name, ()), strict=False))
        differ = next(((i, here, there) for i, (here, there) in pairs if here != there), None)
        if differ is not None:
            i, here, there = differ
            problems.append(
                f"tasks.{name}: label {i} is {here!r} in these data and {there!r} in those of training; set "
                f"tasks.{name}.classes to a file of the training classes, one a line, in their order"
            )
    return problems


def evaluate_checkpoint(model: PolyViT, config: RunConfig, checkpoint: Path) -> dict[str, dict[str, Any]]:
    """Index the tasks, decode and measure on the cluster that is attached. Returns a row a task."""
    from pipelines.index import build_indexes, index_report
    from pipelines.runtime import check_resources, one_worker

    # One process runs the model, whatever number trained it.
    alone = one_worker(config)
    check_resources(alone)
    with tempfile.TemporaryDirectory(prefix="polyvit-evaluate-", dir=_shared_folder(config)) as folder:
        console.print(f"indexing {len(config.tasks)} task{'s' if len(config.tasks) > 1 else ''} ...")
        indexes = build_indexes(config, Path(folder), train=False)
    if problems := class_problems(indexes.scans, class_names(checkpoint, config, read_document(checkpoint))):
        raise UserError("the labels of the data are not those of the checkpoint:", problems)
    results, bad = _measure(model, config, alone, indexes)
    report = index_report(indexes)
    return {
        name: {
            **_row(config, name, results[name], indexes.scans[name]),
            "left_out": report[name]["left_out"],
            "skipped_files": [
                *({"path": entry.path, "reason": entry.reason} for entry in bad if entry.task == name),
                *({"path": entry["where"], "reason": entry["reason"]} for entry in report[name]["problems"]),
            ],
        }
        for name in config.tasks
    }


def _shared_folder(config: RunConfig) -> Path | None:
    """`storage`, which every node of a cluster sees, if it is here; null: this machine's temporary folder."""
    storage = Path(config.storage)
    return storage if storage.is_dir() and os.access(storage, os.W_OK) else None


def _measure(model: PolyViT, config: RunConfig, alone: RunConfig, indexes: Any) -> Any:
    """`_forward` in a Ray task that holds a GPU, or here."""
    import ray

    from pipelines.runtime import ProgressActor, live_line, use_gpu

    board = ProgressActor.remote()  # type: ignore[attr-defined]
    ray.get(board.post.remote({"phase": "starting the feed ..."}))
    with live_line(board):
        if not use_gpu(alone):
            return _forward(model, config, indexes, board, "cpu")
        task = ray.remote(num_cpus=config.train.cpus_per_worker, num_gpus=config.train.gpus_per_worker)(_forward)
        return ray.get(task.remote(model, config, indexes, board, "cuda"))


def _forward(
    model: PolyViT, config: RunConfig, indexes: Any, board: Any, device: str
) -> tuple[dict[str, dict[str, Any]], list[Quarantined]]:
    """Results and undecodable examples of every task."""
    from pipelines.feed import make_decoder, minibatches
    from pipelines.runtime import ProgressReporter

    requests = evaluation_requests(config, indexes.scans)
    stream = minibatches(requests, make_decoder(config, indexes), config)
    poster = ProgressReporter(board, rank=0)

    def said(i: int, minibatch: Minibatch) -> Minibatch:
        poster({"phase": f"evaluating: {minibatch.task} (minibatch {i} of {len(requests)}) ..."})
        return minibatch

    try:
        told = (said(i, minibatch) for i, minibatch in enumerate(stream, start=1))
        return evaluate(model.to(device), told, config, Alone())
    finally:
        stream.close()


def evaluation_requests(config: RunConfig, scans: Mapping[str, Scan]) -> list[Request]:
    """Every example of the evaluation splits once, task by task.

    In the minibatches of the ranks that trained: other ones would round otherwise.
    """
    splits = {name: scans[name].split(task.eval_split) for name, task in config.tasks.items()}
    size = config.train.workers
    requests = [r for rank in range(size) for r in split_requests(config.tasks, splits, rank, size)]
    order = list(config.tasks)
    return sorted(requests, key=lambda request: order.index(request.task))


def _row(config: RunConfig, name: str, result: dict[str, Any], found: Scan) -> dict[str, Any]:
    task = config.tasks[name]
    held = found.split(task.eval_split)
    present = label_shares(held, task.num_classes)
    # Training counts the classes to guess from in its own split; where that is not at hand, in this one.
    known = label_shares(found.split("train") or held, task.num_classes)
    return {
        "modality": task.modality,
        "eval_split": task.eval_split,
        **result,
        "chance": chance_level(task.metric, present, int((known > 0).sum())),
    }


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
            console.print(f"{name}: not usable: {first['path']}: {first['reason']}{more}", markup=False)


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit evaluate`."""
    made = command_line.parser("evaluate", "Evaluate a checkpoint on the tasks of its config.")
    made.add_argument("model", metavar="MODEL", help="a checkpoint's folder, a run's, or models:/name@alias")
    command_line.add_config(made, optional=True)
    made.add_argument("--split", choices=get_args(Split), help="instead of each task's eval_split")
    return command_line.run(made, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    recipe, overrides = arguments.config, arguments.overrides
    if recipe and "=" in recipe:
        recipe, overrides = None, [recipe, *overrides]
    checkpoint = model_folder(arguments.model)
    model, trained, state = load_trained(checkpoint)
    config = evaluation_config(trained, recipe, overrides, arguments.split, arguments.only)
    from pipelines.index import task_roots
    from pipelines.runtime import cluster

    task_roots(config)  # before anything is started
    console.print("starting Ray ...")
    with cluster(1, config.train.cpus_per_worker):
        rows = evaluate_checkpoint(model, config, checkpoint)
    document = {
        "model": arguments.model,
        "checkpoint": str(checkpoint),
        "step": state["global_step"],
        "tasks": rows,
    }
    print_results(document)
    return document


if __name__ == "__main__":
    sys.exit(main())
