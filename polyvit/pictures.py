"""Pictures of a comparison, one PNG each: heat maps, curves, forgetting, Pareto front, differences to baselines.

In: a `Comparison`. Out: files; each function returns what its picture says, in a sentence. Metrics are drawn in
percent. Colours are Okabe and Ito's, which people who are colour-blind can tell apart.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.colors import to_rgb
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from polyvit.compare import (
    SCHEDULE,
    Comparison,
    cells,
    differences,
    forgetting,
    key_words,
    metric_of,
    parameters_saved,
    pareto,
)
from polyvit.schedule import Schedule
from polyvit.summary import RunSummary

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B6B6B")
SCHEDULE_COLOURS = {
    "weighted": PALETTE[0], "uniform": PALETTE[4], "alternating": PALETTE[2], "task_by_task": PALETTE[1],
    "accumulating": PALETTE[3],
}  # fmt: skip
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
INK, FAINT, OTHER = "#222222", "#777777", "#BBBBBB"
METRIC_WORDS = {"top1": "top-1", "map": "mAP"}
MOST_ROWS = 24
"""Runs in a heat map of runs: the best."""
_BINS = 240
_STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "text.color": INK, "legend.frameon": False, "savefig.dpi": 150,
    "axes.grid": False, "grid.color": "#E6E6E6", "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.08,
}  # fmt: skip


@contextmanager
def _figure(path: Path, width: float, height: float, title: str, about: str = "") -> Iterator[Figure]:
    """A figure in inches that is written to `path` in the end: a bold title that says what to see, a faint line."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        lines = 1 + len(about.splitlines())
        top = 1 - (0.12 + 0.22 + 0.19 * (lines - 1)) / height
        figure.text(0.012, 1 - 0.1 / height, title, fontsize=12.5, fontweight="bold", va="top")
        figure.text(0.012, 1 - 0.36 / height, about, fontsize=9, color=FAINT, va="top", linespacing=1.35)
        figure.get_layout_engine().set(rect=(0, 0, 1, top))  # type: ignore[union-attr,call-arg]
        yield figure
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


# ------------------------------------------------------------------------------------------------- heat maps


def draw_key(made: Comparison, key: str, path: Path) -> str:
    """A key's values x tasks: the metric's mean over the runs of a cell, coloured within each task."""
    rows = cells(made, key)
    names = [_row_name(key, row.value, row.runs, row.stopped) for row in rows]
    table = [[row.means.get(task) for task in made.tasks] + [row.mean] for row in rows]
    counts = [[row.n[task] for task in made.tasks] + [row.runs] for row in rows]
    known = [row for row in rows if row.mean is not None]
    top = max(known, key=lambda row: row.mean or 0.0) if known else rows[0]
    ahead = sum(_is_best(table, i, rows.index(top)) for i in range(len(made.tasks)))
    says = (
        f"{_key_title(key)}: {key_words(key, top.value)} leads on average ({percent(top.mean)} %) "
        f"and on {ahead} of {len(made.tasks)} tasks"
    )
    about = "Metric in percent. Dark: best of a column, light: worst; framed: best. n: runs behind a row's means."
    with _figure(path, *_heat_size(names, len(made.tasks)), says, about) as figure:
        axes = figure.subplots()
        notes = [
            [f"n={c}" if c and c != row.runs else "" for c in line] for line, row in zip(counts, rows, strict=True)
        ]
        _heat(axes, made, names, table, _column_colours(table), framed=True, notes=notes)
    return says


