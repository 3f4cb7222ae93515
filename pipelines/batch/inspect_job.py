"""Ray Data: examine the examples of every task, and draw contact sheets of some; what `polyvit inspect` does.

    examples --[Ray tasks on CPUs: read, hash; decode in a child process]--> `ExampleReport`s
    a few sound examples a task --[Ray tasks: augment, patchify, draw]--> PNG

In: a config and the indexes of its tasks. A row is a chunk of examples of one task, pickled for this job alone. A
file that crashes or hangs a decoder ends a child process only (`examine_worker.py`) and is named.
"""

import hashlib
import io
import itertools
import pickle
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipelines.index import Indexes
from pipelines.runtime import console
from polyvit.config import Modality, RunConfig
from polyvit.data.index import SPLITS, Example, Scan
from polyvit.data.loading import load
from polyvit.data.transforms import example_rng
from polyvit.errors import BadMedia
from polyvit.reports.inspect import (
    ROWS,
    Examiner,
    ExampleReport,
    MediaInfo,
    Sample,
    TaskReport,
    draw_sheet,
    sample_positions,
)

HASHED = 100_000
"""A task of up to so many examples is read and hashed whole, to find duplicates; of a larger one, the sample."""
CHUNK = 16
"""Examples of one row that are decoded; 64 times as many where they are only hashed."""
MOST_BLOCKS = 400
"""Ray tasks that the rows are divided into, at most."""
Chunk = tuple[str, list[tuple[bool, Example]]]
"""(task, [(whether to decode it too, example)])"""


# ----------------------------------------------------------------------------------------------- reading


def chunks(config: RunConfig, indexes: Indexes, sample: int | None) -> Iterator[Chunk]:
    """The examples to read, in chunks of one task. sample: examples a task to decode; None: all of them."""
    for name, scan in indexes.scans.items():
        splits = {split: scan.split(split) for split in SPLITS}
        sizes: dict[str, int] = {split: len(in_split) for split, in_split in splits.items()}
        drawn = sample_positions(sizes, sample, config.seed, name)
        whole = sum(sizes.values()) <= HASHED
        wanted: list[tuple[bool, Example]] = []
        for split, in_split in splits.items():
            decoded = set(drawn[split])
            positions = range(len(in_split)) if whole else drawn[split]
            wanted += [(position in decoded, in_split[position]) for position in positions]  # type: ignore[misc]
        # Rows to decode come first, in short rows: decoding costs a hundred times as much as hashing.
        to_decode, to_hash = [item for item in wanted if item[0]], [item for item in wanted if not item[0]]
        for size, items in ((CHUNK, to_decode), (64 * CHUNK, to_hash)):
            for start in range(0, len(items), size):
                yield name, items[start : start + size]


def examine_all(
    config: RunConfig, indexes: Indexes, sample: int | None, seconds: float
) -> dict[str, list[ExampleReport]]:
    """Read, hash and decode on the cluster. sample: examples a task to decode; None: all of them."""
    rows: list[dict[str, Any]] = [
        {"chunk": pickle.dumps(chunk), "count": len(chunk[1])} for chunk in chunks(config, indexes, sample)
    ]
    dataset = ray.data.from_items(rows, override_num_blocks=max(1, min(len(rows), MOST_BLOCKS))).map_batches(
        examine_chunk,  # type: ignore[arg-type]
        batch_size=1,
        batch_format="numpy",
        fn_args=(config.model_dump_json(), dict(indexes.roots), seconds),
        num_cpus=config.data.decode_cpus,
        label_selector=dict(config.data.decode_node_labels) or None,
    )
    dataset.set_name("inspect_files")
    reports: dict[str, list[ExampleReport]] = {name: [] for name in config.tasks}
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    total = sum(row["count"] for row in rows)
    console.print(f"reading {total:,} examples ...")
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        row = bar.add_task("examples", total=total)
        for batch in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):
            for packed in batch["examined"]:
                name, examined = pickle.loads(packed)
                reports[name] += examined
                bar.advance(row, len(examined))
    return reports


def examine_chunk(
    batch: dict[str, np.ndarray], config: str, roots: Mapping[str, Any], seconds: float
) -> dict[str, np.ndarray]:
    """One row in, one row out: (task, [ExampleReport]), pickled."""
    name, items = pickle.loads(batch["chunk"][0])
    examined = [_examine(name, example, decode, config, roots[name], seconds) for decode, example in items]
    return {"examined": np.array([pickle.dumps((name, examined))], dtype=object)}


