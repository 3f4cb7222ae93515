"""A comparison as files: leaderboard.csv, pictures, and report.html, one page that loads nothing.

In: `RunSummary`s. Out: a folder. The page has its pictures inside, so it can be moved and opened anywhere.
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyvit.errors import UserError
from polyvit.reports.compare.comparison import (
    Comparison,
    RunSummary,
    compare,
    leaderboard,
    parameters_saved,
    write_csv,
)
from polyvit.reports.compare.curves import draw_losses, draw_metrics
from polyvit.reports.compare.heat_maps import draw_differences, draw_forgetting, draw_key
from polyvit.reports.compare.paper import paper_cells, paper_table
from polyvit.reports.compare.run_styles import METRIC_WORDS, two_lines
from polyvit.reports.compare.settings import L_ADAPT, SCHEDULE, SEED
from polyvit.reports.compare.sizes import draw_sizes
from polyvit.reports.compare.tradeoffs import draw_alone, draw_pareto
from polyvit.reports.html import Cell, Column, FactBox, Figure, Table, render
from polyvit.reports.style import amount, percent

MOST_KEYS = 4
"""Keys that get a heat map of their own."""
MOST_VALUES = 8
"""Values of a key in a heat map; a key with more (a learning rate drawn at random) gets none."""


@dataclass(frozen=True)
class Section:
    """One picture of the page with a sentence about it. figure: None where nothing was drawn; `about` says why."""

    title: str
    about: str
    figure: Figure | None


def write_report(
    runs: Sequence[RunSummary], out: Path, title: str, baselines: Sequence[RunSummary] = (), command: str = ""
) -> dict[str, Path]:
    """Write leaderboard, pictures and page. Returns the files, by name.

    runs: to compare. out: the folder, created if absent. title: of the page. baselines: runs of one task each;
    those among `runs` count too (see `compare`). command: the shell line that makes this report again; "": it is
    put together from the runs' folders. Raises UserError where nothing can be compared or `out` cannot be written.
    """
    comparison = compare(runs, baselines)
    try:
        out.mkdir(parents=True, exist_ok=True)
        rows = leaderboard(comparison)
        write_csv(rows, out / "leaderboard.csv")
        sections = draw_all(comparison, out)
        everything = list({run.folder: run for run in (*runs, *baselines)}.values())
        (out / "table.md").write_text(paper_table(everything), encoding="utf-8")
        html = page(comparison, title, sections, command, paper_cells(everything))
        (out / "report.html").write_text(html, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error}); give another --out folder") from None
    drawn = [section.figure.path for section in sections if section.figure]
    return {path.name: path for path in (out / "report.html", out / "leaderboard.csv", out / "table.md", *drawn)}


def draw_all(comparison: Comparison, out: Path) -> list[Section]:
    """All pictures, in the order of the page."""
    sections = [_key_section(comparison, key, out) for key in _drawn_keys(comparison)]
    if comparison.baselines:
        about = (
            "Every task was also trained alone, by a model of its own. Above zero, co-training helped the task; "
            "below, it cost. Where several single-task runs of a task were given, the best of them counts."
        )
        sections.append(
            _drawn("One model against one for each task", about, out / "alone.png", draw_alone, comparison)
        )
        about = "The same difference for every run, with its mean: which settings cost which tasks."
        sections.append(
            _drawn("Differences of all runs", about, out / "differences.png", draw_differences, comparison)
        )
    about = "Fewer parameters for the same quality: up and to the left. Labels that would overlap are left out."
    swept = any(run.config.sweep.space for run in comparison.runs)
    file, draw = ("sizes.png", draw_sizes) if swept else ("pareto.png", draw_pareto)
    sections.append(_drawn("Size against quality", about, out / file, draw, comparison))
    about = "Values on each task's own evaluation split, and when the schedule trained the task."
    if any(run.config.schedule.kind == "task_by_task" for run in comparison.runs):
        about += " Task by task trains each task in one block; what was learned can fade in the blocks after it."
    sections.append(_drawn("Learning curves", about, out / "metrics.png", draw_metrics, comparison))
    about = "The mean loss of the task's own minibatches, as an exponential moving average."
    sections.append(_drawn("Training loss", about, out / "losses.png", draw_losses, comparison))
    about = (
        "How far each task has fallen from its best evaluation. The best of many noisy evaluations is too high "
        "for every run alike, so read it between runs and not by itself."
    )
    sections.append(_drawn("Forgetting", about, out / "forgetting.png", draw_forgetting, comparison))
    return sections


def _drawn_keys(comparison: Comparison) -> list[str]:
    """Keys that get a heat map: schedule and L_adapt first, then those that a sweep varied."""
    few = [key for key, values in comparison.keys.items() if len(set(map(str, values.values()))) <= MOST_VALUES]
    first = [key for key in (SCHEDULE, L_ADAPT) if key in few]
    swept = {key for run in comparison.runs for key in run.config.sweep.space} - {SEED}
    return [*first, *(key for key in few if key in swept and key not in first)][:MOST_KEYS]


def _key_section(comparison: Comparison, key: str, out: Path) -> Section:
    name = {SCHEDULE: "Schedules", L_ADAPT: "Adaptor blocks"}.get(key, key)
    others = [other for other in comparison.keys if other != key]
    about = f"Runs with the same {key}, averaged"
    about += (
        f" over what else differs ({', '.join(others[:4])}{' ...' if len(others) > 4 else ''})." if others else "."
    )
    if any(not run.finished for run in comparison.runs):
        about += " Runs that were stopped early count only in rows where no run came to its end."
    path = out / f"by_{key.replace('.', '_')}.png"
    return Section(name, about, Figure(path, draw_key(comparison, key, path)))


def _drawn(
    title: str, about: str, path: Path, draw: Callable[[Comparison, Path], str | None], comparison: Comparison
) -> Section:
    says = draw(comparison, path)
    if says is None:
        path.unlink(missing_ok=True)  # of an earlier report in the same folder
        return Section(title, _MISSING[path.name], None)
    return Section(title, about, Figure(path, says))


_MISSING = {
    "pareto.png": "Not drawn: all runs have the same number of parameters.",
    "sizes.png": "Not drawn: no trial has been evaluated.",
    "metrics.png": "Not drawn: needs several evaluations of a run, and these were evaluated once. Set "
    "train.eval_every to evaluate on the way.",
    "forgetting.png": "Not drawn: forgetting is the best evaluation minus the last one, and these runs were "
    "evaluated once. Set train.eval_every to evaluate on the way.",
    "losses.png": "Not drawn: these runs have kept no curves (their history folders are absent or empty).",
}


# ------------------------------------------------------------------------------------------------- the page


def page(
    comparison: Comparison, title: str, sections: Sequence[Section], command: str, paper: Table
) -> str:  # fmt: skip
    """The whole page as HTML, pictures inside. paper: the table laid out as the paper's."""
    return render(
        "comparison.html.j2",
        title=title,
        subtitle=_subtitle(comparison),
        facts=_facts(comparison),
        notes=comparison.notes,
        order=_order_words(comparison),
        leaderboard=_leaderboard_table(comparison),
        paper=paper,
        sections=sections,
        differences=_differences_table(comparison),
        commands=commands(comparison, command),
    )


