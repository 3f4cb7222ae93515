"""Write the files of tasks' examples, one Ray task a file: what `polyvit shard` and `polyvit tokenize` share.

In: a config, its indexes, and for each task the files to write. Out: the report of every file, by task.
"""

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray.data

from pipelines.index import Indexes
from pipelines.runtime import notices_while
from polyvit.config import RunConfig
from polyvit.data.shards import write_text
from polyvit.errors import UserError
from polyvit.storage import Location, StoreUnavailable, as_location, is_url, output_folder, under

Write = Callable[[str, Any, Location], Any]
"""(task, spec of a file, the task's folder or URL) -> report; run in Ray's processes."""


def write_files(
    config: RunConfig, indexes: Indexes, out: Location, specs_of: Callable[[str], Sequence[Any]], write: Write,
    file: tuple[str, str],
) -> dict[str, list[Any]]:  # fmt: skip
    """Write every file of every task, and each task's classes.txt. Returns the reports by task, in order of names.

    out: folder or URL; each task gets a subfolder. specs_of: the files of a task. Specs and reports have a `name`.
    file: what it is called in messages, and its suffix. Raises UserError with the problems of all files.
    """
    kind, suffix = file
    locations = {name: as_location(under(str(out), name)) for name in config.tasks}
    items = []
    for name in config.tasks:
        if not is_url(locations[name]):
            output_folder(locations[name], "--out")
        write_text("classes.txt", "".join(f"{text}\n" for text in indexes.scans[name].classes), locations[name])
        items += [{"task": name, "spec": pickle.dumps(spec)} for spec in specs_of(name)]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
        _write_row,  # type: ignore[arg-type]
        fn_args=(write, locations, suffix),
        num_cpus=config.data.decode_cpus,
        label_selector=dict(config.data.decode_node_labels) or None,
    )
    dataset.set_name(f"write_{kind}s")
    done: list[dict[str, Any]] = []
    with notices_while(lambda: f"writing: {len(done)} of {len(items)} {kind}s ..."):
        done.extend(dataset.iter_rows())
    if problems := sorted({row["error"] for row in done if row["error"]}):
        raise UserError(f"not every {kind} was written; the same command goes on where it stopped:", problems)
    reports: dict[str, list[Any]] = {name: [] for name in config.tasks}
    for row in done:
        reports[row["task"]].append(pickle.loads(row["report"]))
    return {name: sorted(of_task, key=lambda report: report.name) for name, of_task in reports.items()}


def _write_row(
    row: dict[str, Any], write: Write, locations: Mapping[str, Location], suffix: str
) -> dict[str, Any]:
    name, spec = row["task"], pickle.loads(row["spec"])
    try:
        report = write(name, spec, locations[name])
    except (StoreUnavailable, OSError, UserError) as error:
        return {"task": name, "report": b"", "error": f"tasks.{name}: {spec.name}{suffix}: {error}"}
    return {"task": name, "report": pickle.dumps(report), "error": ""}


def overrides_of_copy(config: RunConfig, out: Location, layout: str, classes: str) -> list[str]:
    """The overrides with which the same config reads what was written.

    layout: of what was written. classes: what takes the place of a task's own list of classes.
    """
    overrides = [f"data.root={out}"]
    for name, task in config.tasks.items():
        overrides.append(f"tasks.{name}.layout={layout}")
        if task.root is not None:
            overrides.append(f"tasks.{name}.root=null")
        if task.options:
            overrides.append(f"tasks.{name}.options={{}}")
        if task.classes is not None:
            overrides.append(f"tasks.{name}.classes={classes}")
    return overrides
