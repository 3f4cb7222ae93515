"""Heat maps of a comparison: keys, forgetting, differences to baselines.

In: a `Comparison`. Out: PNG files; each function returns what its picture says, in a sentence. Metrics
are drawn in percent.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import LinearSegmentedColormap

from polyvit.reports.compare.comparison import Comparison, cells, differences, forgetting, minibatches
from polyvit.reports.compare.run_styles import METRIC_WORDS, two_lines
from polyvit.reports.compare.settings import SCHEDULE, key_words
from polyvit.reports.style import FAINT, INK, PALETTE, percent, picture

_DIFFERENCES = LinearSegmentedColormap.from_list("differences", [PALETTE[1], "#F7F7F7", PALETTE[0]])
_LOST = LinearSegmentedColormap.from_list("lost", ["#F7F7F7", PALETTE[1]])
MOST_ROWS = 24
"""Runs in a heat map of runs: the best."""


def draw_key(comparison: Comparison, key: str, path: Path) -> str:
    """A key's values x tasks: the metric's mean over the runs of a cell, coloured within each task, and its
    standard deviation over seeds where there are several.
    """
    rows = cells(comparison, key)
    names = [_row_name(key, row.value, row.runs, row.stopped) for row in rows]
    table = [[row.means.get(task) for task in comparison.tasks] + [row.mean] for row in rows]
    counts = [[row.n[task] for task in comparison.tasks] + [row.runs] for row in rows]
    known = [row for row in rows if row.mean is not None]
    top = max(known, key=lambda row: row.mean or 0.0) if known else rows[0]
    ahead = sum(_is_best(table, i, rows.index(top)) for i in range(len(comparison.tasks)))
    says = (
        f"{_key_title(key)}: {key_words(key, top.value)} leads on average ({percent(top.mean)} %), "
        f"best or level on {ahead} of {len(comparison.tasks)} tasks"
    )
    taken = {minibatches(run) for run in comparison.runs if run.finished}
    if len(taken) > 1:
        says = f"{_key_title(key)}: runs of {min(taken):,} to {max(taken):,} minibatches, so no value is the best"
    about = "Metric in percent. Dark: best of a column, light: worst; framed: best. n: runs behind a row's means."
    spreads = [[row.sds.get(task) for task in comparison.tasks] + [row.sd] for row in rows]
    several = any(sd is not None for line in spreads for sd in line)
    about += "\n±: standard deviation over seeds." if several else ""
    notes = [
        [f"n={c}" if c and c != row.runs else "" for c in line] for line, row in zip(counts, rows, strict=True)
    ]
    width, height = _heat_size(names, len(comparison.tasks))
    with picture(path, width, height + (0.19 if several else 0), says, about, stretch=False) as figure:
        colours = _column_colours(table)
        _heat(figure.subplots(), comparison, names, table, colours, framed=True, notes=notes, spreads=spreads)
    return says


def draw_forgetting(comparison: Comparison, path: Path) -> str | None:
    """Runs x tasks: best evaluation so far minus the last. None, and no file, where no run has two evaluations."""
    lost = {run.name: by_task for run in comparison.runs if (by_task := forgetting(run))}
    if not lost:
        return None
    table = {name: _with_mean([by_task.get(task) for task in comparison.tasks]) for name, by_task in lost.items()}
    means = {name: row[-1] or 0.0 for name, row in table.items()}
    most, least = max(means, key=lambda name: means[name]), min(means, key=lambda name: means[name])
    who = comparison.labels[most] if means[most] > means[least] or len(means) == 1 else "every run"
    says = f"Forgotten by the end: {percent(means[most])} points on average"
    says += f" by {who}" if len(comparison.runs) > 1 else ""
    if means[most] > means[least]:
        says += f", {percent(means[least])} by {comparison.labels[least]}"
    about = "Best evaluation on the way minus the last one, in points; 0: nothing forgotten."
    top = max([0.02, *(value for row in table.values() for value in row if value is not None)])
    _draw_runs(comparison, path, says, about, table, partial(_tint, "lost", low=0.0, high=top))
    return says


def draw_differences(comparison: Comparison, path: Path) -> str:
    """Runs x tasks: the value minus that of the task's single-task model."""
    tasks, baselines = comparison.tasks, comparison.baselines
    gaps = {run.name: by_task for run in comparison.runs if (by_task := differences(run.values, baselines))}
    table = {name: _with_mean([by_task.get(task) for task in tasks]) for name, by_task in gaps.items()}
    level = sum((row[-1] or 0.0) >= 0 for row in table.values())
    says = f"Against one model for each task: {level} of {len(table)} runs are level or better on average"
    about = "Co-trained minus trained alone, in points. Blue: co-training gained; orange: it lost."
    top = max([0.01, *(abs(value) for row in table.values() for value in row if value is not None)])
    tint = partial(_tint, "differences", low=-top, high=top)
    _draw_runs(comparison, path, says, about, table, tint, sign=True)
    return says


