"""A report on the data: what is in every task's data, what is wrong with it, and what the model will see of it.

    polyvit inspect CONFIG [key=value ...] [--sample N | --all] [--out DIR] [--no-mlflow] [--json FILE]
    python -m pipelines.inspect ...                     the same, for `ray job submit`

Scans the data, examines examples on the cluster (`batch/inspect_job.py`), says what to do (`findings.py`).
DIR gets contact sheets, pictures of the numbers and report.html, one page with all of it; MLflow gets a run with
these. Exit status 0, whatever was found; 2 where the config or the data cannot be used at all.
"""

import argparse
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from pipelines.index import build_indexes, task_roots
from pipelines.runtime import cluster, command_line, console
from polyvit.config import RunConfig, load_config
from polyvit.data.loading import check_readable
from polyvit.errors import UserError
from polyvit.reports.inspect import SEVERITIES, Finding, TaskReport, find_problems, report_task, write_page
from polyvit.storage import output_folder

SAMPLE = 200
"""Examples of a task that are decoded unless the user says how many."""
COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit inspect`."""
    parser = command_line.parser(
        "inspect", "A report on the data: counts, classes, broken files, duplicates, contact sheets."
    )
    command_line.add_config(parser)
    how_many = parser.add_mutually_exclusive_group()
    how_many.add_argument("--sample", type=command_line.positive_int, default=SAMPLE, metavar="N",
                          help="decode so many examples of each task (default: %(default)s)")  # fmt: skip
    how_many.add_argument("--all", action="store_true", help="decode every example")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("inspection"), help="default: %(default)s")
    parser.add_argument("--file-seconds", type=float, default=60.0, metavar="S",
                      help="a file that takes longer to decode is broken (default: %(default)s)")  # fmt: skip
    parser.add_argument("--no-mlflow", action="store_true", help="do not log the report as a run to MLflow")
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    config = load_config(arguments.config, arguments.overrides, arguments.only)
    _check_roots(config)  # before anything is started
    out = output_folder(arguments.out, "--out")
    reports, sheets = inspect_data(
        config, out, None if arguments.all else arguments.sample, arguments.file_seconds
    )
    findings = find_problems(config, reports)
    again = _again(arguments)
    files = write_page(config, reports, findings, sheets, out, again)
    print_reports(reports)
    print_findings(findings)
    console.print(f"report      {files['report.html']}")
    run = None if arguments.no_mlflow else log(config, reports, findings, files)
    return {
        "tasks": {name: report.document() for name, report in reports.items()},
        "findings": [vars(finding) for finding in findings],
        "files": {name: str(path) for name, path in files.items()},
        "mlflow_run": run,
    }


def _check_roots(config: RunConfig) -> None:
    """Raises UserError where a task has no folder; a root that is not there may be meant for toy data."""
    check_readable(config)
    try:
        task_roots(config)
    except UserError as error:
        root = config.data.root
        if root and "://" not in root and not Path(root).exists():
            hint = f"{root} is not there; `polyvit synth {root}` would write the nine datasets at toy size"
            raise UserError(f"{error.message.rstrip(':')} ({hint}):", error.problems) from None
        raise


def _again(arguments: argparse.Namespace) -> str:
    """The command that makes this report again."""
    words = ["polyvit", "inspect", arguments.config, *arguments.overrides]
    words += [word for name in arguments.only for word in ("--only", name)]
    words += ["--all"] if arguments.all else ["--sample", str(arguments.sample)]
    return shlex.join([*words, "--out", str(arguments.out)])


def inspect_data(
    config: RunConfig, out: Path, sample: int | None, file_seconds: float
) -> tuple[dict[str, TaskReport], dict[str, dict[str, str]]]:
    """Scan, examine, draw: the report of each task, and its contact sheets in `out` with what they show.

    sample: examples a task to decode; None: all. Raises UserError where the data of any task cannot be used.
    """
    from pipelines.batch import draw_sheets, examine_all  # start-up: Ray Data

    console.print("starting Ray ...")
    with tempfile.TemporaryDirectory(prefix="polyvit-inspect-") as temporary, cluster():
        console.print(f"scanning {_count(len(config.tasks), 'task')} ...")
        try:
            indexes = build_indexes(config, Path(temporary), train=True)
        except UserError as error:
            raise UserError(f"{error.message} (--only TASK looks at the others)", error.problems) from None
        examined = examine_all(config, indexes, sample, file_seconds)
        reports = {}
        for name, task in config.tasks.items():
            spec, root = config.model.input(task.modality), str(indexes.roots[name])
            reports[name] = report_task(name, task, spec, root, indexes.scans[name], examined.pop(name))
        console.print("drawing contact sheets ...")
        return reports, draw_sheets(config, indexes, reports, out)


# ----------------------------------------------------------------------------------------------- telling


def print_reports(reports: Mapping[str, TaskReport]) -> None:
    """What is there, a row a task."""
    table = Table(title="what is there")
    columns = ("task", "train", "validation", "test", "classes", "of config", "decoded", "broken", "typical")
    for column in columns:
        table.add_column(column, justify="left" if column in ("task", "typical") else "right")
    for name, report in reports.items():
        present = int((report.counts_KS.sum(axis=1) > 0).sum())
        numbers = [
            *report.examples.values(),
            present,
            report.task.num_classes,
            len(report.examined),
            len(report.broken),
        ]
        table.add_row(name, *(f"{number:,}" for number in numbers), typical(report))
    console.print(table)


def typical(report: TaskReport) -> str:
    """The middle example in a few words: 256 x 192, 2.1 s at 30 fps, 16 kHz."""

    def middle(measure: str) -> float | None:
        values = sorted(report.values(measure))
        return float(values[len(values) // 2]) if values else None

    width, height, seconds, fps, rate = map(middle, ("width", "height", "seconds", "fps", "sample_rate"))
    words = [f"{width:.0f} x {height:.0f}"] if width and height else []
    words += [f"{seconds:.3g} s"] if seconds is not None else []
    words += [f"{fps:.3g} fps"] if fps else []
    words += [f"{rate / 1000:g} kHz"] if rate else []
    return ", ".join(words)


def print_findings(findings: Sequence[Finding]) -> None:
    """Worst first, each with what to do; tasks with the same remedy share a row."""
    if not findings:
        console.print("nothing to complain about")
        return
    table = Table(title="what to look at", show_lines=True, expand=True)
    table.add_column("")
    table.add_column("task: finding", overflow="fold", ratio=3)
    table.add_column("what to do", overflow="fold", ratio=2)
    rows: dict[tuple[str, str, str], list[Text]] = {}
    for finding in findings:
        line = Text.assemble((finding.task, "bold"), f": {finding.says}")
        rows.setdefault((finding.severity, finding.kind, finding.do), []).append(line)
    for (severity, _, do), lines in rows.items():
        table.add_row(Text(severity, style=COLOURS[severity]), Text("\n").join(lines), do)
    console.print(table)
    counts = Counter(finding.severity for finding in findings)
    console.print(", ".join(_count(counts[severity], severity) for severity in SEVERITIES if counts[severity]))


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def log(
    config: RunConfig, reports: Mapping[str, TaskReport], findings: Sequence[Finding], files: Mapping[str, Path]
) -> str | None:
    """The report as an MLflow run of an experiment of its own; returns its id, None where no store took it."""
    from pipelines.tracking import log_side_run  # start-up: MLflow

    values = {f"findings/{severity}": sum(f.severity == severity for f in findings) for severity in SEVERITIES}
    for name, report in reports.items():
        values |= {f"{name}/{split}": count for split, count in report.examples.items()}
        values |= {f"{name}/decoded": len(report.examined), f"{name}/broken": len(report.broken)}
    apart = config.tracking.model_copy(update={"experiment": f"{config.tracking.experiment}-inspections"})
    own = config.model_copy(update={"tracking": apart})
    run, line = log_side_run(own, "inspection", config.name, values, files=files.values())
    console.print(line, style=None if run else "yellow")
    return run


if __name__ == "__main__":
    sys.exit(main())
