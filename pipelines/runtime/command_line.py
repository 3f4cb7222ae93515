"""What every command shares: `--json FILE`, exit statuses, one message for a user's mistake."""

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines.runtime.signals import Stopped
from polyvit.errors import UserError

# A log file has no width of its own; the result table needs about 130 columns.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 132)
_CONFIG_HELP = "a recipe's name or a YAML file"


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """A command's parser, with the flag that all commands have."""
    made = argparse.ArgumentParser(prog=f"polyvit {name}", description=description)
    made.add_argument("--json", metavar="FILE", type=Path, help="write there, as data, what was printed")
    return made


def add_config(made: argparse.ArgumentParser, optional: bool = False) -> None:
    """CONFIG [key=value ...] [--only TASK]."""
    made.add_argument("config", metavar="CONFIG", nargs="?" if optional else None, help=_CONFIG_HELP)
    made.add_argument("overrides", metavar="key=value", nargs="*", help="keys of the config to change")
    made.add_argument("--only", action="append", default=[], metavar="TASK", help="only this task (repeatable)")


def tool(name: str) -> str:
    """How the user can call a command of this environment: by name if it is on the path, else by its file."""
    here = Path(sys.executable).parent / name
    if shutil.which(name) or not here.exists():
        return name
    return os.path.relpath(here) if here.is_relative_to(Path.cwd()) else str(here)


def run(
    made: argparse.ArgumentParser,
    body: Callable[[argparse.Namespace], dict[str, Any]],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse, run, write `--json`. Returns 0 done, 2 the user's mistake; anything else is a traceback (1)."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    arguments = made.parse_intermixed_args(argv)
    if arguments.json and not arguments.json.absolute().parent.is_dir():  # now, not after hours of training
        print(f"error: --json {arguments.json}: its folder does not exist; make it first", file=sys.stderr)
        return 2
    try:
        document = body(arguments)
        status = 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        document = {"error": error.message, "problems": list(error.problems)}
        status = 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        document, status = stopped.document, stopped.status
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    if arguments.json:
        try:
            arguments.json.write_text(json.dumps(document, indent=1, default=str) + "\n")
        except OSError as error:
            print(f"error: --json {arguments.json}: {error}; give a path that can be written", file=sys.stderr)
            return 2
    return status
