"""Where the data of a config's tasks lie, and whether its splits hold what a run needs.

In: a config, and the tasks' indexes. Out: a folder or URL for each task; problems, all at once.
"""

from collections.abc import Mapping

from polyvit.config import RunConfig
from polyvit.data.index import Scan
from polyvit.errors import UserError
from polyvit.storage import Location, StoreUnavailable, as_location, is_url, open_root, under, unknown_host


def task_roots(config: RunConfig, check: bool = True) -> dict[str, Location]:
    """Absolute folder, or URL, of every task. Raises UserError naming every task that has none.

    check: whether to look that a folder is there, which takes a request or two for each task in an object store.
    """
    roots: dict[str, Location] = {}
    problems = []
    unknown: dict[tuple[str, str], list[str]] = {}  # {(host, why): tasks}: one line for all
    for name, task in config.tasks.items():
        text = task.root or (under(config.data.root, name) if config.data.root else None)
        if text is None:
            problems.append(
                f"tasks.{name}: no data; give data.root=DIR (holding {name}/) or tasks.{name}.root=DIR"
            )
            continue
        roots[name] = as_location(text)
        if check and (host := unknown_host(roots[name])):
            unknown.setdefault(host, []).append(name)
        elif check and (reason := _no_folder(roots[name])):
            key = f"tasks.{name}.root" if task.root else "data.root"
            problems.append(f"tasks.{name}: {reason}; set {key} to where the data are")
    problems += [
        f"tasks {', '.join(names)}: the host {host} cannot be resolved ({why}); correct the URL or"
        " AWS_ENDPOINT_URL, or see to the network"
        for (host, why), names in unknown.items()
    ]
    if problems:
        raise UserError("data are missing:", problems)
    return roots


def _no_folder(location: Location) -> str:
    """Why a location holds no data; '' where it may hold some."""
    try:
        state = open_root(location).state()
    except (UserError, StoreUnavailable) as error:
        return str(error)
    return "" if state == "folder" else f"{location} is not a folder{' of a bucket' if is_url(location) else ''}"


def split_problems(config: RunConfig, scans: Mapping[str, Scan], train: bool = True) -> list[str]:
    """A line for each split that training or evaluation needs and that is empty."""
    problems = []
    for name, scan in scans.items():
        counts = scan.counts()
        have = ", ".join(f"{split} {n}" for split, n in counts.items())
        left_out = f"; {len(scan.problems)} listed examples were left out" if scan.problems else ""
        if train and not counts["train"]:
            problems.append(f"tasks.{name}: the train split is empty (found: {have}{left_out})")
        split = config.tasks[name].eval_split
        if not counts[split]:
            problems.append(
                f"tasks.{name}: eval_split={split} is empty (found: {have}{left_out}); set tasks.{name}.eval_split"
                + ("" if train else ", or name the other tasks with --only")
            )
    return problems
