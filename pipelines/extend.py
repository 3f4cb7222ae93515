"""Add tasks to a trained model, and measure what that does to the old ones.

    polyvit extend MODEL CONFIG [key=value ...] [--only TASK] [--freeze PARTS] [--rehearse TASK] [--json FILE]
    python -m pipelines.extend ...                           the same, for `ray job submit`

The tasks of CONFIG that MODEL lacks get a head, and a tokenizer with adaptor blocks where their modality is new
(the blocks start as copies of another modality's). They train in a run of their own, like `polyvit cotrain`.
By default every old part is frozen, so that only what is new trains. --freeze tokenizers,heads lets the shared
blocks move (--freeze none: everything); --rehearse TASK goes on training an old task beside the new ones. The old
tasks are evaluated before and after. The run's folder gets `extended/`, a checkpoint with all tasks for
`evaluate`, `predict`, `register`, and forgetting.json.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.cotrain import print_results
from pipelines.runtime import command_line, console
from polyvit.checkpoint import load_trained
from polyvit.config import RunConfig, load_config
from polyvit.deploy import ROLES, add_results, assemble, extension_config, write_extended, write_package


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit extend`."""
    parser = command_line.parser("extend", "Add tasks to a trained model; measure what the old tasks lose.")
    parser.add_argument(
        "model", metavar="MODEL", help="a checkpoint's folder, a run's, models:/name@alias or hf://ORG/NAME"
    )
    command_line.add_config(parser)
    parser.add_argument(
        "--freeze", default=",".join(ROLES), metavar="PARTS",
        help=f"old parts that do not train, separated by commas: of {', '.join(ROLES)}; or parts such as "
        "tokenizers.image; or none (default: all of them)",
    )  # fmt: skip
    parser.add_argument("--rehearse", action="append", default=[], metavar="TASK", help="train this old task too")
    parser.add_argument("--old-root", metavar="DIR", type=Path, help="data.root of the old tasks, if it has moved")
    parser.add_argument("--skip-forgetting", action="store_true", help="do not evaluate the old tasks")
    parser.add_argument("--name", help="the new run's name")
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    from pipelines.index import task_roots  # start-up: Ray
    from pipelines.runtime import cluster  # start-up: Ray
    from pipelines.tracking import model_folder  # start-up: MLflow
    from pipelines.training import cotrain, new_run  # start-up: Ray

    folder = model_folder(arguments.model)
    old, trained, document = load_trained(folder)
    requested = load_config(arguments.config, arguments.overrides, arguments.only)
    freeze = [] if arguments.freeze == "none" else arguments.freeze.split(",")
    extension_config(trained, requested, folder, freeze, arguments.rehearse)  # before a run's folder is made
    measured = old_tasks(trained, requested, arguments.old_root)
    if not arguments.skip_forgetting:
        task_roots(measured)
    task_roots(requested)
    run_dir = new_run(requested, arguments.name)
    write_package(folder, run_dir.folder / "base")
    config = extension_config(trained, requested, run_dir.folder / "base", freeze, arguments.rehearse)
    with cluster(config.train.workers, config.train.cpus_per_worker):
        before = {} if arguments.skip_forgetting else _evaluated("before", old, measured, folder)
        result = cotrain(config, run_dir)
        print_results(result)
        new, _, state = load_trained(Path(result["checkpoint"]))
        model, whole, changed = assemble(old, trained, new, config)
        write_extended(run_dir.folder / "extended", model, whole, document, state)
        measured = measured.model_copy(update={"model": whole.model})
        after = {} if arguments.skip_forgetting else _evaluated("after", model, measured, folder)
    was = (document.get("evaluations") or [{"tasks": {}}])[-1]["tasks"]
    add_results(run_dir.folder / "extended", after or ({} if changed else was))
    report = {
        "model": arguments.model, "base": str(folder), "extended": str(run_dir.folder / "extended"),
        "frozen": list(config.optim.frozen), "changed_parameters": changed, "new": result["tasks"],
        "old": forgetting(before, after),
    }  # fmt: skip
    run_dir.write("forgetting.json", report)
    print_forgetting(report)
    return report


def old_tasks(trained: RunConfig, requested: RunConfig, root: Path | None) -> RunConfig:
    """The old tasks on their own data, stored where the new run is."""
    data = trained.data
    if root is not None:
        data = data.model_copy(update={"root": str(root.expanduser().absolute())})
    return trained.model_copy(update={"data": data, "storage": requested.storage})


def _evaluated(when: str, model: Any, config: RunConfig, folder: Path) -> dict[str, dict[str, Any]]:
    from pipelines.batch import evaluate_checkpoint  # start-up: Ray

    console.print(f"evaluating the old tasks, {when} ...")
    return evaluate_checkpoint(model, config, folder)


def forgetting(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Each old task's metric before and after, and the change (negative: forgotten)."""
    rows = {}
    for name, was in before.items():
        one, other = was.get("value"), after[name].get("value")
        change = None if one is None or other is None else other - one
        rows[name] = {
            "metric": was["metric"], "examples": was["examples"], "before": one, "after": other, "change": change,
        }  # fmt: skip
    return rows


def print_forgetting(report: Mapping[str, Any]) -> None:
    """The table of the old tasks, and where the model lies."""
    if report["old"]:
        table = Table(title="old tasks, before and after")
        for column in ("task", "metric", "before", "after", "change", "examples"):
            table.add_column(column, justify="left" if column in ("task", "metric") else "right")
        for name, row in report["old"].items():
            figures = ["-" if row[key] is None else f"{row[key]:.3f}" for key in ("before", "after")]
            change = "-" if row["change"] is None else f"{row['change']:+.3f}"
            table.add_row(name, row["metric"], *figures, change, str(row["examples"]))
        console.print(table)
    changed = len(report["changed_parameters"])
    words = f"{changed} old parameter tensors changed" if changed else "no old parameter changed, to the last bit"
    console.print(f"frozen      {', '.join(report['frozen']) or 'nothing'}: {words}")
    console.print(f"extended    {report['extended']}")
    console.print(f"next        {command_line.tool('polyvit')} predict {report['extended']} FILE")


if __name__ == "__main__":
    sys.exit(main())
