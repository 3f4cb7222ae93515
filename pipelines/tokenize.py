"""Ray Data: decode the examples of a config's tasks once, without augmentation, into Parquet files of tensors.

polyvit tokenize CONFIG --out DIR|URL [key=value ...] [--only TASK] [--per-file N]

Layout `tokens` reads them: training without augmentation, evaluation and probing then decode nothing, with the
same numbers to the bit. One Ray task a file, on any CPU of the cluster. A file that is there and of the same
examples and options is not written again: a run that was stopped goes on where it was.
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.batch import overrides_of_copy, write_files
from pipelines.feed import make_decoder
from pipelines.index import Indexes, build_indexes, task_roots
from pipelines.runtime import cluster, command_line, console, tried_before
from polyvit.config import RunConfig, load_config
from polyvit.data.loading import Decoder, check_readable
from polyvit.data.shards import TokenReport, TokenSpec, token_specs, write_text, write_tokens
from polyvit.errors import UserError
from polyvit.storage import Location, as_location, under

SHOWN = 5
"""Examples that cannot be decoded which are printed for each task; all of them are in its quarantine.json."""


def write_all(
    config: RunConfig, indexes: Indexes, out: Location, per_file: int | None = None
) -> dict[str, list[TokenReport]]:
    """Write every file of every task, as Ray tasks.

    config: of the tasks. indexes: their examples. out: folder or URL; each task gets a subfolder. per_file:
    examples of a file, None for the default. Raises UserError with the problems of all files.
    """

    def specs_of(name: str) -> list[TokenSpec]:
        task = config.tasks[name]
        return token_specs(indexes.scans[name], task, config.model.input(task.modality), per_file)

    write = partial(_write, make_decoder(config, indexes))
    return write_files(config, indexes, out, specs_of, write, ("file", ".parquet"))


def _write(decoder: Decoder, name: str, spec: TokenSpec, out: Location) -> TokenReport:
    return write_tokens(spec, name, decoder, out, careful=tried_before())


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit tokenize`."""
    parser = command_line.parser("tokenize", "Decode tasks once, into Parquet files of tensors.")
    command_line.add_config(parser)
    parser.add_argument(
        "--out", required=True, metavar="DIR|URL", help="folder or URL; each task gets a subfolder"
    )
    parser.add_argument("--per-file", type=int, metavar="N", help="examples (default: about 256 MB of tensors)")
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.per_file is not None and not 1 <= arguments.per_file <= 1 << 20:
        raise UserError(f"--per-file {arguments.per_file}: allowed are 1 to {1 << 20}")
    config = load_config(arguments.config, arguments.overrides, arguments.only)
    check_readable(config)
    if decoded := [name for name, task in config.tasks.items() if task.layout == "tokens"]:
        raise UserError(f"tasks.{decoded[0]}.layout=tokens: its examples are decoded already")
    task_roots(config)  # before anything is started
    out = as_location(arguments.out)
    console.print("starting Ray ...")
    with tempfile.TemporaryDirectory(prefix="polyvit-tokenize-") as folder, cluster():
        indexes = build_indexes(config, Path(folder), train=False)
        reports = write_all(config, indexes, out, arguments.per_file)
    tasks = {name: _task_document(task_reports) for name, task_reports in reports.items()}
    for name, document in tasks.items():
        text = json.dumps(document["quarantine"], indent=1) + "\n"
        write_text("quarantine.json", text, as_location(under(str(out), name)))
    overrides = overrides_of_copy(config, out, "tokens", "null")
    _print(tasks, arguments, overrides)
    return {"out": str(out), "tasks": tasks, "overrides": overrides}


def _task_document(reports: Sequence[TokenReport]) -> dict[str, Any]:
    return {
        "files": {f"{each.name}.parquet": {"examples": each.examples, "bytes": each.bytes} for each in reports},
        "written": sum(report.written for report in reports),
        "examples": sum(report.examples for report in reports),
        "bytes": sum(report.bytes for report in reports),
        "quarantine": [entry for report in reports for entry in report.bad],
    }


def _print(tasks: Mapping[str, dict[str, Any]], arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    table = Table()
    for column in ("task", "files", "written now", "examples", "MB", "left out"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for name, entry in tasks.items():
        cells = [len(entry["files"]), entry["written"], entry["examples"], round(entry["bytes"] / 1e6, 1)]
        table.add_row(name, *map(str, cells), str(len(entry["quarantine"])))
    console.print(table)
    for name, entry in tasks.items():
        for bad in entry["quarantine"][:SHOWN]:
            console.print(f"{name}: {bad['key']}: {bad['reason']} (left out)")
        if entry["quarantine"]:
            console.print(f"{name}: the plan on the tokens is another than on the originals")
    shown = shlex.join([str(arguments.config), *overrides])
    console.print(f"next        {command_line.tool('polyvit')} cotrain {shown}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
