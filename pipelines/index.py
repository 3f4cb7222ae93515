"""Scan every task's folder or bucket into one small Parquet index a task, large ones as Ray tasks in parallel.

polyvit index CONFIG [key=value ...]      python -m pipelines.index CONFIG [key=value ...]

Indexes are kept in `storage`/index-cache, where `plan`, training and the other commands find them: data that have
not changed are not read again (`polyvit.data.layouts.index_cache`).
"""

import argparse
import contextlib
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from pipelines.runtime import command_line, console, notices_while
from polyvit.config import RunConfig, load_config
from polyvit.data.index import Scan, classes_present, examples_of_class, index_hash, read_index, report_of
from polyvit.data.layouts import index_settings, scan_task, split_problems, task_roots
from polyvit.data.loading import example_arrays, load_for_decoding
from polyvit.errors import BadMedia, UserError
from polyvit.storage import Location

HERE_S = 2.0
"""How long the driver begins scans of its own."""
AT_ONCE = 256
"""Shards or headers that one process reads in one go, at most."""
SHOWN_CLASSES = 10
"""Class names that are printed of each task."""


@dataclass(frozen=True)
class Indexes:
    """The index of every task, and what identifies them together.

    roots: where the data of each task lie: a folder, or the URL of an object store. reused: tasks whose index an
    earlier run had made.
    """

    scans: Mapping[str, Scan]
    roots: Mapping[str, Location]
    reused: frozenset[str] = field(default=frozenset(), compare=False)

    def digests(self) -> dict[str, str]:
        """Content hash per task."""
        return {name: index_hash(scan) for name, scan in self.scans.items()}


def index_cache(config: RunConfig) -> Path:
    """Where indexes are kept from run to run."""
    return Path(config.storage).expanduser().absolute() / "index-cache"


def build_indexes(config: RunConfig, folder: Path, train: bool = True, fresh: bool = False) -> Indexes:
    """Scan all tasks, write `folder`/<task>.parquet, and check the splits that a run needs.

    config: of the run. folder: where the indexes go. train: whether the run needs the train split, or the
    evaluation split alone. fresh: also scan data that have not changed.
    Raises UserError with the problems of all tasks at once.
    """
    roots = task_roots(config)
    cache = None if fresh else index_cache(config)
    targets = {name: folder / f"{name}.parquet" for name in config.tasks}
    spread = RayDataSpread(config.data.decode_node_labels)
    arguments = {
        name: (config.tasks[name], roots[name], name, targets[name], cache, spread) for name in config.tasks
    }
    done = _scan_all(arguments, config)
    errors = {name: problem for name, (_, problem) in done.items() if problem}
    scans = {name: read_index(target) for name, target in targets.items() if name not in errors}
    problems = [*errors.values(), *split_problems(config, scans, train), *token_problems(config, scans, roots)]
    if problems:
        raise UserError("the data do not fit the config:", problems)
    for note in class_notes(config, scans):
        console.print(note, markup=False, highlight=False)
    return Indexes(scans, roots, frozenset(name for name, (reused, _) in done.items() if reused))


def of_other_data(config: RunConfig, base: RunConfig) -> RunConfig | None:
    """The config with those tasks alone whose index is not what `base` has for them; None: all are."""

    def reads(one: RunConfig, name: str) -> list[Any]:
        task = one.tasks[name]
        return [*index_settings(task), task.classes, task.root or one.data.root]

    tasks = {
        name: task
        for name, task in config.tasks.items()
        if name not in base.tasks or reads(config, name) != reads(base, name)
    }
    return config.model_copy(update={"tasks": tasks}) if tasks else None


def _scan_all(arguments: Mapping[str, tuple], config: RunConfig) -> dict[str, tuple[bool, str]]:
    """Call `scan_task` for every task. Returns its answers.

    On a single machine this process scans too, for Ray and its processes take seconds to start: only what it has
    not begun after HERE_S is scanned by Ray. On a cluster the data may lie on other nodes only.
    """
    waiting, done = iter([*arguments]), dict[str, tuple[bool, str]]()

    def progress() -> str:
        left = [name for name in arguments if name not in done]
        return f"indexing: {len(done)} of {len(arguments)} tasks done, scanning {left[0] if left else 'none'} ..."

    with notices_while(progress):
        _scan_into(done, arguments, waiting, config)
    return {name: done[name] for name in arguments}


def _scan_into(
    done: dict[str, tuple[bool, str]], arguments: Mapping[str, tuple], waiting: Iterator[str], config: RunConfig
) -> None:
    until = time.monotonic() + (HERE_S if _single_machine() else 0)

    def scan_here() -> None:
        while time.monotonic() < until and (name := next(waiting, None)):
            done[name] = scan_task(*arguments[name])

    with ThreadPoolExecutor(1) as thread:
        here = thread.submit(scan_here)
        with contextlib.suppress(TimeoutError):
            here.result(HERE_S)
        if others := list(waiting):
            done |= _scan_by_ray({name: arguments[name] for name in others}, config)
        here.result()


def _single_machine() -> bool:
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return not os.environ.get("RAY_ADDRESS")
    from pipelines.runtime import living_nodes  # start-up: ray

    return len(living_nodes()) == 1


@contextlib.contextmanager
def _cluster() -> Iterator[None]:
    """A cluster for the block; it is said where one is started."""
    from pipelines.runtime import cluster  # start-up: ray

    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        console.print("there is much to read: starting Ray ...")
    with cluster():
        yield


