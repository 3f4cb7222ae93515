"""What can be set in a config.

polyvit config reference [--json FILE]        every key as Markdown: the text of docs/reference/config.md
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipelines.runtime import command_line
from polyvit.config import config_sections, reference_markdown


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit config`."""
    parser = command_line.parser("config", "What can be set in a config.")
    parser.add_argument(
        "what",
        metavar="reference",
        choices=["reference"],
        help="every key, its type, default and meaning, as Markdown",
    )
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    sys.stdout.write(reference_markdown())
    return {"sections": [asdict(section) for section in config_sections()]}


if __name__ == "__main__":
    sys.exit(main())