def draw_forgetting(made: Comparison, path: Path) -> str | None:
    """Runs x tasks: best evaluation so far minus the last. None, and no file, where no run has two evaluations."""
    lost = {run.name: forgetting(run) for run in made.runs}
    runs = [run for run in made.runs if lost[run.name]][:MOST_ROWS]
    if not runs:
        return None
    table = [_with_mean([lost[run.name].get(task) for task in made.tasks]) for run in runs]
    means = [row[-1] or 0.0 for row in table]
    most, least = runs[int(np.argmax(means))], runs[int(np.argmin(means))]
    says = f"Forgotten by the end: {percent(max(means))} points on average by {made.labels[most.name]}"
    if len(runs) > 1:
        says += f", {percent(min(means))} by {made.labels[least.name]}"
    about = "Best evaluation on the way minus the last one, in points; 0: nothing forgotten. Runs best first."
    with _figure(path, *_heat_size([made.labels[r.name] for r in runs], len(made.tasks)), says, about) as figure:
        scale = max(0.02, *(value for row in table for value in row if value is not None))
        _heat(
            figure.subplots(), made, [made.labels[run.name] for run in runs], table,
            [[_tint("Oranges", value, 0.0, scale) for value in row] for row in table],
        )  # fmt: skip
    return says


def draw_differences(made: Comparison, path: Path) -> str:
    """Runs x tasks: the value minus that of the task's single-task model."""
    runs = [run for run in made.runs if differences(run.values, made.baselines)][:MOST_ROWS]
    found = [differences(run.values, made.baselines) for run in runs]
    table = [_with_mean([row.get(task) for task in made.tasks]) for row in found]
    level = sum((row[-1] or 0.0) >= 0 for row in table)
    says = f"Against one model for each task: {level} of {len(runs)} runs are level or better on average"
    about = (
        "Co-trained minus trained alone, in points. Blue: co-training gained; orange: it lost. Runs best first."
    )
    with _figure(path, *_heat_size([made.labels[r.name] for r in runs], len(made.tasks)), says, about) as figure:
        scale = max(0.01, *(abs(value) for row in table for value in row if value is not None))
        _heat(
            figure.subplots(), made, [made.labels[run.name] for run in runs], table,
            [[_tint("PuOr", value, -scale, scale) for value in row] for row in table], sign=True,
        )  # fmt: skip
    return says


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
    """Whether a cell is its column's maximum, of at least two different values."""
    known = [line[column] for line in table if line[column] is not None]
    return len(set(known)) > 1 and table[row][column] == max(value for value in known if value is not None)


def _column_colours(table: Sequence[Sequence[float | None]]) -> list[list[Any]]:
    columns = [[value for value in column if value is not None] for column in zip(*table, strict=True)]
    ends = [(min(column), max(column)) if column else (0.0, 0.0) for column in columns]
    return [[_tint("Blues", value, *ends[i]) for i, value in enumerate(row)] for row in table]


def _tint(name: str, value: float | None, low: float, high: float) -> Any:
    """A colour map without its darkest and palest ends, so that black text stays readable."""
    if value is None:
        return (0.96, 0.96, 0.96, 1.0)
    share = (value - low) / (high - low) if high > low else 0.0
    return colormaps[name](0.18 + 0.64 * share) if name == "PuOr" else colormaps[name](0.62 * share)


def _heat(
    axes: Any,
    made: Comparison,
    names: Sequence[str],
    table: Sequence[Sequence[float | None]],
    colours: Sequence[Sequence[Any]],
    framed: bool = False,
    sign: bool = False,
    notes: Sequence[Sequence[str]] | None = None,
) -> None:
    """Cells with their numbers, tasks above, a mean column set apart. `table`: [rows][tasks + 1]."""
    places = [*range(len(made.tasks)), len(made.tasks) + 0.25]
    for y, row in enumerate(table):
        for i, value in enumerate(row):
            best = framed and _is_best(table, i, y)
            axes.add_patch(_box(places[i], y, colours[y][i], best))
            weight = "bold" if best or i == len(made.tasks) else "normal"
            axes.text(places[i], y, percent(value, sign), ha="center", va="center", fontsize=9, fontweight=weight)
            if notes and notes[y][i]:
                axes.text(
                    places[i] + 0.45, y + 0.42, notes[y][i], ha="right", va="bottom", fontsize=6, color=FAINT
                )
    axes.set_xlim(-0.55, len(made.tasks) + 0.8)
    axes.set_ylim(len(table) - 0.45, -0.55)
    heads = [f"{_broken(task)}\n{METRIC_WORDS[metric_of(made, task)]}" for task in made.tasks]
    axes.set_xticks(places, [*heads, "mean"], fontsize=8.5)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _broken(task: str) -> str:
    """A long name over two lines, at an underscore."""
    head, _, tail = task.partition("_")
    return f"{head}\n{tail}" if tail and len(task) > 11 else task


