"""What every command shares: arguments, `--json FILE`, exit statuses, one message for a user's mistake.

In: a command's parser, its body and its arguments. Out: the exit status.
"""

import argparse
import contextlib
import errno
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines.runtime.examples import epilog
from pipelines.runtime.signals import Stopped
from polyvit.errors import UserError

# A log file has no width of its own; the result table needs about 130 columns. Markup and emoji codes are off:
# file names such as `take[/2].wav` or `:cat:.jpg` are shown as they are. Colour is a `style`, or a rich `Text`.
console = Console(
    highlight=False, soft_wrap=True, markup=False, emoji=False, width=None if sys.stdout.isatty() else 132
)
_CONFIG_HELP = "a recipe's name or a YAML file"


LEVELS = ("debug", "info", "warning", "error")


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """A command's parser, with the flags that all commands have, and its examples."""
    command_parser = argparse.ArgumentParser(
        prog=f"polyvit {name}", description=description, epilog=epilog(name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command_parser.add_argument("--json", metavar="FILE", type=Path, help="write the results as JSON to this file")
    how_much = command_parser.add_mutually_exclusive_group()
    how_much.add_argument("--quiet", action="store_true", help="print errors, and what was asked for, only")
    how_much.add_argument("--verbose", action="store_true", help="log what is done (as --log-level info)")
    how_much.add_argument(
        "--log-level", choices=LEVELS, metavar="LEVEL", help=f"{', '.join(LEVELS)} (default: warning)"
    )
    return command_parser


@contextlib.contextmanager
def _output(arguments: argparse.Namespace) -> Iterator[None]:
    """As much of it as the flags say."""
    level = arguments.log_level or ("error" if arguments.quiet else "info" if arguments.verbose else "warning")
    loggers = [logging.getLogger(name) for name in ("polyvit", "pipelines")]
    before = console.quiet, [logger.level for logger in loggers]
    console.quiet = arguments.quiet
    for logger in loggers:
        logger.setLevel(level.upper())
    try:
        yield
    finally:
        console.quiet = before[0]
        for logger, old in zip(loggers, before[1], strict=True):
            logger.setLevel(old)


def add_config(command_parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """Add CONFIG [key=value ...] [--only TASK] to a command's arguments."""
    command_parser.add_argument("config", metavar="CONFIG", nargs="?" if optional else None, help=_CONFIG_HELP)
    command_parser.add_argument("overrides", metavar="key=value", nargs="*", help="keys of the config to change")
    command_parser.add_argument(
        "--only", action="append", default=[], metavar="TASK", help="only this task (repeatable)"
    )


def positive_int(text: str) -> int:
    """The type of an argument that is a number of things, 1 or more."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number; give 1 or more")
    return int(text)


def tool(name: str) -> str:
    """How the user can call a command of this environment: by name if it is on the path, else by its file."""
    path = Path(sys.executable).parent / name
    if shutil.which(name) or not path.exists():
        return name
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def run(
    command_parser: argparse.ArgumentParser,
    body: Callable[[argparse.Namespace], dict[str, Any]],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the arguments, run the command's body, write `--json`.

    body: gets the parsed arguments; returns what it printed, as data. argv: None for those of the process.

    Returns the exit status: 0 done, 2 the user's mistake, 128 + a signal's number. Anything else is a traceback,
    which Python turns into 1.
    """
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete  # for a TAB in a shell only

        argcomplete.autocomplete(command_parser)  # ends the process
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    arguments = command_parser.parse_intermixed_args(argv)
    if arguments.json and not arguments.json.absolute().parent.is_dir():  # now, not after hours of training
        print(f"error: --json {arguments.json}: its folder does not exist; make it first", file=sys.stderr)
        return 2
    try:
        with _output(arguments):
            document = body(arguments)
        status = 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        document = {"error": error.message, "problems": list(error.problems)}
        status = 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        document, status = stopped.document, stopped.status
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        name = os.fsdecode(error.filename or "?")
        print(f"error: {name[:60]}...: {len(name)} letters are no path; give the path of a file", file=sys.stderr)
        document, status = {"error": f"{name}: no path", "problems": []}, 2
    except KeyboardInterrupt as interrupt:
        print("stopped", file=sys.stderr)
        return 128 + getattr(interrupt, "signum", signal.SIGINT)
    if arguments.json:
        try:
            arguments.json.write_text(json.dumps(document, indent=1, default=str) + "\n")
        except OSError as error:
            print(f"error: --json {arguments.json}: {error}; give a path that can be written", file=sys.stderr)
            return 2
    return status
