"""A comparison as files: leaderboard.csv, pictures, and report.html, one page that needs nothing but itself.

In: `RunSummary`s. Out: a folder; the page holds the pictures inside, loads nothing, and opens from anywhere.
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyvit.errors import UserError
from polyvit.reports.compare.comparison import (
    L_ADAPT,
    SCHEDULE,
    SEED,
    Comparison,
    RunSummary,
    compare,
    leaderboard,
    parameters_saved,
    write_csv,
)
from polyvit.reports.compare.curves import draw_losses, draw_metrics
from polyvit.reports.compare.heat_maps import (
    METRIC_WORDS,
    amount,
    broken,
    draw_differences,
    draw_forgetting,
    draw_key,
    percent,
)
from polyvit.reports.compare.tradeoffs import draw_alone, draw_pareto
from polyvit.reports.html import cell, document, fact_boxes, image, safe, table

MOST_KEYS = 4
"""Keys that get a heat map of their own."""
MOST_VALUES = 8
"""Values of a key in a heat map; a key with more (a learning rate drawn at random) gets none."""


@dataclass(frozen=True)
class Section:
    """One picture of the page, or a sentence that says why there is none. path: None where there is none."""

    title: str
    about: str
    path: Path | None
    says: str


def write_report(
    runs: Sequence[RunSummary], out: Path, title: str, baselines: Sequence[RunSummary] = (), command: str = ""
) -> dict[str, Path]:
    """Everything about `runs` into the folder `out`, made if absent. Returns the files written, by name.

    baselines: runs of one task each; those among `runs` count too (see `compare`). command: what makes this report
    again. Raises UserError where nothing can be compared or `out` cannot be written.
    """
    made = compare(runs, baselines)
    try:
        out.mkdir(parents=True, exist_ok=True)
        rows = leaderboard(made)
        write_csv(rows, out / "leaderboard.csv")
        sections = draw_all(made, out)
        (out / "report.html").write_text(page(made, title, sections, command), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error}); give another --out folder") from None
    drawn = [section.path for section in sections if section.path]
    return {path.name: path for path in (out / "report.html", out / "leaderboard.csv", *drawn)}


def draw_all(made: Comparison, out: Path) -> list[Section]:
    """All pictures, in the order of the page."""
    sections = [_key_section(made, key, out) for key in _drawn_keys(made)]
    if made.baselines:
        about = (
            "Every task was also trained alone, by a model of its own. Above zero, co-training helped the task; "
            "below, it cost. Where several single-task runs of a task were given, the best of them counts."
        )
        sections.append(_drawn("One model against one for each task", about, out / "alone.png", draw_alone, made))
        about = "The same difference for every run, with its mean: which settings cost which tasks."
        sections.append(_drawn("Differences of all runs", about, out / "differences.png", draw_differences, made))
    about = "Fewer parameters for the same quality: up and to the left. Labels that would overlap are left out."
    sections.append(_drawn("Size against quality", about, out / "pareto.png", draw_pareto, made))
    about = "Values on each task's own evaluation split, and when the schedule trained the task."
    if any(run.config.schedule.kind == "task_by_task" for run in made.runs):
        about += " Task by task trains each task in one block; what was learned can fade in the blocks after it."
    sections.append(_drawn("Learning curves", about, out / "metrics.png", draw_metrics, made))
    about = "The mean loss of the task's own minibatches, as an exponential moving average."
    sections.append(_drawn("Training loss", about, out / "losses.png", draw_losses, made))
    about = (
        "How far each task has fallen from its best evaluation. The best of many noisy evaluations is too high "
        "for every run alike, so read it between runs and not by itself."
    )
    sections.append(_drawn("Forgetting", about, out / "forgetting.png", draw_forgetting, made))
    return sections


def _drawn_keys(made: Comparison) -> list[str]:
    """Schedule and L_adapt first; of the others only keys that every run was given a value for on purpose."""
    few = [key for key, values in made.keys.items() if len(set(map(str, values.values()))) <= MOST_VALUES]
    first = [key for key in (SCHEDULE, L_ADAPT) if key in few]
    swept = {key for run in made.runs for key in run.config.sweep.space} - {SEED}
    return [*first, *(key for key in few if key in swept and key not in first)][:MOST_KEYS]


def _key_section(made: Comparison, key: str, out: Path) -> Section:
    name = {SCHEDULE: "Schedules", L_ADAPT: "Adaptor blocks"}.get(key, key)
    others = [other for other in made.keys if other != key]
    about = f"Runs with the same {key}, averaged"
    about += (
        f" over what else differs ({', '.join(others[:4])}{' ...' if len(others) > 4 else ''})." if others else "."
    )
    if any(not run.finished for run in made.runs):
        about += " Runs that were stopped early count only in rows where no run came to its end."
    path = out / f"by_{key.replace('.', '_')}.png"
    return Section(name, about, path, draw_key(made, key, path))


def _drawn(
    title: str, about: str, path: Path, draw: Callable[[Comparison, Path], str | None], made: Comparison
) -> Section:
    says = draw(made, path)
    if says is None:
        path.unlink(missing_ok=True)  # of an earlier report in the same folder
        return Section(title, "", None, _MISSING[path.name])
    return Section(title, about, path, says)


_MISSING = {
    "pareto.png": "Not drawn: all runs have the same number of parameters.",
    "metrics.png": "Not drawn: needs several evaluations of a run, and these were evaluated once. Set "
    "train.eval_every to evaluate on the way.",
    "forgetting.png": "Not drawn: forgetting is the best evaluation minus the last one, and these runs were "
    "evaluated once. Set train.eval_every to evaluate on the way.",
    "losses.png": "Not drawn: these runs have kept no curves (their history folders are absent or empty).",
}


# ------------------------------------------------------------------------------------------------- the page


def page(made: Comparison, title: str, sections: Sequence[Section], command: str) -> str:
    """The whole page as HTML, pictures inside."""
    parts = [f"<h1>{safe(title)}</h1>", f'<p class="faint">{safe(_subtitle(made))}</p>', _facts(made)]
    parts += [f'<div class="note">{safe(note)}</div>' for note in made.notes]
    parts += ["<h2>Leaderboard</h2>", _order_words(made), _leaderboard_table(made)]
    for section in sections:
        parts.append(f"<h2>{safe(section.title)}</h2>")
        if section.path is None:
            parts.append(f'<div class="note">{safe(section.says)}</div>')
            continue
        parts += [f"<p>{safe(section.about)}</p>", image(section.path, section.says)]
    parts += ["<h2>What differs between the runs</h2>", _differences_table(made)]
    parts += ["<h2>Do it again</h2>", f"<pre>{safe(chr(10).join(commands(made, command)))}</pre>"]
    return document(title, parts)


def commands(made: Comparison, command: str) -> list[str]:
    """Shell lines: each run, its single-task models, this report."""
    lines = ["# each run, by its own config (give --name to choose the new run's name)"]
    lines += [f"polyvit cotrain {_quoted(run.folder / 'config.yaml')}" for run in made.runs]
    if made.best.steps and len(made.best.config.tasks) > 1:
        task = next(iter(made.best.config.tasks))
        config = _quoted(made.best.folder / "config.yaml")
        steps = made.best.schedule.counts()[task]
        lines += ["", "# one task alone, for as many steps as the best run gave it; the same for each task"]
        lines.append(f"polyvit cotrain {config} --only {task} schedule.kind=weighted schedule.steps={steps}")
    lines += ["", "# the best model: measured again; this report again"]
    lines.append(f"polyvit evaluate {_quoted(made.best.folder)}")
    folders = [_quoted(run.folder) for run in made.runs]
    alone = [f"--baseline {_quoted(b.folder)}" for b in made.baselines.values() if b.folder]
    return [*lines, command or " \\\n    ".join(["polyvit compare", *folders, *alone])]


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _subtitle(made: Comparison) -> str:
    tasks = [f"{task} ({METRIC_WORDS[made.metric(task)]})" for task in made.tasks]
    return f"{_count(made.runs, 'run')}, {_count(made.tasks, 'task')}: {', '.join(tasks)}. All metrics in percent."


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _order_words(made: Comparison) -> str:
    if made.objective == "worst_regression":
        words = "Best first by the worst difference to a single-task model, in points."
    else:
        words = "Best first by the mean over tasks of the metric."
    return f'<p class="faint">{words} Shaded: best of a column. The same as data: leaderboard.csv.</p>'


def _facts(made: Comparison) -> str:
    best, worst = made.best, made.worst(made.best)
    facts = [(made.labels[best.name], "best run"), (f"{percent(made.mean(best))} %", "its mean over tasks")]
    facts.append((amount(best.total_parameters), "parameters, all heads included"))
    if saved := parameters_saved(best, made.baselines):
        facts.append(
            (f"{saved[1]:.1f}x fewer", f"than {amount(saved[0])} in {len(best.config.tasks)} single models")
        )
    if worst:
        words = "furthest below" if worst[1] < 0 else "least above"
        facts.append((f"{percent(worst[1], sign=True)} points", f"{words} its single-task model: {worst[0]}"))
    return fact_boxes(facts)


def _leaderboard_table(made: Comparison) -> str:
    unfinished = any(not run.finished for run in made.runs)
    heads = ["#", "run", *(["status"] if unfinished else []), "parameters", "mean"]
    heads += ["worst<br>difference"] if made.baselines else []
    names = {task: broken(task).replace("\n", "<br>") for task in made.tasks}
    heads += [f"{names[task]}<br>{METRIC_WORDS[made.metric(task)]}" for task in made.tasks]
    best = {task: _best([run.values.get(task) for run in made.runs]) for task in made.tasks}
    top = _best([made.mean(run) for run in made.runs])
    lines = []
    for rank, run in enumerate(made.runs, start=1):
        mean, worst = made.mean(run), made.worst(run)
        line = [cell(rank), cell(made.labels[run.name], word=True, hover=run.name)]
        line += [cell(run.status, word=True)] if unfinished else []
        line += [cell(amount(run.total_parameters)), cell(percent(mean), best=mean is not None and mean == top)]
        if made.baselines:
            line.append(cell(f"{percent(worst[1], sign=True)} {worst[0]}" if worst else "–"))
        for task in made.tasks:
            value = run.values.get(task)
            line.append(cell(percent(value), best=value is not None and value == best[task]))
        lines.append(line)
    return table(heads, lines, words=(1, 2) if unfinished else (1,))


def _best(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _differences_table(made: Comparison) -> str:
    if not made.keys:
        return "<p>Nothing: the runs have the same settings.</p>"
    lines = [
        [cell(run.name, word=True), *(cell(values[run.name]) for values in made.keys.values())]
        for run in made.runs
    ]
    return table(["run", *made.keys], lines, words=(0,), first=False)
