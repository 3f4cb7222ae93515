"""The report on an evaluation: one page that loads nothing, and the same as tables and pictures.

In: the detail of each task and its results. Out: report.html; for each task classes_TASK.csv,
reliability_TASK.png, worst_TASK.csv, worst_TASK.jpg where examples can be drawn and,
where an example has one label, confusion_TASK.csv and confusion_TASK.png.
"""

import csv
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from polyvit.errors import UserError
from polyvit.evaluation import TaskDetail
from polyvit.reports.evaluation.charts import draw_confusion, draw_reliability
from polyvit.reports.evaluation.worst_sheet import draw_worst
from polyvit.reports.html import Cell, Column, FactBox, Figure, Table, render

LISTED = 100
"""Classes that the page lists of each task, the worst first; the CSV has all."""
MIXED = 10
"""Pairs of classes that are mixed up most, listed for each task."""


def write_report(
    details: Mapping[str, TaskDetail], rows: Mapping[str, Mapping[str, Any]], title: str, out: Path
) -> dict[str, Path]:
    """Write the report into `out`, which is created if absent. Returns all files, by name.

    details: by task. rows: each task's results, as `polyvit evaluate` gives them. Raises UserError where `out`
    cannot be written.
    """
    files: dict[str, Path] = {}
    sections = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, detail in details.items():
            figures = []
            files |= {f"classes_{name}": _classes_csv(detail, out / f"classes_{name}.csv")}
            if detail.confusion is not None:
                path = files[f"confusion_{name}"] = out / f"confusion_{name}.png"
                draw_confusion(detail, path)
                files[f"confusion_table_{name}"] = _confusion_csv(detail, out / f"confusion_{name}.csv")
                figures.append(Figure(path, f"Confusion matrix of {name}."))
            path = files[f"reliability_{name}"] = out / f"reliability_{name}.png"
            draw_reliability(detail, path)
            figures.append(Figure(path, f"Reliability diagram of {name}."))
            if detail.worst:
                files[f"worst_table_{name}"] = _worst_csv(detail, out / f"worst_{name}.csv")
            if sheet := draw_worst(detail, out / f"worst_{name}.jpg"):
                files[f"worst_{name}"] = sheet.path
            sections.append(
                {"name": name, "facts": _facts(detail, rows[name]), "figures": figures,
                 "classes": _class_table(detail), "count": len(_seen(detail)), "listed": LISTED,
                 "mixed": _mixed_table(detail), "worst": len(detail.worst), "sheet": sheet}
            )  # fmt: skip
        page = files["report"] = out / "report.html"
        page.write_text(render("evaluation.html.j2", title=title, tasks=sections))
    except OSError as error:
        raise UserError(f"--report {out} cannot be written ({error}); give another folder") from None
    return files


def _facts(detail: TaskDetail, row: Mapping[str, Any]) -> list[FactBox]:
    value = "-" if row.get("value") is None else f"{row['value']:.3f}"
    boxes = [FactBox(value, row["metric"]), FactBox(f"{row['examples']:,}", f"examples of {row['eval_split']}")]
    return [*boxes, FactBox(f"{detail.reliability.error:.3f}", "calibration error of the surest answers")]


def _seen(detail: TaskDetail) -> list[Any]:
    """Classes with examples or answers, the worst first."""
    several = detail.confusion is None
    seen = [each for each in detail.classes if each.examples or each.predicted]

    def score(each: Any) -> float:
        value = each.average_precision if several else each.recall
        return -1.0 if value is None else value

    return sorted(seen, key=score)


def _class_table(detail: TaskDetail) -> Table:
    heads = ("class", "examples", "predicted", "precision", "recall", "average precision")
    columns = [Column((head,), word=head == "class") for head in heads]
    rows = [
        [
            Cell(each.name, word=True), Cell(each.examples), Cell(each.predicted),
            *(
                Cell("–" if value is None else f"{value:.3f}")
                for value in (each.precision, each.recall, each.average_precision)
            ),
        ]
        for each in _seen(detail)[:LISTED]
    ]  # fmt: skip
    return Table(columns, rows)


def _mixed_table(detail: TaskDetail) -> Table | None:
    """The pairs of classes that are mixed up most; None where there is none."""
    if detail.confusion is None:
        return None
    wrong = detail.confusion.copy()
    wrong[range(len(wrong)), range(len(wrong))] = 0
    order = wrong.ravel().argsort(kind="stable")[::-1][:MIXED]
    pairs = [divmod(int(place), len(wrong)) for place in order if wrong.flat[place]]
    names = [each.name for each in detail.classes]
    rows = [
        [Cell(names[true], word=True), Cell(names[taken], word=True), Cell(int(wrong[true, taken]))]
        for true, taken in pairs
    ]
    columns = [Column(("true class",), word=True), Column(("is taken for",), word=True), Column(("examples",))]
    return Table(columns, rows) if rows else None


def _classes_csv(detail: TaskDetail, path: Path) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(detail.classes[0])))
        writer.writeheader()
        writer.writerows(map(asdict, detail.classes))
    return path


def _worst_csv(detail: TaskDetail, path: Path) -> Path:
    """The highest loss first. Several classes of one example are joined by " | "."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["loss", "true", "predicted", "key", "path"])
        writer.writerows(
            [each.loss, " | ".join(each.true), " | ".join(each.predicted), each.key, each.path]
            for each in detail.worst
        )
    return path


def _confusion_csv(detail: TaskDetail, path: Path) -> Path:
    """True classes by row, predicted ones by column."""
    assert detail.confusion is not None
    names = [each.name for each in detail.classes]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["true class", *names])
        writer.writerows([name, *counts] for name, counts in zip(names, detail.confusion.tolist(), strict=True))
    return path
