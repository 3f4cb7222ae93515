"""Ray Data: write the examples of a config's tasks as WebDataset tar shards with their index.

polyvit shard CONFIG --out DIR|URL [key=value ...] [--only TASK] [--size 256] [--quality 90] [--sample-rate 16000]
                             [--per-shard N]

One Ray task a shard, on any CPU of the cluster. A shard that is there, complete and of the same examples and
options, is not written again: a run that was stopped goes on where it was.
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.batch import overrides_of_copy, write_files
from pipelines.index import Indexes, build_indexes, task_roots
from pipelines.runtime import cluster, command_line, console
from polyvit.config import RunConfig, load_config
from polyvit.data.loading import check_readable
from polyvit.data.shards import ShardOptions, ShardReport, ShardSpec, shard_specs, write_shard, write_text
from polyvit.errors import UserError
from polyvit.storage import Location, as_location, under

SHOWN = 5
"""Examples that cannot be used which are printed for each task; all of them are in its quarantine.json."""


def write_shards(
    config: RunConfig, indexes: Indexes, out: Location, options: ShardOptions, per_shard: int | None
) -> dict[str, list[ShardReport]]:
    """Write every shard of every task, as Ray tasks.

    config: of the tasks. indexes: their examples. out: folder or URL; each task gets a subfolder. options: how
    media are re-encoded. per_shard: examples of a shard, None for the default. Raises UserError with the problems
    of all shards.
    """
    classes = {name: scan.classes for name, scan in indexes.scans.items()}
    write = partial(_write, config, classes, dict(indexes.roots), options)

    def specs_of(name: str) -> list[ShardSpec]:
        return shard_specs(indexes.scans[name], config.tasks[name].modality, options, per_shard)

    return write_files(config, indexes, out, specs_of, write, ("shard", ".tar"))


def _write(
    config: RunConfig,
    classes: Mapping[str, Sequence[str]],
    roots: Mapping[str, Location],
    options: ShardOptions,
    name: str,
    spec: ShardSpec,
    out: Location,
) -> ShardReport:
    return write_shard(spec, config.tasks[name].modality, classes[name], roots[name], out, options)


def next_overrides(config: RunConfig, out: Location) -> list[str]:
    """The overrides with which the same config trains on the shards."""
    return overrides_of_copy(config, out, "webdataset", "classes.txt")


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit shard`."""
    parser = command_line.parser("shard", "Write tasks as WebDataset tar shards with their index.")
    command_line.add_config(parser)
    parser.add_argument(
        "--out", required=True, metavar="DIR|URL", help="folder or URL; each task gets a subfolder"
    )
    parser.add_argument(
        "--size",
        type=int,
        metavar="PX",
        help="short side of larger pictures (JPEG 4:2:0) and clips (H.264, key frames every 32 frames)",
    )
    parser.add_argument("--quality", type=int, default=90, help="of these JPEGs (default %(default)s)")
    parser.add_argument("--sample-rate", type=int, metavar="HZ", help="recordings become mono FLACs of this rate")
    parser.add_argument(
        "--per-shard", type=int, metavar="N", help="examples (default 2000 image, 1000 audio, 200 video)"
    )
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    for name, low, high in (
        ("size", 16, 1 << 14),
        ("quality", 1, 100),
        ("sample_rate", 4000, 192_000),
        ("per_shard", 1, 1 << 20),
    ):
        value = getattr(arguments, name)
        if value is not None and not low <= value <= high:
            raise UserError(f"--{name.replace('_', '-')} {value}: allowed are {low} to {high}")
    config = load_config(arguments.config, arguments.overrides, arguments.only)
    check_readable(config)
    task_roots(config)  # before anything is started
    out, options = (
        as_location(arguments.out),
        ShardOptions(arguments.size, arguments.quality, arguments.sample_rate),
    )
    console.print("starting Ray ...")
    with tempfile.TemporaryDirectory(prefix="polyvit-shard-") as folder, cluster():
        indexes = build_indexes(config, Path(folder), train=False)
        reports = write_shards(config, indexes, out, options, arguments.per_shard)
    tasks = {name: _task_document(task_reports) for name, task_reports in reports.items()}
    for name, document in tasks.items():
        described = {"shards": document["shards"], "options": asdict(options)}
        location = as_location(under(str(out), name))
        write_text("shards.json", json.dumps(described, indent=1) + "\n", location)
        write_text("quarantine.json", json.dumps(document["quarantine"], indent=1) + "\n", location)
    overrides = next_overrides(config, out)
    _print(tasks, arguments, overrides)
    return {"out": str(out), "tasks": tasks, "overrides": overrides}


def _task_document(reports: Sequence[ShardReport]) -> dict[str, Any]:
    bad = [entry for report in reports for entry in report.bad]
    return {
        "shards": {f"{report.name}.tar": {"samples": report.samples, "bytes": report.bytes} for report in reports},
        "written": sum(report.written for report in reports),
        "samples": sum(report.samples for report in reports),
        "bytes": sum(report.bytes for report in reports),
        "left_out": sum(not entry["kept"] for entry in bad),
        "quarantine": bad,
    }


def _print(tasks: Mapping[str, dict[str, Any]], arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    table = Table()
    for column in ("task", "shards", "written now", "samples", "MB", "broken, kept", "left out"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for name, entry in tasks.items():
        kept = len(entry["quarantine"]) - entry["left_out"]
        cells = [len(entry["shards"]), entry["written"], entry["samples"], round(entry["bytes"] / 1e6, 1)]
        table.add_row(name, *map(str, cells), str(kept), str(entry["left_out"]))
    console.print(table)
    for name, entry in tasks.items():
        for bad in entry["quarantine"][:SHOWN]:
            console.print(f"{name}: {bad['key']}: {bad['reason']}{'' if bad['kept'] else ' (left out)'}")
        if entry["left_out"]:
            console.print(
                f"{name}: {entry['left_out']} examples have no bytes and are in no shard: the plan on the shards"
                " is another than on the originals"
            )
    shown = shlex.join([str(arguments.config), *overrides])
    console.print(f"next        {command_line.tool('polyvit')} cotrain {shown}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
