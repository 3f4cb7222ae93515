"""Write datasets at toy size, in their true on-disk layouts: the nine tasks, or videos with their sound.

polyvit synth DIR [--av] [--train N] [--evaluation N] [--classes N] [--side PIXELS] [--seed N]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from pipelines.runtime import command_line, console
from polyvit.errors import UserError
from polyvit.synthetic import AV_SPLITS, write_synthetic

TRAIN, EVALUATION = 96, 48
SIDE = 64
AV_TRAIN, AV_EVALUATION, AV_SIDE = 48, 24, 48
"""With --av: a video of six seconds takes as long as ten pictures."""


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit synth`."""
    parser = command_line.parser("synth", "Write datasets at toy size, in their true on-disk layouts.")
    parser.add_argument(
        "folder", metavar="DIR", type=Path, help="the folder to write; it holds one for each dataset"
    )
    parser.add_argument("--task", action="append", metavar="TASK", help="only this one (repeatable)")
    parser.add_argument(
        "--av",
        action="store_true",
        help=f"videos with their sound and what is trained from them in place of the nine: {', '.join(AV_SPLITS)}",
    )
    parser.add_argument("--train", type=int, help=f"training examples a task (default {TRAIN}, --av {AV_TRAIN})")
    parser.add_argument(
        "--evaluation", type=int, help=f"held-out examples a task (default {EVALUATION}, --av {AV_EVALUATION})"
    )
    parser.add_argument("--classes", type=int, default=4, help="classes a task (default %(default)s)")
    parser.add_argument("--side", type=int, help=f"pixels of pictures and clips (default {SIDE}, --av {AV_SIDE})")
    parser.add_argument("--seed", type=int, default=0, help="of every random draw (default: 0)")
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    numbers = (AV_TRAIN, AV_EVALUATION, AV_SIDE) if arguments.av else (TRAIN, EVALUATION, SIDE)
    for name, number in zip(("train", "evaluation", "side"), numbers, strict=True):
        if getattr(arguments, name) is None:
            setattr(arguments, name, number)
    if arguments.av and not arguments.task:
        arguments.task = list(AV_SPLITS)
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
    recipe = "demo-av" if arguments.av else "demo"
    console.print(f"next        {command_line.tool('polyvit')} cotrain {recipe} data.root={arguments.folder}")
    return {"folder": str(arguments.folder.absolute()), "tasks": counts}


if __name__ == "__main__":
    sys.exit(main())
