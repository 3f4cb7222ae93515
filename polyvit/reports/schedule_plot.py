"""A picture of a schedule.

In: a `Schedule` and its config. Out: a PNG file.
"""

from pathlib import Path
from typing import Any

import numpy as np

from polyvit.config import RunConfig
from polyvit.schedule import Schedule

_MOST_DRAWN = 2000
_COLOURS = {"image": "#2a78b5", "video": "#d1495b", "audio": "#3f8f5f"}
_OTHER = "#8a6d1d"  # modalities of plugins


def draw_schedule(schedule: Schedule, config: RunConfig, path: Path) -> None:
    """PNG: above, which task is trained at which step; below, minibatches of each task so far."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names, total = list(schedule.tasks), len(schedule)
    colours = [_COLOURS.get(config.tasks[name].modality, _OTHER) for name in names]
    known = schedule.known  # an adaptive schedule's steps up to its next decision; of others all
    drawn = np.unique(np.linspace(1, known, min(known, _MOST_DRAWN)).astype(int))
    figure, (raster, sums) = plt.subplots(
        2,
        1,
        figsize=(11, 2.6 + 0.3 * len(names)),
        height_ratios=[len(names), 6],
        layout="constrained",
        sharex=True,
    )
    ends = []
    for row, colour in enumerate(colours):
        steps = schedule.steps_of(names[row])
        raster.eventplot(
            [np.intersect1d(steps, drawn)],
            lineoffsets=[row],
            linelengths=0.8,
            linewidths=0.6,
            colors=[colour],
        )
        so_far = np.searchsorted(steps, drawn, side="right")
        sums.plot(drawn, so_far, color=colour, linewidth=1.2)
        end = int(so_far[-1])
        if known < total:
            end = schedule.counts()[names[row]]
            sums.plot([known, total], [so_far[-1], end], color=colour, linewidth=1.0, linestyle=(0, (4, 3)))
        ends.append((end, names[row], colour))
    if known < total:
        _mark_undecided((raster, sums), known, total)
    _label_ends(sums, ends, total)
    raster.set_yticks(range(len(names)), names, fontsize=8)
    raster.invert_yaxis()
    raster.set_xlim(0, total)
    sampled = "" if len(drawn) == known else f" ({len(drawn)} of {known} steps drawn)"
    raster.set_title(f"{config.name}: {schedule.kind} schedule, {total} steps{sampled}", fontsize=10)
    sums.set_xlabel("global step")
    sums.set_ylabel("minibatches so far", fontsize=8)
    for modality in config.modalities:
        raster.plot([], [], color=_COLOURS.get(modality, _OTHER), linewidth=4, label=modality)
    raster.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _mark_undecided(rows: Any, known: int, total: int) -> None:
    """Grey over the steps whose tasks an adaptive schedule has not decided, with a line in words."""
    for axes in rows:
        axes.axvspan(known, total, color="#000000", alpha=0.06, linewidth=0)
    raster, sums = rows
    raster.text(
        (known + total) / 2, 0.5, "decided at evaluations", fontsize=9, color="#444444", ha="center", va="center",
        transform=raster.get_xaxis_transform(),
    )  # fmt: skip
    sums.plot([], [], color="#444444", linewidth=1.0, linestyle=(0, (4, 3)), label="if shares stay as they are")
    sums.legend(loc="upper left", fontsize=8, frameon=False)


def _label_ends(axes: Any, ends: list[tuple[int, str, str]], total: int) -> None:
    """Names at the right ends of the curves; where several end close together they share a line."""
    groups: list[tuple[int, list[str], str]] = []
    for value, name, colour in sorted(ends):
        if groups and value - groups[-1][0] < 0.07 * max(1, max(ends)[0]):
            groups[-1][1].append(name)
        else:
            groups.append((value, [name], colour))
    for value, members, colour in groups:
        tint = colour if len(members) == 1 else "#444444"
        axes.annotate(
            "  " + ", ".join(members),
            (total, value),
            fontsize=7,
            color=tint,
            va="center",
            annotation_clip=False,
        )