def commands(comparison: Comparison, command: str) -> list[str]:
    """Shell lines: each run, its single-task models, this report."""
    lines = ["# each run, by its own config (give --name to choose the new run's name)"]
    lines += [f"polyvit cotrain {_quoted(run.folder / 'config.yaml')}" for run in comparison.runs]
    if comparison.best.steps and len(comparison.best.config.tasks) > 1:
        task = next(iter(comparison.best.config.tasks))
        config = _quoted(comparison.best.folder / "config.yaml")
        steps = comparison.best.schedule.counts()[task]
        lines += ["", "# one task alone, for as many steps as the best run gave it; the same for each task"]
        lines.append(f"polyvit cotrain {config} --only {task} schedule.kind=weighted schedule.steps={steps}")
    lines += ["", "# the best model: measured again; this report again"]
    lines.append(f"polyvit evaluate {_quoted(comparison.best.folder)}")
    folders = [_quoted(run.folder) for run in comparison.runs]
    alone = [f"--baseline {_quoted(b.folder)}" for b in comparison.baselines.values() if b.folder]
    return [*lines, command or " \\\n    ".join(["polyvit compare", *folders, *alone])]


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _subtitle(comparison: Comparison) -> str:
    tasks = [f"{task} ({METRIC_WORDS[comparison.metric(task)]})" for task in comparison.tasks]
    counts = f"{_count(comparison.runs, 'run')}, {_count(comparison.tasks, 'task')}"
    return f"{counts}: {', '.join(tasks)}. All metrics in percent."


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _order_words(comparison: Comparison) -> str:
    if comparison.objective == "worst_regression":
        return "Best first by the worst difference to a single-task model, in points."
    return "Best first by the mean over tasks of the metric."


