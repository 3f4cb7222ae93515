"""The data report as files: pictures of each task's numbers, and report.html, one page that loads nothing.

In: task reports, findings, and the contact sheets that lie in the folder already. Out: the files, by name.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyvit.config import RunConfig
from polyvit.data.index import SPLITS
from polyvit.errors import UserError
from polyvit.reports.html import Cell, Column, FactBox, Figure, Table, render
from polyvit.reports.inspect.charts import draw_numbers
from polyvit.reports.inspect.findings import Finding
from polyvit.reports.inspect.task_report import MEASURES, TaskReport, distribution

LISTED = 200
"""Broken files and left-out examples that the page lists for each task; `--json` has all."""
_SHEET_PIXELS = 0.88
"""Width on the page of one pixel of a contact sheet, so that its letters are as large as in other pictures."""


@dataclass(frozen=True)
class LongList:
    """Lines to unfold. lines: the first ones; count: of all."""

    title: str
    lines: Sequence[str]
    count: int


@dataclass(frozen=True)
class TaskSection:
    """What the page shows of one task."""

    name: str
    about: str
    findings: Sequence[Finding]
    figures: Sequence[Figure]
    measures: Table
    lists: Sequence[LongList]


def write_page(
    config: RunConfig,
    reports: Mapping[str, TaskReport],
    findings: Sequence[Finding],
    sheets: Mapping[str, Mapping[str, str]],
    out: Path,
    command: str,
) -> dict[str, Path]:
    """Draw each task's numbers and write the page. Returns all files, by name.

    config: names the page. reports: by task. findings: of all tasks, worst first. sheets: for each task, the PNG
    files that lie in `out` already, and what each shows. out: the folder. command: what makes all this again.
    Raises UserError where `out` cannot be written.
    """
    try:
        sections = []
        for name, report in reports.items():
            numbers = out / f"{name}_numbers.png"
            figures = [Figure(numbers, draw_numbers(report, numbers))]
            figures += [Figure(out / file, says, _SHEET_PIXELS) for file, says in sheets.get(name, {}).items()]
            own = [finding for finding in findings if finding.task == name]
            sections.append(_task_section(report, own, figures))
        html = render(
            "data_report.html.j2",
            sys.maxsize,  # contact sheets are what this page is for
            title=f"{config.name}: the data",
            facts=_facts(reports, findings),
            findings=findings,
            summary=_summary_table(reports),
            tasks=sections,
            command=command,
        )
        (out / "report.html").write_text(html, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error}); give another --out folder") from None
    names = ["report.html", *(f"{name}_numbers.png" for name in reports)]
    names += [file for drawn in sheets.values() for file in drawn]
    return {name: out / name for name in names}


def _facts(reports: Mapping[str, TaskReport], findings: Sequence[Finding]) -> list[FactBox]:
    severities = Counter(finding.severity for finding in findings)
    examples = sum(sum(report.examples.values()) for report in reports.values())
    decoded = sum(len(report.examined) for report in reports.values())
    broken = sum(len(report.broken) for report in reports.values())
    return [
        FactBox(severities["error"], "errors: a run stops, or its scores mislead"),
        FactBox(severities["warning"], "warnings"),
        FactBox(severities["note"], "notes"),
        FactBox(f"{examples:,}", f"examples of {len(reports)} tasks"),
        FactBox(f"{decoded:,}", f"decoded, {broken} of them broken"),
        FactBox(f"{sum(report.hashed for report in reports.values()):,}", "compared byte for byte"),
    ]


def _summary_table(reports: Mapping[str, TaskReport]) -> Table:
    """A row a task: examples of each split, classes, how many were decoded."""
    columns = [
        Column(["task"], word=True),
        Column(["modality"], word=True),
        *(Column([split]) for split in SPLITS),
    ]
    heads = ["classes", "in config"], ["with", "examples"], ["decoded"], ["broken"], ["left out"]
    columns += [Column(lines) for lines in heads]
    rows = []
    for name, report in reports.items():
        present = int((report.counts_KS.sum(axis=1) > 0).sum())
        row = [Cell(name, word=True), Cell(report.task.modality, word=True)]
        row += [Cell(f"{report.examples[split]:,}") for split in SPLITS]
        counts = report.task.num_classes, present, len(report.examined), len(report.broken), len(report.problems)
        rows.append([*row, *(Cell(count) for count in counts)])
    return Table(columns, rows)


def _task_section(report: TaskReport, findings: Sequence[Finding], figures: Sequence[Figure]) -> TaskSection:
    splits = ", ".join(f"{report.examples[split]:,} {split}" for split in SPLITS)
    about = f"{report.task.modality}, layout {report.task.layout}: {splits}; "
    about += f"{len(report.examined)} decoded, {report.hashed} compared. {report.root}"
    broken = [f"{example.path}: {example.info.reason}" for example in report.broken if example.info]
    left_out = [f"{problem.kind}: {problem.where}: {problem.reason}" for problem in report.problems]
    lists = [
        LongList(title, lines[:LISTED], len(lines))
        for title, lines in (("Broken files", broken), ("Left out by the scan", left_out))
        if lines
    ]
    return TaskSection(report.name, about, findings, figures, _measures_table(report), lists)


def _measures_table(report: TaskReport) -> Table:
    """A row a measure that is known of any example: how many examples, and their distribution."""
    words = {"level_db": "level, dBFS", "fps": "frames a second", "sample_rate": "sample rate, Hz"}
    rows = []
    for measure in MEASURES[report.task.modality]:
        values = report.values(measure)
        if len(values):
            cells = [Cell(f"{value:,.10g}") for value in distribution(values).values()]
            rows.append([Cell(words.get(measure, measure), word=True), Cell(len(values)), *cells])
    heads = ("examples", "least", "5 %", "middle", "95 %", "most")
    return Table([Column([""], word=True), *(Column([head]) for head in heads)], rows)
