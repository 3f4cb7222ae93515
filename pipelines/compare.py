"""Compare finished runs: a leaderboard, pictures and one HTML page.

    polyvit compare RUN ... [--baseline RUN ...] [--out DIR] [--title TEXT] [--json FILE]
    python -m pipelines.compare ...

RUN is a run's folder, its name in `runs/`, or a folder of runs such as a sweep's `trials`. Runs of one task (made
with `cotrain --only TASK`) are what co-training is measured against. Needs no Ray: it reads what runs wrote.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from pipelines.runtime import command_line, console
from polyvit.errors import UserError
from polyvit.reports import amount
from polyvit.reports.compare import Comparison, compare, leaderboard, parameters_saved, read_runs, write_report

MOST_RUNS = 7
"""Runs in the terminal's table of tasks, the best ones, so that it fits 100 letters; the files have all."""


def print_comparison(comparison: Comparison, title: str) -> None:
    """Two tables, runs and then tasks, what to know about them, and what the best run saves."""
    console.print(runs_table(comparison, title))
    console.print(tasks_table(comparison))
    for note in comparison.notes:
        console.print(note, style="yellow")
    best = comparison.best
    if saved := parameters_saved(best, comparison.baselines):
        console.print(
            f"parameters: {amount(best.total_parameters)} in the best run, {amount(saved[0])} in single-task "
            f"models of its {len(best.config.tasks)} tasks: {saved[1]:.1f}x fewer"
        )


def runs_table(comparison: Comparison, title: str) -> Table:
    """The leaderboard, best first; metrics as fractions, as `cotrain` prints them."""
    table = Table(title=title)
    unfinished = any(not run.finished for run in comparison.runs)
    told = any(comparison.labels[run.name] != run.name for run in comparison.runs)
    heads = [
        "#",
        "run",
        *(["differs in"] if told else []),
        "mean",
        *(["worst difference", "of task"] if comparison.baselines else []),
        "parameters",
    ]
    for head in [*heads, *(["status"] if unfinished else [])]:
        table.add_column(head, justify="left" if head in ("run", "differs in", "of task", "status") else "right")
    for rank, run in enumerate(comparison.runs, start=1):
        worst = comparison.worst(run)
        against = [f"{worst[1]:+.3f}" if worst else "-", worst[0] if worst else ""] if comparison.baselines else []
        size = amount(run.total_parameters)
        table.add_row(
            str(rank),
            run.name,
            *([comparison.labels[run.name]] if told else []),
            _three(comparison.mean(run)),
            *against,
            size,
            *([run.status] if unfinished else []),
        )
    return table


def tasks_table(comparison: Comparison) -> Table:
    """Each task's value in the best runs, by their place; the best of a task is bold."""
    shown, baselines = comparison.runs[:MOST_RUNS], comparison.baselines
    table = Table(title="each task, by the run's place above" if len(comparison.runs) > 1 else None)
    table.add_column("task")
    table.add_column("metric")
    for head in [*(["alone"] if baselines else []), *(f"#{i + 1}" for i in range(len(shown)))]:
        table.add_column(head, justify="right")
    for task in comparison.tasks:
        values = [run.values.get(task) for run in shown]
        best = max((value for value in values if value is not None), default=None)
        cells = [Text(_three(v), style="bold" if v is not None and v == best else "") for v in values]
        alone = [_three(baselines[task].value if task in baselines else None)] if baselines else []
        table.add_row(task, comparison.metric(task), *alone, *cells)
    return table


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit compare`."""
    parser = command_line.parser("compare", "Compare finished runs: leaderboard, pictures, one HTML page.")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run, or a folder that holds runs")
    parser.add_argument(
        "--baseline", metavar="RUN", nargs="+", action="extend", default=[],
        help="runs of one task each, or a folder of such; single-task runs among RUN count as well",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("comparison"), help="default: %(default)s")
    parser.add_argument("--title", help="of the page")
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.out.exists() and not arguments.out.is_dir():
        raise UserError(f"--out {arguments.out} is a file; give a folder")
    runs, baselines = read_runs(arguments.runs), read_runs(arguments.baseline)
    comparison = compare(runs, baselines)
    title = arguments.title or (
        f"{len(comparison.runs)} runs compared" if len(comparison.runs) > 1 else comparison.best.name
    )
    print_comparison(comparison, title)
    again = ["polyvit", "compare", *arguments.runs]
    again += ["--baseline", *arguments.baseline] if arguments.baseline else []
    written = write_report(
        runs, arguments.out, title, baselines, shlex.join([*again, "--out", str(arguments.out)])
    )
    console.print(f"report      {written['report.html']}")
    console.print(f"data        {written['leaderboard.csv']} and {len(written) - 3} pictures beside it")
    console.print(f"table       {written['table.md']}: as the paper lays it out")
    return {
        "best": comparison.best.name,
        "objective": comparison.objective,
        "leaderboard": leaderboard(comparison),
        "baselines": {task: baseline.value for task, baseline in comparison.baselines.items()},
        "notes": list(comparison.notes),
        "files": {name: str(path) for name, path in written.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