def _facts(comparison: Comparison) -> list[FactBox]:
    best, worst = comparison.best, comparison.worst(comparison.best)
    facts = [
        FactBox(comparison.labels[best.name], "best run"),
        FactBox(f"{percent(comparison.mean(best))} %", "its mean over tasks"),
        FactBox(amount(best.total_parameters), "parameters, all heads included"),
    ]
    if saved := parameters_saved(best, comparison.baselines):
        label = f"than {amount(saved[0])} in {len(best.config.tasks)} single models"
        facts.append(FactBox(f"{saved[1]:.1f}x fewer", label))
    if worst:
        words = "furthest below" if worst[1] < 0 else "least above"
        label = f"{words} its single-task model: {worst[0]}"
        facts.append(FactBox(f"{percent(worst[1], sign=True)} points", label))
    return facts


def _leaderboard_table(comparison: Comparison) -> Table:
    unfinished = any(not run.finished for run in comparison.runs)
    columns = [Column(["#"]), Column(["run"], word=True)]
    columns += [Column(["status"], word=True)] if unfinished else []
    columns += [Column(["parameters"]), Column(["mean"])]
    columns += [Column(["worst", "difference"])] if comparison.baselines else []
    for task in comparison.tasks:
        columns.append(Column([*two_lines(task).splitlines(), METRIC_WORDS[comparison.metric(task)]]))
    best = {task: _best([run.values.get(task) for run in comparison.runs]) for task in comparison.tasks}
    top = _best([comparison.mean(run) for run in comparison.runs])
    rows = []
    for rank, run in enumerate(comparison.runs, start=1):
        mean, worst = comparison.mean(run), comparison.worst(run)
        row = [Cell(rank), Cell(comparison.labels[run.name], word=True, hover=run.name)]
        row += [Cell(run.status, word=True)] if unfinished else []
        row += [Cell(amount(run.total_parameters)), Cell(percent(mean), best=mean is not None and mean == top)]
        if comparison.baselines:
            row.append(Cell(f"{percent(worst[1], sign=True)} {worst[0]}" if worst else "–"))
        for task in comparison.tasks:
            value = run.values.get(task)
            row.append(Cell(percent(value), best=value is not None and value == best[task]))
        rows.append(row)
    return Table(columns, rows, mark_first=True)


def _best(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _differences_table(comparison: Comparison) -> Table | None:
    """A column a key that differs; None where all runs have the same settings."""
    if not comparison.keys:
        return None
    columns = [Column(["run"], word=True), *(Column([key]) for key in comparison.keys)]
    rows = [
        [Cell(run.name, word=True), *(Cell(values[run.name]) for values in comparison.keys.values())]
        for run in comparison.runs
    ]
    return Table(columns, rows)
