"""Runs laid out as the PolyViT paper lays its tables out: a row a model or a set of models, a column a task.

In: `RunSummary`s of any task sets. Out: rows, and Markdown: the best of a column bold, the second underlined, the
spread over seeds behind a mean, parameters of all models of a row. Source of the layout: the tables of results of
PolyViT (arXiv 2111.12993). Runs of one task make one row together, "single-task models"; runs of one modality,
where others have more, one row "single-modality models".
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyvit.config import TaskConfig, modalities_of
from polyvit.reports.compare.comparison import RunSummary
from polyvit.reports.compare.run_styles import METRIC_WORDS, two_lines
from polyvit.reports.compare.settings import SCHEDULE, SEED, differing_keys, key_words
from polyvit.reports.html import Cell, Column, Table
from polyvit.reports.style import amount, percent

ORDER = ("weighted", "adaptive", "uniform", "alternating", "task_by_task", "accumulating")
MOST_WORDS = 90
"""Characters of a row's name."""
SINGLE_TASK, SINGLE_MODALITY = "single-task models", "single-modality models"


@dataclass(frozen=True)
class PaperRow:
    """means, sds: of each task over seeds, 0 to 1; a task without a value is absent, as is the spread of one run.

    models: in the row together. parameters: of all of them. seeds: most runs behind a value.
    """

    name: str
    means: dict[str, float]
    sds: dict[str, float]
    models: int
    parameters: int
    seeds: int


def paper_rows(runs: Sequence[RunSummary]) -> list[PaperRow]:
    """Single-task models first, then single-modality models, then models of all tasks by their settings."""
    every = {task for run in runs for task in run.config.tasks}
    alone = [run for run in runs if len(run.config.tasks) == 1 and len(every) > 1]
    narrow = [
        run for run in runs
        if run not in alone and len(modalities_of(run.config.tasks)) == 1 and set(run.config.tasks) < every
    ]  # fmt: skip
    rows = [_together(name, group) for name, group in ((SINGLE_TASK, alone), (SINGLE_MODALITY, narrow)) if group]
    whole = [run for run in runs if run not in alone and run not in narrow]
    if not whole:
        return rows
    keys = {key: values for key, values in differing_keys(whole).items() if key != SEED}
    groups: dict[tuple[str, ...], list[RunSummary]] = {}
    for run in sorted(whole, key=lambda run: [_place(key, values[run.name]) for key, values in keys.items()]):
        groups.setdefault(tuple(key_words(key, values[run.name]) for key, values in keys.items()), []).append(run)
    return [
        *rows,
        *(_together(_row_name(words, group), group) for words, group in groups.items()),
    ]


def _row_name(words: Sequence[str], runs: Sequence[RunSummary]) -> str:
    """What the runs differ in from others; their names where that is too long for a table."""
    said = ", ".join(filter(None, words)) or "all tasks"
    return said if len(said) <= MOST_WORDS else " = ".join(run.name for run in runs)


def _place(key: str, value: Any) -> tuple[float, str]:
    if key == SCHEDULE and value in ORDER:
        return ORDER.index(value), ""
    return (float(value), "") if isinstance(value, int | float) else (0.0, str(value))


def _together(name: str, runs: Sequence[RunSummary]) -> PaperRow:
    values: dict[str, list[float]] = {}
    for run in runs:
        for task, value in run.values.items():
            if value is not None:
                values.setdefault(task, []).append(value)
    models = {tuple(sorted(run.config.tasks)): run.total_parameters for run in runs}  # of several seeds one
    return PaperRow(
        name,
        {task: statistics.fmean(each) for task, each in values.items()},
        {task: statistics.stdev(each) for task, each in values.items() if len(each) > 1},
        len(models),
        sum(models.values()),
        max(map(len, values.values()), default=0),
    )


def ranks(rows: Sequence[PaperRow], task: str) -> dict[str, int]:
    """1 for the rows with the best value of a task as printed, 2 for the second; others are absent."""
    printed = {row.name: percent(row.means[task]) for row in rows if task in row.means}
    places = sorted({float(text.replace("−", "-")) for text in printed.values()}, reverse=True)[:2]
    return {
        name: places.index(float(text.replace("−", "-"))) + 1
        for name, text in printed.items() if float(text.replace("−", "-")) in places
    }  # fmt: skip


def paper_markdown(rows: Sequence[PaperRow], tasks: Sequence[str], metrics: Mapping[str, str]) -> str:
    """The table. Metrics in percent; ± is the standard deviation over seeds."""
    heads = ["model", "#models", "#params", *(f"{task} ({METRIC_WORDS[metrics[task]]})" for task in tasks)]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    marks = {task: ranks(rows, task) if len(rows) > 1 else {} for task in tasks}
    for row in rows:
        cells = [row.name, str(row.models), amount(row.parameters)]
        for task in tasks:
            text = percent(row.means.get(task))
            rank = marks[task].get(row.name)
            text = f"**{text}**" if rank == 1 else f"<u>{text}</u>" if rank == 2 else text
            cells.append(f"{text} ± {percent(row.sds[task])}" if task in row.sds else text)
        lines.append("| " + " | ".join(cells) + " |")
    seeds = max((row.seeds for row in rows), default=0)
    lines += ["", f"Percent; bold: best of a column, underlined: second; up to {seeds} runs behind a value"
              + (", ± their standard deviation." if seeds > 1 else ", so no spread is known.")]  # fmt: skip
    return "\n".join(lines) + "\n"


def paper_cells(runs: Sequence[RunSummary]) -> Table:
    """The same as a table of a page."""
    tasks, configs = _tasks(runs)
    rows = paper_rows(runs)
    marks = {task: ranks(rows, task) if len(rows) > 1 else {} for task in tasks}
    heads = [Column([head], word=head == "model") for head in ("model", "models", "parameters")]
    heads += [Column([*two_lines(task).splitlines(), METRIC_WORDS[configs[task].metric]]) for task in tasks]
    cells = []
    for row in rows:
        line = [Cell(row.name, word=True), Cell(row.models), Cell(amount(row.parameters))]
        for task in tasks:
            spread = f" ± {percent(row.sds[task])}" if task in row.sds else ""
            rank = marks[task].get(row.name)
            line.append(Cell(percent(row.means.get(task)) + spread, best=rank == 1, second=rank == 2))
        cells.append(line)
    return Table(heads, cells)


def paper_table(runs: Sequence[RunSummary]) -> str:
    """The Markdown of these runs, tasks by modality."""
    tasks, configs = _tasks(runs)
    return paper_markdown(paper_rows(runs), tasks, {task: configs[task].metric for task in tasks})


def _tasks(runs: Sequence[RunSummary]) -> tuple[list[str], dict[str, TaskConfig]]:
    """Tasks of all runs by modality, and the config of each."""
    configs = {task: run.config.tasks[task] for run in runs for task in run.config.tasks}
    order = list(modalities_of(configs))
    return sorted(configs, key=lambda task: order.index(configs[task].modality)), configs
