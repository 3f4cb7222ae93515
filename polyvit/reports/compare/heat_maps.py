"""Pictures of a comparison: their common style, and the heat maps (keys, forgetting, differences to baselines).

In: a `Comparison`. Out: files; each function returns what its picture says, in a sentence. Metrics are drawn in
percent. Colours are Okabe and Ito's, which people who are colour-blind can tell apart.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from polyvit.reports.compare.comparison import (
    SCHEDULE,
    SEED,
    Comparison,
    cells,
    differences,
    forgetting,
    key_words,
)

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B6B6B")
SCHEDULE_COLOURS = {
    "weighted": PALETTE[0], "uniform": PALETTE[4], "alternating": PALETTE[2], "task_by_task": PALETTE[1],
    "accumulating": PALETTE[3],
}  # fmt: skip
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
INK, FAINT, OTHER = "#222222", "#777777", "#BBBBBB"
METRIC_WORDS = {"top1": "top-1", "map": "mAP"}
_DIFFERENCES = LinearSegmentedColormap.from_list("differences", [PALETTE[1], "#F7F7F7", PALETTE[0]])
_LOST = LinearSegmentedColormap.from_list("lost", ["#F7F7F7", PALETTE[1]])
MOST_ROWS = 24
"""Runs in a heat map of runs: the best."""
_STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "text.color": INK, "legend.frameon": False, "savefig.dpi": 150,
    "axes.grid": False, "grid.color": "#E6E6E6", "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.08,
}  # fmt: skip


@contextmanager
def picture(
    path: Path, width: float, height: float, title: str, about: str = "", stretch: bool = True
) -> Iterator[Figure]:
    """A figure, inches, that is written to `path` in the end: a bold title that says what to see, faint lines.

    It is made wide enough for these; what is drawn grows with it where it may `stretch`.
    """
    wanted = width
    width = max(width, 0.3 + 0.107 * len(title), *(0.3 + 0.069 * len(line) for line in ["", *about.splitlines()]))
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        lines = 1 + len(about.splitlines())
        top = 1 - (0.12 + 0.22 + 0.19 * (lines - 1)) / height
        figure.text(0.012, 1 - 0.1 / height, title, fontsize=12.5, fontweight="bold", va="top")
        figure.text(0.012, 1 - 0.36 / height, about, fontsize=9, color=FAINT, va="top", linespacing=1.35)
        figure.get_layout_engine().set(rect=(0, 0, 1 if stretch else wanted / width, top))  # type: ignore[union-attr,call-arg]
        yield figure
        figure.draw_without_rendering()  # a second pass of the layout: ticks change with the size of the axes
        figure.savefig(path)


def percent(value: float | None, sign: bool = False) -> str:
    """A fraction as a percentage with one decimal; a dash where it is not known. No minus before a zero."""
    if value is None:
        return "–"
    text = f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def amount(count: float) -> str:
    """93.1M, 630k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.0f}"


def run_styles(made: Comparison) -> dict[str, tuple[str, Any]]:
    """A colour and a dash for each run by name: the same in all pictures, and for runs that differ in seed alone.

    The first key with few enough values gives the colour, what is left tells dashes; where that is not enough, the
    best settings get a colour each and the others are grey.
    """
    names = [run.name for run in made.runs]
    settings = {name: settings_words(made, name) for name in names}
    for key in [key for key in made.keys if key != SEED] or list(made.keys):
        values = made.keys[key]
        kinds = list(dict.fromkeys(map(str, values.values())))
        rests = {name: settings_words(made, name, key) for name in names}
        order = sorted(set(rests.values()))
        told = {(str(values[name]), rests[name]) for name in names}
        apart = len(told) == len({(str(values[name]), rests[name], settings[name]) for name in names})
        if len(kinds) <= len(PALETTE) and len(order) <= len(DASHES) and apart:
            known = SCHEDULE_COLOURS if key == SCHEDULE else dict(zip(kinds, PALETTE, strict=False))
            return {n: (known[str(values[n])], DASHES[order.index(rests[n])]) for n in names}
    kinds = list(dict.fromkeys(settings.values()))
    colours = dict(zip(kinds, [*PALETTE, *[OTHER] * len(kinds)], strict=False))
    return {name: (colours[settings[name]], "-") for name in names}


def settings_words(made: Comparison, name: str, key: str | None = None) -> str:
    """A run's label without its seed and without what `key` says; with the seed where it says nothing else."""
    parts = made.labels[name].split(", ")
    left_out = {key_words(k, made.keys[k][name]) for k in (SEED, key) if k in made.keys}
    kept = ", ".join(part for part in parts if part not in left_out)
    return kept if kept or key else made.labels[name]