def _examine(name: str, example: Example, decode: bool, config: str, root: Any, seconds: float) -> ExampleReport:
    known = (example.key, example.path, example.split, tuple(example.labels))
    try:
        media = load(example, root)
    except BadMedia as error:
        return ExampleReport(*known, info=MediaInfo(reason=error.reason))
    digest = hashlib.blake2b(media if isinstance(media, bytes) else media.tobytes(), digest_size=16)
    if example.end >= 0 or example.start > 0:  # several segments of one file are no duplicates
        digest.update(f"{example.start} {example.end}".encode())
    if not decode:
        return ExampleReport(*known, digest.digest())
    examiner = _examiner(config, name, seconds)
    return ExampleReport(*known, digest.digest(), examiner.examine(media, name, example.start, example.end))


def _examiner(config: str, task: str, seconds: float) -> Examiner:
    return _modality_examiner(config, _config(config).tasks[task].modality, seconds)


@lru_cache(maxsize=3)
def _modality_examiner(config: str, modality: Modality, seconds: float) -> Examiner:
    """One a modality for the life of a Ray worker process."""
    return Examiner(_config(config), modality, seconds)


@lru_cache(maxsize=1)
def _config(config: str) -> RunConfig:
    return RunConfig.model_validate_json(config)


# ---------------------------------------------------------------------------------------- contact sheets


def choose_examples(report: TaskReport, seed: int, suspects: bool = False) -> list[ExampleReport]:
    """Up to ROWS examples for a contact sheet, in the order of their labels.

    Sound ones of many classes, of train where it has any; `suspects`: those that show or sound nothing.
    """
    usable = report.decoded
    odd = [e for e in usable if e.info and (e.info.silent or e.info.flat or e.info.still)]
    if suspects:
        return sorted(odd[:ROWS], key=lambda example: example.labels)
    sound = [example for example in usable if example not in odd] or usable
    sound = [example for example in sound if example.split == "train"] or sound
    order = example_rng(seed, report.name, 0, "inspect sheet").permutation(len(sound))
    first: dict[tuple[int, ...], ExampleReport] = {}
    rest = []
    for i in order:
        if sound[i].labels in first:
            rest.append(sound[i])
        else:
            first[sound[i].labels] = sound[i]
    return sorted([*first.values(), *rest][:ROWS], key=lambda example: example.labels)


def draw_sheets(
    config: RunConfig, indexes: Indexes, reports: Mapping[str, TaskReport], out: Path
) -> dict[str, dict[str, str]]:
    """Contact sheets, drawn on the cluster, into `out`. Returns {task: {PNG's name: what it shows}}."""
    rows = []
    for name, report in reports.items():
        for kind, suspects in (("sheet", False), ("suspects", True)):
            if chosen := choose_examples(report, config.seed, suspects):
                examples = _examples(indexes.scans[name], chosen)
                rows.append({"sheet": pickle.dumps((name, kind, examples, report.classes))})
    if not rows:
        return {}
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        draw_row,  # type: ignore[arg-type]
        batch_size=1,
        batch_format="numpy",
        fn_args=(config, dict(indexes.roots)),
        num_cpus=config.data.decode_cpus,
        label_selector=dict(config.data.decode_node_labels) or None,
    )
    dataset.set_name("inspect_sheets")
    drawn: dict[str, dict[str, str]] = {name: {} for name in reports}
    for row in dataset.take_all():
        name, kind, says, png = pickle.loads(row["drawn"])
        if png:
            (out / f"{name}_{kind}.png").write_bytes(png)
            drawn[name][f"{name}_{kind}.png"] = says
    return {name: dict(sorted(sheets.items())) for name, sheets in drawn.items()}


def draw_row(batch: dict[str, np.ndarray], config: RunConfig, roots: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """One sheet: (task, kind, what it shows, PNG), pickled; without PNG where nothing can be drawn."""
    name, kind, examples, classes = pickle.loads(batch["sheet"][0])
    task, samples, target = config.tasks[name], [], io.BytesIO()
    what = f"{name}: silent, of one colour, black or still" if kind == "suspects" else ""
    try:
        for example in examples:
            title = ", ".join(classes[label] for label in example.labels)
            samples.append(Sample(title, example.key, load(example, roots[name]), example.start, example.end))
        says = draw_sheet(name, samples, task, config.model.input(task.modality), target, config.seed, what)
    except BadMedia:
        says = ""
    return {"drawn": np.array([pickle.dumps((name, kind, says, target.getvalue()))], dtype=object)}


def _examples(scan: Scan, reports: Sequence[ExampleReport]) -> list[Example]:
    """The indexed examples behind some reports, in their order."""
    wanted = {example.key for example in reports}
    splits = {example.split for example in reports}
    candidates = itertools.chain.from_iterable(scan.split(split) for split in splits)  # type: ignore[arg-type]
    known = {example.key: example for example in candidates if example.key in wanted}
    return [known[example.key] for example in reports]