def _box(x: float, y: float, colour: Any, framed: bool) -> Any:
    from matplotlib.patches import Rectangle

    edge, width = (INK, 1.4) if framed else ("white", 1.0)
    return Rectangle(
        (x - 0.47, y - 0.45), 0.94, 0.9, facecolor=colour, edgecolor=edge, linewidth=width, zorder=1 + framed
    )


# --------------------------------------------------------------------------------------------------- curves


def run_styles(made: Comparison) -> dict[str, tuple[str, Any]]:
    """A colour and a dash for each run by name, the same in all pictures.

    The first key with few enough values gives the colour, what is left tells dashes; where that is not enough, the
    best runs get a colour each and the others are grey.
    """
    names = [run.name for run in made.runs]
    for key, values in made.keys.items():
        kinds = list(dict.fromkeys(map(str, values.values())))
        rest = list(dict.fromkeys(_rest(made, key, name) for name in names))
        pairs = {(str(values[name]), _rest(made, key, name)) for name in names}
        if len(kinds) <= len(PALETTE) and len(rest) <= len(DASHES) and len(pairs) == len(names):
            known = SCHEDULE_COLOURS if key == SCHEDULE else dict(zip(kinds, PALETTE, strict=False))
            return {n: (known[str(values[n])], DASHES[rest.index(_rest(made, key, n))]) for n in names}
    colours = [*PALETTE[: len(names)], *[OTHER] * (len(names) - len(PALETTE))]
    return {name: (colour, "-") for name, colour in zip(names, colours, strict=True)}


def _rest(made: Comparison, key: str, name: str) -> str:
    """A run's label without what `key` says; in label order, so that dashes come in the order of values."""
    own = key_words(key, made.keys[key][name])
    return ", ".join(part for part in made.labels[name].split(", ") if part != own)


def smooth(values: Sequence[float], keep: float = 0.7) -> list[float]:
    """Exponential moving average, without the pull towards its start: each point weighs `keep` times the next."""
    total, weight, found = 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        found.append(total / weight)
    return found


def training_share(schedule: Schedule, task: str, bins: int) -> np.ndarray:
    """[bins] over the run: the share of a bin's steps that train the task."""
    edges = np.linspace(0, len(schedule), bins + 1)
    steps = schedule.steps_of(task) if task in schedule.tasks else np.zeros(0, int)
    trained = np.searchsorted(steps, edges, side="right")
    taken = np.floor(edges)
    return np.diff(trained) / np.maximum(1, np.diff(taken))


def draw_metrics(made: Comparison, path: Path) -> str | None:
    """Small multiples: each task's metric at every evaluation. None, and no file, with fewer than two anywhere."""
    if not any(len(run.evaluations) > 1 for run in made.runs):
        return None
    curves = {
        task: {
            run.name: [(step, 100 * values[task]) for step, values in run.evaluations if task in values]
            for run in made.runs
        }
        for task in made.tasks
    }
    says = "Every task's metric while the model trains"
    _small_multiples(
        made, path, says, curves, lambda task: f"{METRIC_WORDS[metric_of(made, task)]}, %", chance=True
    )
    return says


def draw_losses(made: Comparison, path: Path) -> str | None:
    """Small multiples: each task's training loss, smoothed. None, and no file, where no run has kept its curves."""
    if not any(len(points) > 1 for run in made.runs for points in run.losses.values()):
        return None
    curves = {
        task: {run.name: _smooth_points(run.losses.get(task, [])) for run in made.runs} for task in made.tasks
    }
    says = "Every task's training loss, smoothed"
    _small_multiples(made, path, says, curves, lambda task: "loss")
    return says