def _draw_runs(
    comparison: Comparison,
    path: Path,
    says: str,
    about: str,
    table: Mapping[str, Sequence[float | None]],
    tint: Callable[[float | None], Any],
    sign: bool = False,
) -> None:
    """A heat map of the best runs. `table`: a row a run, by name, best first."""
    shown = list(table)[:MOST_ROWS]
    about += " Runs best first." if len(shown) == len(table) else f" The {len(shown)} best of {len(table)} runs."
    labels, rows = [comparison.labels[name] for name in shown], [table[name] for name in shown]
    with picture(path, *_heat_size(labels, len(comparison.tasks)), says, about, stretch=False) as figure:
        colours = [[tint(value) for value in row] for row in rows]
        _heat(figure.subplots(), comparison, labels, rows, colours, sign=sign)


def _row_name(key: str, value: Any, runs: int, stopped: int) -> str:
    return f"{key_words(key, value)} (n = {runs}{', stopped early' if stopped else ''})"


def _key_title(key: str) -> str:
    return {SCHEDULE: "Schedules", "model.l_adapt": "Adaptor blocks (L_adapt)"}.get(key, key)


def _with_mean(row: list[float | None]) -> list[float | None]:
    known = [value for value in row if value is not None]
    return [*row, sum(known) / len(known) if known else None]


def _heat_size(names: Sequence[str], tasks: int) -> tuple[float, float]:
    return 1.6 + 0.075 * max(map(len, names)) + 0.86 * (tasks + 1), 1.75 + 0.36 * len(names)


def _is_best(table: Sequence[Sequence[float | None]], column: int, row: int) -> bool:
    """Whether a cell is its column's maximum (or level with it), where not all of the column is."""
    known = [value for line in table if (value := line[column]) is not None]
    value = table[row][column]
    return value is not None and value > max(known) - 1e-9 > min(known)


def _column_colours(table: Sequence[Sequence[float | None]]) -> list[list[Any]]:
    """From each column's worst to its best, over at least a tenth of the best: small differences look small."""
    columns = [[value for value in column if value is not None] or [0.0] for column in zip(*table, strict=True)]
    ends = [(min(*column, 0.9 * max(column)), max(column)) for column in columns]
    return [[_tint("Blues", value, *ends[i]) for i, value in enumerate(row)] for row in table]


def _tint(name: str, value: float | None, low: float, high: float) -> Any:
    """A pale version of a colour map, so that black text stays readable; grey for what is not known."""
    if value is None:
        return (0.96, 0.96, 0.96, 1.0)
    share = (value - low) / (high - low) if high > low else 1.0
    if name == "differences":
        return _DIFFERENCES(0.15 + 0.7 * share)
    return _LOST(0.75 * share) if name == "lost" else colormaps[name](0.04 + 0.54 * share)


def _heat(
    axes: Any,
    comparison: Comparison,
    names: Sequence[str],
    table: Sequence[Sequence[float | None]],
    colours: Sequence[Sequence[Any]],
    framed: bool = False,
    sign: bool = False,
    notes: Sequence[Sequence[str]] | None = None,
    spreads: Sequence[Sequence[float | None]] | None = None,
) -> None:
    """Cells with their numbers, tasks above, a mean column set apart. `table`, `spreads`: [rows][tasks + 1]."""
    places = [*range(len(comparison.tasks)), len(comparison.tasks) + 0.25]
    for y, row in enumerate(table):
        for i, value in enumerate(row):
            best = framed and _is_best(table, i, y)
            axes.add_patch(_box(places[i], y, colours[y][i], best))
            weight = "bold" if best or i == len(comparison.tasks) else "normal"
            text, colour = percent(value, sign), INK
            if not framed and text == "0.0":
                text, colour = "0", FAINT
            if spreads and spreads[y][i] is not None:
                text += f" ± {percent(spreads[y][i])}"
            axes.text(
                places[i], y, text, ha="center", va="center_baseline", fontweight=weight, color=colour,
                fontsize=8 if spreads and any(sd is not None for sd in spreads[y]) else 9,
            )  # fmt: skip
            if notes and notes[y][i]:
                axes.text(
                    places[i] + 0.45, y + 0.42, notes[y][i], ha="right", va="bottom", fontsize=6, color=FAINT
                )
    axes.set_xlim(-0.55, len(comparison.tasks) + 0.8)
    axes.set_ylim(len(table) - 0.45, -0.55)
    heads = [f"{two_lines(task)}\n{METRIC_WORDS[comparison.metric(task)]}" for task in comparison.tasks]
    axes.set_xticks(places, [*heads, "mean"], fontsize=8.5)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _box(x: float, y: float, colour: Any, framed: bool) -> Any:
    from matplotlib.patches import Rectangle

    edge, width = (INK, 1.4) if framed else ("white", 1.0)
    return Rectangle(
        (x - 0.47, y - 0.45), 0.94, 0.9, facecolor=colour, edgecolor=edge, linewidth=width, zorder=1 + framed
    )
