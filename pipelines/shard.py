"""Ray Data: write the examples of a config's tasks as WebDataset tar shards with their index.

polyvit shard CONFIG --out DIR|URL [key=value ...] [--only TASK] [--size 256] [--quality 90] [--sample-rate 16000]
                             [--per-shard N]

One Ray task a shard, on any CPU of the cluster. A shard that is there, complete and of the same examples and
options, is not written again: a run that was stopped goes on where it was.
"""

import argparse
import json
import pickle
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.data
from rich.table import Table

from pipelines.index import Indexes, build_indexes, task_roots
from pipelines.runtime import cluster, command_line, console
from polyvit.config import RunConfig, load_config
from polyvit.data.loading import check_readable
from polyvit.data.shards import ShardOptions, ShardReport, shard_specs, write_shard, write_text
from polyvit.errors import UserError
from polyvit.storage import Location, StoreUnavailable, as_location, is_url, under

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
    locations = {name: as_location(under(str(out), name)) for name in config.tasks}
    items = []
    for name, task in config.tasks.items():
        if not is_url(locations[name]):
            Path(locations[name]).mkdir(parents=True, exist_ok=True)
        write_text("classes.txt", "".join(f"{text}\n" for text in indexes.scans[name].classes), locations[name])
        specs = shard_specs(indexes.scans[name], task.modality, options, per_shard)
        items += [{"task": name, "spec": pickle.dumps(spec)} for spec in specs]
    classes = {name: scan.classes for name, scan in indexes.scans.items()}
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
        _write_row,  # type: ignore[arg-type]
        fn_args=(config, classes, dict(indexes.roots), locations, options),
        num_cpus=config.data.decode_cpus,
        label_selector=dict(config.data.decode_node_labels) or None,
    )
    done = dataset.take_all()
    if problems := sorted({row["error"] for row in done if row["error"]}):
        raise UserError("not every shard was written; the same command goes on where it stopped:", problems)
    reports: dict[str, list[ShardReport]] = {name: [] for name in config.tasks}
    for row in done:
        reports[row["task"]].append(pickle.loads(row["report"]))
    return {name: sorted(task_reports, key=lambda report: report.name) for name, task_reports in reports.items()}


def _write_row(
    row: dict[str, Any],
    config: RunConfig,
    classes: Mapping[str, Sequence[str]],
    roots: Mapping[str, Location],
    locations: Mapping[str, Location],
    options: ShardOptions,
) -> dict[str, Any]:
    name, spec = row["task"], pickle.loads(row["spec"])
    try:
        report = write_shard(
            spec, config.tasks[name].modality, classes[name], roots[name], locations[name], options
        )
    except (StoreUnavailable, OSError, UserError) as error:
        return {"task": name, "report": b"", "error": f"tasks.{name}: {spec.name}.tar: {error}"}
    return {"task": name, "report": pickle.dumps(report), "error": ""}


def next_overrides(config: RunConfig, out: Location) -> list[str]:
    """The overrides with which the same config trains on the shards."""
    overrides = [f"data.root={out}"]
    for name, task in config.tasks.items():
        overrides.append(f"tasks.{name}.layout=webdataset")
        if task.root is not None:
            overrides.append(f"tasks.{name}.root=null")
        if task.options:
            overrides.append(f"tasks.{name}.options={{}}")
        if task.classes is not None:
            overrides.append(f"tasks.{name}.classes=classes.txt")
    return overrides


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