def _smooth_points(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    smoothed = smooth([value for _, value in points])
    return [(step, value) for (step, _), value in zip(points, smoothed, strict=True)]


def _scale(run: RunSummary) -> int:
    """Minibatches of a step: all tasks' for `accumulating`."""
    return len(run.config.tasks) if run.schedule.kind == "accumulating" else 1


def _small_multiples(
    made: Comparison,
    path: Path,
    title: str,
    curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]],
    unit: Any,
    chance: bool = False,
) -> None:
    """A panel a task: a line a run, and below it when each schedule trained the task."""
    columns = min(3, len(made.tasks))
    lines = -(-len(made.tasks) // columns)
    legend = -(-len(made.runs) // 4)
    about = (
        "Strip below each panel: when this task was trained, a row for each schedule. "
        "Solid: only this task; pale: in turn with others; white: not at all."
    )
    if chance:
        about += " Dotted: what a guess scores."
    styles, strips = run_styles(made), _strips(made)
    end = max(len(run.schedule) * _scale(run) for run in made.runs)
    with _figure(path, 4.2 * columns, 1.1 + 2.5 * lines + 0.2 * legend, title, about) as figure:
        grid = figure.subplots(lines, columns, squeeze=False)
        for task, axes in zip(made.tasks, grid.flat, strict=False):
            for run in reversed(made.runs):  # the best on top
                colour, dash = styles[run.name]
                points = curves[task].get(run.name, [])
                xs, ys = [step * _scale(run) for step, _ in points], [value for _, value in points]
                axes.plot(xs, ys, color=colour, linestyle=dash, linewidth=1.5, alpha=0.9, solid_capstyle="round")
            guess = next((run.chance[task] for run in made.runs if task in run.chance), None)
            if chance and guess is not None:
                axes.axhline(100 * guess, color=FAINT, linewidth=1, linestyle=":")
            axes.set_title(task)
            axes.set_ylabel(unit(task), fontsize=8.5)
            axes.set_xlim(0, end)
            axes.grid(axis="y")
            _strip(axes, task, strips, end)
        for axes in grid.flat[len(made.tasks) :]:
            axes.set_visible(False)
        _legend(figure, made, styles)


def _legend(figure: Figure, made: Comparison, styles: Mapping[str, tuple[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    shown = [run for run in made.runs if styles[run.name][0] != OTHER]
    handles = [
        Line2D(
            [],
            [],
            color=styles[run.name][0],
            linestyle=styles[run.name][1],
            linewidth=2,
            label=_with_score(made, run),
        )
        for run in shown
    ]
    if len(shown) < len(made.runs):
        handles.append(Line2D([], [], color=OTHER, linewidth=2, label=f"{len(made.runs) - len(shown)} more"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=8.5, handlelength=3,
        title="x: minibatches of all tasks so far.  Runs, best first (mean at the end, %)", title_fontsize=8.5,
    )  # fmt: skip


def _with_score(made: Comparison, run: RunSummary) -> str:
    return f"{made.labels[run.name]} ({percent(made.mean(run))})"


def _strips(made: Comparison) -> list[tuple[Schedule, str]]:
    """The different schedules, best run first, with the colour of their runs if they share one."""
    styles = run_styles(made)
    found: dict[str, tuple[Schedule, list[str]]] = {}
    for run in made.runs:
        found.setdefault(run.schedule.digest(), (run.schedule, []))[1].append(styles[run.name][0])
    kept = list(found.values())[: len(PALETTE)]
    return [(schedule, colours[0] if len(set(colours)) == 1 else "#444444") for schedule, colours in kept]


def _strip(axes: Any, task: str, strips: Sequence[tuple[Schedule, str]], end: int) -> None:
    height = min(0.3, 0.055 * len(strips) + 0.02)
    below = axes.inset_axes([0, -height - 0.06, 1, height])
    image = np.ones((len(strips), _BINS, 4))
    for row, (schedule, colour) in enumerate(strips):
        span = len(schedule) * (len(schedule.tasks) if schedule.kind == "accumulating" else 1)
        own = max(1, round(_BINS * span / end))
        share = training_share(schedule, task, min(own, len(schedule)))
        image[row, :, 3] = 0
        alpha = np.where(share > 0, 0.22 + 0.78 * share, 0.0)
        image[row, :own, 3] = alpha[np.arange(own) * len(alpha) // own]
        image[row, :, :3] = to_rgb(colour)
    below.imshow(image, extent=(0, end, len(strips), 0), aspect="auto", interpolation="nearest")
    for row in range(1, len(strips)):
        below.axhline(row, color="white", linewidth=1)
    below.set_yticks([])
    below.set_xlim(0, end)
    below.tick_params(labelsize=8)
    below.spines[["left", "bottom"]].set_color("#CCCCCC")
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


# ----------------------------------------------------------------------------- parameters, single-task models


def draw_pareto(made: Comparison, path: Path) -> str:
    """Parameters against the mean metric, the front of runs that no other beats, and the single-task models."""
    runs = [run for run in made.runs if made.mean(run) is not None]
    points = [(float(run.total_parameters), made.mean(run) or 0.0) for run in runs]
    front = pareto(points)
    says = f"Size against quality: {len(front)} of {len(runs)} runs are beaten by none"
    about = "Right is larger, up is better. Line: the front of runs that no other run beats in both."
    marks = [(x, 100 * y, made.labels[run.name]) for (x, y), run in zip(points, runs, strict=True)]
    alone = _alone(made)
    with _figure(path, 9, 5.4, says, about) as figure:
        axes, styles = figure.subplots(), run_styles(made)
        xs = [points[i][0] for i in front]
        ys = [100 * points[i][1] for i in front]
        axes.step(xs, ys, where="post", color=INK, linewidth=1.2, zorder=1)
        for i, (x, y, _) in enumerate(marks):
            edge = INK if i in front else "white"
            axes.plot(x, y, "o", markersize=9, color=styles[runs[i].name][0], markeredgecolor=edge, zorder=3)
        if alone:
            axes.plot(
                alone[0], alone[1], "D", markersize=9, color="white", markeredgecolor=INK, markeredgewidth=1.6
            )
            marks.append(alone)
        _frame_points(axes, marks)
        axes.set_xlabel("parameters, heads included")
        axes.set_ylabel("mean over tasks of the metric, %")
        axes.grid()
        axes.set_axisbelow(True)
        figure.draw_without_rendering()
        _place_labels(axes, marks, set(front) | ({len(marks) - 1} if alone else set()))
    return says


def _alone(made: Comparison) -> tuple[float, float, str] | None:
    """The single-task models as one point: their parameters together, the mean of their metrics."""
    saved = parameters_saved(made.best, made.baselines)
    if saved is None or any(task not in made.baselines for task in made.shared):
        return None
    mean = sum(made.baselines[task].value for task in made.shared) / len(made.shared)
    return float(saved[0]), 100 * mean, f"{len(made.best.config.tasks)} single-task models"


def _frame_points(axes: Any, marks: Sequence[tuple[float, float, str]]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    xs, ys = [x for x, _, _ in marks], [y for _, y, _ in marks]
    if max(xs) > 2 * min(xs):
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(min(xs) / 1.5, max(xs) * 1.7)
    else:
        pad = 0.35 * (max(xs) - min(xs)) or 0.3 * max(xs)
        axes.set_xlim(min(xs) - pad, max(xs) + pad)
    axes.set_xticks(sorted(set(xs)) if len(set(xs)) <= 4 else _few(sorted(set(xs))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
    pad = 0.12 * (max(ys) - min(ys)) or 1.0
    axes.set_ylim(min(ys) - pad, max(ys) + pad)


def _few(values: Sequence[float]) -> list[float]:
    """Some of ascending values, at least an eighth of the range apart, first and last among them."""
    kept = [values[0]]
    for value in values[1:-1]:
        if min(value - kept[-1], values[-1] - value) > (values[-1] - values[0]) / 8:
            kept.append(value)
    return [*kept, values[-1]]


def _place_labels(axes: Any, marks: Sequence[tuple[float, float, str]], first: set[int]) -> None:
    """A label beside each point where it hides neither a point nor another label; those in `first` choose first.

    What finds no place has none: the tables name every run.
    """
    from matplotlib.transforms import Bbox

    renderer = axes.figure.canvas.get_renderer()
    dots = axes.transData.transform([(x, y) for x, y, _ in marks])
    unit = axes.figure.dpi / 72
    taken = [Bbox.from_bounds(x - 6 * unit, y - 6 * unit, 12 * unit, 12 * unit) for x, y in dots]
    inside = axes.get_window_extent(renderer)
    for i in sorted(range(len(marks)), key=lambda i: (i not in first, i)):
        for dx, dy in [(s * x, y) for x in (9, 24) for y in (0, 9, -9, 18, -18, 28, -28) for s in (1, -1)]:
            label = axes.annotate(
                marks[i][2], marks[i][:2], (dx, dy), textcoords="offset points", fontsize=8.5, va="center",
                ha="left" if dx > 0 else "right", fontweight="bold" if i in first else "normal",
                arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.6} if abs(dy) > 9 or abs(dx) > 9 else None,
            )  # fmt: skip
            box = label.get_window_extent(renderer) if label.arrow_patch is None else _text_box(label, renderer)
            fits = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            if fits and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            label.remove()


def _text_box(label: Any, renderer: Any) -> Any:
    """A label's own box, without its line."""
    from matplotlib.text import Text

    label.update_positions(renderer)
    return Text.get_window_extent(label, renderer)


def draw_alone(made: Comparison, path: Path) -> str:
    """The best run against one model for each task: two dots a task, with the difference."""
    best = made.best
    gaps = differences(best.values, made.baselines)
    order = sorted(gaps, key=lambda task: (gaps[task], task))
    saved = parameters_saved(best, made.baselines)
    gained = sum(gap >= 0 for gap in gaps.values())
    says = f"One model for all: level with or above single-task models on {gained} of {len(gaps)} tasks"
    about = f"Best run: {made.labels[best.name]}."
    if saved:
        about += (
            f" {amount(best.total_parameters)} parameters in place of {amount(saved[0])} "
            f"in {len(best.config.tasks)} models: {saved[1]:.1f}x fewer."
        )
    with _figure(path, 8.5, 1.7 + 0.36 * len(order), says, about) as figure:
        axes = figure.subplots()
        for y, task in enumerate(order):
            alone, together = 100 * made.baselines[task].value, 100 * (best.values[task] or 0.0)
            colour = PALETTE[0] if gaps[task] >= 0 else PALETTE[1]
            axes.plot([alone, together], [y, y], color=colour, linewidth=2.5, zorder=1)
            axes.plot(alone, y, "o", markersize=8, color="white", markeredgecolor=INK, markeredgewidth=1.3)
            axes.plot(together, y, "o", markersize=8, color=colour)
            axes.annotate(
                percent(gaps[task], sign=True), (max(alone, together), y), (9, 0), textcoords="offset points",
                va="center", color=colour, fontweight="bold",
            )  # fmt: skip
        axes.set_yticks(range(len(order)), [f"{t} ({METRIC_WORDS[metric_of(made, t)]})" for t in order])
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.set_xlabel("metric, %; the number is the difference in points")
        axes.margins(x=0.1)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.plot([], [], "o", color="white", markeredgecolor=INK, markersize=8, label="one model for the task")
        axes.plot([], [], "o", color=PALETTE[0], markersize=8, label="co-trained, gained")
        axes.plot([], [], "o", color=PALETTE[1], markersize=8, label="co-trained, lost")
        figure.legend(loc="outside lower right", ncols=3, fontsize=8.5)
    return says