def draw_key(made: Comparison, key: str, path: Path) -> str:
    """A key's values x tasks: the metric's mean over the runs of a cell, coloured within each task, and its
    standard deviation over seeds where there are several.
    """
    rows = cells(made, key)
    names = [_row_name(key, row.value, row.runs, row.stopped) for row in rows]
    table = [[row.means.get(task) for task in made.tasks] + [row.mean] for row in rows]
    counts = [[row.n[task] for task in made.tasks] + [row.runs] for row in rows]
    known = [row for row in rows if row.mean is not None]
    top = max(known, key=lambda row: row.mean or 0.0) if known else rows[0]
    ahead = sum(_is_best(table, i, rows.index(top)) for i in range(len(made.tasks)))
    says = (
        f"{_key_title(key)}: {key_words(key, top.value)} leads on average ({percent(top.mean)} %), "
        f"best or level on {ahead} of {len(made.tasks)} tasks"
    )
    about = "Metric in percent. Dark: best of a column, light: worst; framed: best. n: runs behind a row's means."
    spreads = [[row.sds.get(task) for task in made.tasks] + [row.sd] for row in rows]
    several = any(sd is not None for line in spreads for sd in line)
    about += "\n±: standard deviation over seeds." if several else ""
    notes = [
        [f"n={c}" if c and c != row.runs else "" for c in line] for line, row in zip(counts, rows, strict=True)
    ]
    width, height = _heat_size(names, len(made.tasks))
    with picture(path, width, height + (0.19 if several else 0), says, about, stretch=False) as figure:
        colours = _column_colours(table)
        _heat(figure.subplots(), made, names, table, colours, framed=True, notes=notes, spreads=spreads)
    return says


def draw_forgetting(made: Comparison, path: Path) -> str | None:
    """Runs x tasks: best evaluation so far minus the last. None, and no file, where no run has two evaluations."""
    lost = {run.name: found for run in made.runs if (found := forgetting(run))}
    if not lost:
        return None
    table = {name: _with_mean([found.get(task) for task in made.tasks]) for name, found in lost.items()}
    means = {name: row[-1] or 0.0 for name, row in table.items()}
    most, least = max(means, key=lambda name: means[name]), min(means, key=lambda name: means[name])
    who = made.labels[most] if means[most] > means[least] or len(means) == 1 else "every run"
    says = f"Forgotten by the end: {percent(means[most])} points on average"
    says += f" by {who}" if len(made.runs) > 1 else ""
    if means[most] > means[least]:
        says += f", {percent(means[least])} by {made.labels[least]}"
    about = "Best evaluation on the way minus the last one, in points; 0: nothing forgotten."
    top = max(0.02, *(value for row in table.values() for value in row if value is not None))
    _draw_runs(made, path, says, about, table, lambda value: _tint("lost", value, 0.0, top))
    return says


def draw_differences(made: Comparison, path: Path) -> str:
    """Runs x tasks: the value minus that of the task's single-task model."""
    gaps = {run.name: found for run in made.runs if (found := differences(run.values, made.baselines))}
    table = {name: _with_mean([found.get(task) for task in made.tasks]) for name, found in gaps.items()}
    level = sum((row[-1] or 0.0) >= 0 for row in table.values())
    says = f"Against one model for each task: {level} of {len(table)} runs are level or better on average"
    about = "Co-trained minus trained alone, in points. Blue: co-training gained; orange: it lost."
    top = max(0.01, *(abs(value) for row in table.values() for value in row if value is not None))
    _draw_runs(made, path, says, about, table, lambda value: _tint("differences", value, -top, top), sign=True)
    return says


def _draw_runs(
    made: Comparison,
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
    labels, rows = [made.labels[name] for name in shown], [table[name] for name in shown]
    with picture(path, *_heat_size(labels, len(made.tasks)), says, about, stretch=False) as figure:
        _heat(figure.subplots(), made, labels, rows, [[tint(value) for value in row] for row in rows], sign=sign)


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
    made: Comparison,
    names: Sequence[str],
    table: Sequence[Sequence[float | None]],
    colours: Sequence[Sequence[Any]],
    framed: bool = False,
    sign: bool = False,
    notes: Sequence[Sequence[str]] | None = None,
    spreads: Sequence[Sequence[float | None]] | None = None,
) -> None:
    """Cells with their numbers, tasks above, a mean column set apart. `table`, `spreads`: [rows][tasks + 1]."""
    places = [*range(len(made.tasks)), len(made.tasks) + 0.25]
    for y, row in enumerate(table):
        for i, value in enumerate(row):
            best = framed and _is_best(table, i, y)
            axes.add_patch(_box(places[i], y, colours[y][i], best))
            weight = "bold" if best or i == len(made.tasks) else "normal"
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
    axes.set_xlim(-0.55, len(made.tasks) + 0.8)
    axes.set_ylim(len(table) - 0.45, -0.55)
    heads = [f"{broken(task)}\n{METRIC_WORDS[made.metric(task)]}" for task in made.tasks]
    axes.set_xticks(places, [*heads, "mean"], fontsize=8.5)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def broken(task: str) -> str:
    """A long name over two lines, at an underscore."""
    head, _, tail = task.partition("_")
    return f"{head}\n{tail}" if tail and len(task) > 11 else task


def _box(x: float, y: float, colour: Any, framed: bool) -> Any:
    from matplotlib.patches import Rectangle

    edge, width = (INK, 1.4) if framed else ("white", 1.0)
    return Rectangle(
        (x - 0.47, y - 0.45), 0.94, 0.9, facecolor=colour, edgecolor=edge, linewidth=width, zorder=1 + framed
    )
