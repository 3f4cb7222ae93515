"""An inspection as files: pictures of each task's numbers, and report.html, a page that needs nothing but itself.

In: reports, findings, and the contact sheets that lie in the folder already. Out: the files, by name.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyvit.config import RunConfig
from polyvit.data.index import SPLITS
from polyvit.errors import UserError
from polyvit.reports.html import cell, document, fact_boxes, image, safe, table
from polyvit.reports.inspect.charts import draw_numbers
from polyvit.reports.inspect.findings import SEVERITIES, Finding
from polyvit.reports.inspect.task_report import MEASURES, TaskReport, distribution

LISTED = 200
"""Broken files and left-out examples that the page lists for each task; `--json` has all."""
_SHEET_PIXELS = 0.88
"""Of the page to a pixel of a contact sheet: its letters become as large as those of the other pictures."""
_STYLE = """
td.wrap { white-space: normal; text-align: left; min-width: 14rem; max-width: 30rem; }
.error, .warning, .note-word { font-weight: 600; padding: .05rem .45rem; border-radius: 3px; }
.error { background: #fbe3d9; color: #9a3b00; } .warning { background: #fff1d0; color: #7a5200; }
.note-word { background: #eee; color: #555; }
details { margin: .5rem 0; } summary { cursor: pointer; color: #0072B2; }
details li, td small { font-size: .8rem; color: #555; overflow-wrap: anywhere; }
nav a { margin-right: .9rem; color: #0072B2; }
h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; }
"""


def write_page(
    config: RunConfig,
    reports: Mapping[str, TaskReport],
    findings: Sequence[Finding],
    sheets: Mapping[str, Mapping[str, str]],
    out: Path,
    command: str,
) -> dict[str, Path]:
    """Draw the numbers, write the page.

    sheets: {task: {PNG in `out`: what it shows}}. command: what makes all this again. Raises
    UserError where `out` cannot be written.
    """
    try:
        numbers = {name: draw_numbers(report, out / f"{name}_numbers.png") for name, report in reports.items()}
        parts = _top(config, reports, findings)
        for name, report in reports.items():
            own = [finding for finding in findings if finding.task == name]
            pictures = [(out / f"{name}_numbers.png", numbers[name])]
            pictures += [(out / file, says) for file, says in sheets.get(name, {}).items()]
            parts += _task(report, own, pictures)
        parts += ["<h2>Do it again</h2>", f"<pre>{safe(command)}</pre>"]
        (out / "report.html").write_text(document(f"{config.name}: the data", parts, _STYLE), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error}); give another --out folder") from None
    names = ["report.html", *(f"{name}_numbers.png" for name in reports)]
    names += [file for drawn in sheets.values() for file in drawn]
    return {name: out / name for name in names}


def _top(config: RunConfig, reports: Mapping[str, TaskReport], findings: Sequence[Finding]) -> list[str]:
    """Title, facts, the table of findings, the table of tasks."""
    counted = {severity: sum(f.severity == severity for f in findings) for severity in SEVERITIES}
    broken = sum(len(report.broken) for report in reports.values())
    facts: list[tuple[Any, Any]] = [(f"{counted['error']}", "errors: a run stops, or its scores mislead")]
    facts += [(counted["warning"], "warnings"), (counted["note"], "notes")]
    facts.append(
        (f"{sum(sum(r.examples.values()) for r in reports.values()):,}", f"examples of {len(reports)} tasks")
    )
    facts.append((f"{sum(len(r.seen) for r in reports.values()):,}", f"decoded, {broken} of them broken"))
    facts.append((f"{sum(r.hashed for r in reports.values()):,}", "compared byte for byte"))
    links = " ".join(f'<a href="#{safe(name)}">{safe(name)}</a>' for name in reports)
    parts = [
        f"<h1>{safe(config.name)}: the data</h1>",
        f"<nav>{links}</nav>",
        fact_boxes(facts),
        "<h2>Findings</h2>",
    ]
    parts.append(_findings_table(findings) if findings else "<p>Nothing to complain about.</p>")
    return [*parts, "<h2>Tasks</h2>", _tasks_table(reports)]


def _findings_table(findings: Sequence[Finding], task: bool = True) -> str:
    """Worst first, with what to do, and examples to unfold."""
    lines = []
    for finding in findings:
        kind = "note-word" if finding.severity == "note" else finding.severity
        says = safe(finding.says)
        if finding.examples:
            listed = "".join(f"<li>{safe(line)}</li>" for line in finding.examples)
            more = f"<li>and {finding.count - len(finding.examples)} more</li>"
            more = more if finding.count > len(finding.examples) and not task else ""
            says += f"<details><summary>which</summary><ul>{listed}{more}</ul></details>"
        line = [f'<td class="word"><span class="{kind}">{finding.severity}</span></td>']
        line += [cell(finding.task, word=True)] if task else []
        lines.append([*line, f'<td class="wrap">{says}</td>', f'<td class="wrap">{safe(finding.do)}</td>'])
    heads = ["", *(["task"] if task else []), "finding", "what to do"]
    return table(heads, lines, words=range(len(heads)), first=False)


def _tasks_table(reports: Mapping[str, TaskReport]) -> str:
    heads = [
        "task",
        "modality",
        *SPLITS,
        "classes<br>in config",
        "with<br>examples",
        "decoded",
        "broken",
        "left out",
    ]
    lines = []
    for name, report in reports.items():
        present = int((report.counts_KS.sum(axis=1) > 0).sum())
        line = [cell(name, word=True), cell(report.task.modality, word=True)]
        line += [cell(f"{report.examples[split]:,}") for split in SPLITS]
        line += [cell(report.task.num_classes), cell(present), cell(len(report.seen)), cell(len(report.broken))]
        lines.append([*line, cell(len(report.problems))])
    return table(heads, lines, words=(0, 1), first=False)


def _task(report: TaskReport, findings: Sequence[Finding], pictures: Sequence[tuple[Path, str]]) -> list[str]:
    """One task's section."""
    splits = ", ".join(f"{report.examples[split]:,} {split}" for split in SPLITS)
    parts = [f'<h2 id="{safe(report.name)}">{safe(report.name)}</h2>']
    parts.append(
        f'<p class="faint">{report.task.modality}, layout {report.task.layout}: {splits}; '
        f"{len(report.seen)} decoded, {report.hashed} compared. {safe(report.root)}</p>"
    )
    if findings:
        parts.append(_findings_table(findings, task=False))
    numbers, *sheets = pictures
    parts.append(image(*numbers))
    parts += [image(path, says, _SHEET_PIXELS) for path, says in sheets]
    parts.append(_measures_table(report))
    parts += _list("Broken files", [f"{look.path}: {look.facts.reason}" for look in report.broken if look.facts])
    parts += _list("Left out by the scan", [f"{p.kind}: {p.where}: {p.reason}" for p in report.problems])
    return parts


def _measures_table(report: TaskReport) -> str:
    lines = []
    for measure in MEASURES[report.task.modality]:
        values = report.values(measure)
        if len(values):
            words = {"level_db": "level, dBFS", "fps": "frames a second", "sample_rate": "sample rate, Hz"}
            cells = [cell(f"{value:,.10g}") for value in distribution(values).values()]
            lines.append([cell(words.get(measure, measure), word=True), cell(len(values)), *cells])
    if not lines:
        return ""
    made = table(["", "examples", "least", "5 %", "middle", "95 %", "most"], lines, words=(0,), first=False)
    return f"<details><summary>sizes as numbers</summary>{made}</details>"


def _list(title: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    items = "".join(f"<li>{safe(line)}</li>" for line in lines[:LISTED])
    more = f"<li>and {len(lines) - LISTED} more (all are in --json)</li>" if len(lines) > LISTED else ""
    return [f"<details><summary>{title} ({len(lines)})</summary><ul>{items}{more}</ul></details>"]
