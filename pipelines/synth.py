"""Write the nine datasets at toy size, in their true on-disk layouts.

polyvit synth DIR [--train N] [--evaluation N] [--classes N] [--side PIXELS] [--seed N]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from pipelines.runtime import command_line, console
from polyvit.errors import UserError
from polyvit.synthetic import write_synthetic

TRAIN, EVALUATION = 96, 48


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit synth`."""
    parser = command_line.parser("synth", "Write the nine datasets at toy size, in their true on-disk layouts.")
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--task", action="append", metavar="TASK", help="only this one (repeatable)")
    parser.add_argument("--train", type=int, default=TRAIN, help="training examples a task (default %(default)s)")
    parser.add_argument(
        "--evaluation", type=int, default=EVALUATION, help="held-out examples a task (default %(default)s)"
    )
    parser.add_argument("--classes", type=int, default=4, help="classes a task (default %(default)s)")
    parser.add_argument("--side", type=int, default=64, help="pixels of pictures and clips (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    for name in ("train", "evaluation", "classes", "side"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: give a number of at least 1")
    bar = Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), console=console
    )
    with bar:
        rows: dict[str, TaskID] = {}

        def show(task: str, done: int, total: int) -> None:
            if task not in rows:
                rows[task] = bar.add_task(task, total=total)
            bar.update(rows[task], completed=done)

        counts = write_synthetic(
            arguments.folder, seed=arguments.seed, tasks=arguments.task, classes=arguments.classes,
            train=arguments.train, evaluation=arguments.evaluation, side=arguments.side, progress=show,
        )  # fmt: skip
    total = sum(sum(splits.values()) for splits in counts.values())
    console.print(f"{total} examples of {len(counts)} tasks in {arguments.folder}")
    console.print(f"next        {command_line.tool('polyvit')} cotrain demo data.root={arguments.folder}")
    return {"folder": str(arguments.folder.absolute()), "tasks": counts}


if __name__ == "__main__":
    sys.exit(main())
