"""A first config for one's own data: `polyvit init FOLDER ...` looks at folders and writes a commented YAML file.

    polyvit init FOLDER ... [--out mine.yaml] [--json FILE]

A FOLDER is a data set or holds several. Layout, modality, classes and splits are seen from its files
(`polyvit/quickstart/recognise.py`); what is not recognised is said, and why. An existing file is left as it is.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.runtime import command_line, console


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit init`."""
    parser = command_line.parser("init", "Look at folders of data and write a config for them.")
    parser.add_argument("folders", metavar="FOLDER", nargs="+", help="a data set, or a folder that holds several")
    parser.add_argument("--out", type=Path, default=Path("mine.yaml"), help="the config to write (mine.yaml)")
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    from polyvit.quickstart import init, summary  # start-up: torch, where the arguments have no mistake

    first = init(*arguments.folders, out=arguments.out)
    for name, guess in first.tasks.items():
        console.print(f"{name:<16}{summary(guess)}")
    for sentence in first.unknown:
        console.print(f"not recognised  {sentence}", style="yellow")
    polyvit = command_line.tool("polyvit")
    console.print(f"written         {first.path}")
    console.print(f"next            {polyvit} plan {first.path}")
    tasks = {
        name: {
            "root": str(guess.root), "modality": guess.modality, "layout": guess.layout,
            "num_classes": guess.num_classes, "counts": guess.counts, "options": guess.options,
        }
        for name, guess in first.tasks.items()
    }  # fmt: skip
    return {"config": str(first.path), "tasks": tasks, "not_recognised": list(first.unknown)}


if __name__ == "__main__":
    sys.exit(main())
