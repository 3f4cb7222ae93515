"""List the recipes that ship: name, tasks, steps, source.

polyvit recipes [--json FILE]
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from pipelines.runtime import command_line, console
from polyvit.config import load_config, recipe_names


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit recipes`."""
    return command_line.run(command_line.parser("recipes", "List the recipes that ship."), _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    table = Table()
    for column in ("recipe", "tasks", "steps", "L_adapt", "source"):
        table.add_column(column)
    recipes = {}
    for name in recipe_names():
        config = load_config(name)
        l_adapt = getattr(config.model, "l_adapt", None)
        steps = config.schedule.steps or sum(task.steps for task in config.tasks.values())
        recipes[name] = {
            "tasks": list(config.tasks), "steps": steps, "model": config.model.kind, "l_adapt": l_adapt,
            "source": config.source,
        }  # fmt: skip
        table.add_row(
            name, str(len(config.tasks)), f"{steps:,}", "-" if l_adapt is None else str(l_adapt), config.source
        )
    console.print(table)
    return {"recipes": recipes}


if __name__ == "__main__":
    sys.exit(main())