class RayDataSpread:
    """What is many times the same within one task's scan (shards, headers of videos), as one Ray Data pipeline.

    It asks for no CPUs, as the scan that waits for it may hold the last one. Answers are streamed, in order.
    """

    def __init__(self, node_labels: Mapping[str, str]) -> None:
        self.node_labels = dict(node_labels)

    def __call__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """The answers of `function`."""
        with _cluster():
            import ray.data  # start-up: only large scans need it

            size = max(1, min(AT_ONCE, len(items) // 64))
            rows = [{"items": pickle.dumps(items[i : i + size])} for i in range(0, len(items), size)]

            def read(row: dict[str, Any]) -> dict[str, Any]:
                return {"answers": pickle.dumps([function(item) for item in pickle.loads(row["items"])])}

            read.__name__ = "index: read"
            answers = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                read,
                num_cpus=0,
                compute=ray.data.TaskPoolStrategy(size=int(ray.cluster_resources().get("CPU", 1))),
                label_selector=self.node_labels or None,
            )
            answers.set_name("index_read")
            answers.context.execution_options.preserve_order = True
            for row in answers.iter_rows():
                yield from pickle.loads(row["answers"])


def _scan_by_ray(arguments: Mapping[str, tuple], config: RunConfig) -> dict[str, tuple[bool, str]]:
    import ray

    scan = ray.remote(
        num_cpus=config.data.decode_cpus,
        label_selector=dict(config.data.decode_node_labels) or None,  # type: ignore[arg-type]
    )(scan_task)
    with _cluster():
        begun = [scan.options(name=f"{name}: scan").remote(*each) for name, each in arguments.items()]
        return dict(zip(arguments, ray.get(begun), strict=True))


def load_indexes(config: RunConfig, folder: Path) -> Indexes:
    """Read back what `build_indexes` wrote for a run."""
    return Indexes(
        {name: read_index(folder / f"{name}.parquet") for name in config.tasks}, task_roots(config, False)
    )


def token_problems(config: RunConfig, scans: Mapping[str, Scan], roots: Mapping[str, Location]) -> list[str]:
    """A line for each task of layout `tokens` whose arrays are not those that the model takes."""
    problems = []
    for name, scan in scans.items():
        if config.tasks[name].layout == "tokens":
            spec, example = config.model.input(config.tasks[name].modality), scan.examples[0]
            try:
                example_arrays(load_for_decoding(example, roots[name]), config.tasks[name], spec, None)
            except (UserError, BadMedia) as error:
                problems.append(f"tasks.{name}: {example.key}: {error}")
    return problems


def index_report(indexes: Indexes) -> dict[str, Any]:
    """Per task: counts of splits, classes seen, problems by kind and each of them, content hash."""
    digests = indexes.digests()
    return {
        name: report_of(scan, str(indexes.roots[name]), digests[name], name in indexes.reused)
        for name, scan in indexes.scans.items()
    }


def class_notes(config: RunConfig, scans: Mapping[str, Scan]) -> list[str]:
    """A line for each task whose data hold fewer classes than its head has."""
    notes = []
    for name, scan in scans.items():
        present, num_classes = classes_present(scan), config.tasks[name].num_classes
        if present < num_classes:
            seen = [text for text, count in examples_of_class(scan).items() if count]
            notes.append(
                f"tasks.{name}: only {present} of num_classes={num_classes} classes have examples"
                f" ({_first(seen)}); if no class should be without, correct the data or tasks.{name}.num_classes"
            )
    return notes


def _first(texts: Sequence[str], most: int = SHOWN_CLASSES) -> str:
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit index`."""
    parser = command_line.parser("index", "Scan the data of a config; say what is there and what is left out.")
    command_line.add_config(parser)
    parser.add_argument("--out", type=Path, help="folder for the Parquet indexes too (default: the cache alone)")
    parser.add_argument("--fresh", action="store_true", help="scan everything, also data that have not changed")
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    config = load_config(arguments.config, arguments.overrides, arguments.only)
    task_roots(config)  # before anything is started
    with tempfile.TemporaryDirectory(prefix="polyvit-index-") as temporary:
        indexes = build_indexes(config, (arguments.out or Path(temporary)).absolute(), fresh=arguments.fresh)
    report = index_report(indexes)
    print_index(report)
    return {"tasks": report, "folder": str(arguments.out) if arguments.out else None}


def print_index(report: Mapping[str, Any], most: int = 5) -> None:
    """Counts per task, then up to `most` of the examples left out of each; all of them are in the JSON."""
    table = Table()
    for column in ("task", "train", "validation", "test", "classes", "with examples", "left out", "index"):
        table.add_column(column, justify="left" if column == "task" else "right")
    table.add_column("examples of each class", overflow="fold")
    for name, entry in report.items():
        left_out = ", ".join(f"{count} {kind}" for kind, count in sorted(entry["left_out"].items()))
        cells = [entry[key] for key in ("train", "validation", "test", "classes", "classes_present")]
        of_class = Text(_first([f"{text} {count:,}" for text, count in entry["examples_of_class"].items()]))
        reused = "reused" if entry["reused"] else "scanned"
        table.add_row(name, *map(str, cells), left_out or "0", reused, of_class)
    console.print(table)
    for name, entry in report.items():
        for problem in entry["problems"][:most]:
            console.print(f"{name}: {problem['kind']}: {problem['where']}: {problem['reason']}")
        if len(entry["problems"]) > most:
            console.print(f"{name}: and {len(entry['problems']) - most} more (all are in --json)")


if __name__ == "__main__":
    sys.exit(main())
