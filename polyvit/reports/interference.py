"""Heat maps and a page of how tasks' gradients agree on the weights that they share.

In: the document of `polyvit.training.compare_gradients`, and the drift of shared weights, between checkpoints and
by task.
Out: interference.json, interference.html, pairs.png, layers.png in a folder.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from polyvit.reports.html import Cell, Column, FactBox, Figure, Table, render
from polyvit.reports.style import FAINT, INK, PALETTE, amount, percent, picture
from polyvit.storage import write_whole
from polyvit.training import CONFLICT, OVERALL

_COSINES = LinearSegmentedColormap.from_list("cosines", [PALETTE[1], "#F7F7F7", PALETTE[0]])
_CONFLICT = LinearSegmentedColormap.from_list("conflict", [PALETTE[0], "#F7F7F7", PALETTE[1]])
MOST_PAIRS = 40
"""Rows of the picture by layer: the pairs that agree least and most."""
NOTES = (
    "The cosine is that of the mean gradients of two tasks: below 0, a small step for one raises the loss of the"
    " other at these weights. It does not say that training both ends worse; weights that are shared and fought"
    " over can still be the better start.",
    "Intervals hold 90 % of resampled minibatches. A cosine of noisy gradients lies nearer to 0 than that of the"
    " true ones: `signal` is the share of a gradient's square that other minibatches of the task confirm. Where it"
    " is small, take more minibatches (--minibatches).",
    f"l_adapt is proposed as today's plus the shared blocks, from the first on, whose mean cosine between tasks of"
    f" different modalities is below −{CONFLICT}; sureness is the share of resamples that come to the same number."
    " The final norm does not count: its gradient comes straight from the heads and hides what the blocks say.",
    "A task's drift is the norm of the sum of its steps' updates, with the momentum and weight decay that fell on"
    " them, and the cosine of that sum with the sum over all tasks: below 0, the other tasks undid it and more.",
)


def write_interference(document: Mapping[str, Any], folder: Path, title: str) -> list[Path]:
    """The files, in the order in which a person would open them. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    page, data = folder / "interference.html", folder / "interference.json"
    pictures = [
        Figure(folder / "pairs.png", _draw_pairs(document, folder / "pairs.png")),
        Figure(folder / "layers.png", _draw_layers(document, folder / "layers.png")),
    ]
    write_whole(data, json.dumps(document, indent=1) + "\n")
    write_whole(page, _page(document, title, pictures))
    return [page, data, *(figure.path for figure in pictures)]


def interference_proposals(document: Mapping[str, Any]) -> list[str]:
    """The proposals as sentences."""
    proposal = document["proposal"]
    if proposal["l_adapt"] is None:
        lines = [f"No l_adapt is proposed: {proposal['why']}."]
    else:
        sure = f"{proposal['sureness']:.0%} of resamples say the same"
        lines = [f"model.l_adapt={proposal['l_adapt']}: {proposal['why']} ({sure})."]
    lines += [
        f"{a} and {b} pull shared weights apart: cosine {_signed(row['cosine'])}, below 0 in {row['sureness']:.0%}"
        " of resamples. Try them without each other, or with more private layers."
        for row in proposal["apart"]
        for a, b in [row["tasks"]]
    ]
    return lines if proposal["apart"] else [*lines, "No pair of tasks pulls shared weights apart for certain."]


def _draw_pairs(document: Mapping[str, Any], path: Path) -> str:
    """Tasks x tasks over all shared weights: cosine at the left, share of conflicting signs at the right."""
    names = list(document["tasks"])
    cosine, conflict = (np.full((len(names), len(names)), np.nan) for _ in range(2))
    for pair in _overall(document):
        i, j = sorted(names.index(task) for task in pair["tasks"])
        cosine[j, i] = np.nan if pair["cosine"] is None else pair["cosine"]
        conflict[j, i] = np.nan if pair["conflict"] is None else pair["conflict"]
    known = [p for p in _overall(document) if p["cosine"] is not None]
    says = "No two tasks have gradients on shared weights"
    if known:
        least = min(known, key=lambda p: p["cosine"])
        says = f"Least agreement: {' and '.join(least['tasks'])}, cosine {_signed(least['cosine'])}"
    side = 1.5 + 0.5 * len(names)
    about = (
        "Over all shared blocks. Left: cosine of mean gradients. Right: share of signs that differ, in percent."
    )
    with picture(path, 2 * side + 1.2, side + 0.7, says, about) as figure:
        left, right = figure.subplots(1, 2)
        top = max(0.1, float(np.nanmax(np.abs(cosine)))) if known else 1.0
        _heat(left, cosine, names, names, _COSINES, (-top, top), _signed)
        _heat(right, conflict, names, names, _CONFLICT, (0.3, 0.7), lambda x: f"{100 * x:.0f}")
    return says


def _draw_layers(document: Mapping[str, Any], path: Path) -> str:
    """Pairs x groups: cosines from the tokenizer to the final norm."""
    groups = [g for g in _in_order(document["groups"]) if any(p["group"] == g for p in document["pairs"])]
    cosines = {(p["group"], tuple(p["tasks"])): p["cosine"] for p in document["pairs"]}
    means = {tuple(p["tasks"]): p["cosine"] or 0.0 for p in _overall(document)}
    pairs = sorted({pair for _, pair in cosines}, key=lambda pair: means.get(pair, 0.0))
    if len(pairs) > MOST_PAIRS:
        pairs = [*pairs[: MOST_PAIRS // 2], *pairs[-MOST_PAIRS // 2 :]]
    values = np.array([[_number(cosines.get((group, pair))) for group in groups] for pair in pairs])
    values = values.reshape(len(pairs), len(groups))
    says = "Cosine of gradients by pair and layer"
    about = "Least agreement above. Empty: the pair does not share it, or a gradient is 0."
    rows = [f"{a}, {b}" for a, b in pairs]
    width = 0.9 + 0.085 * max(map(len, rows), default=0) + 0.52 * len(groups)
    with picture(path, width, 1.9 + 0.27 * max(1, len(rows)), says, about, stretch=False) as figure:
        top = max(0.1, float(np.nanmax(np.abs(values)))) if np.isfinite(values).any() else 1.0
        _heat(figure.subplots(), values, rows, groups, _COSINES, (-top, top), _signed)
    return says


def _heat(
    axes: Any, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], colours: Any,
    limits: tuple[float, float], text: Any,
) -> None:  # fmt: skip
    if not values.size:
        axes.set_axis_off()
        return
    axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="nearest")
    span = limits[1] - limits[0]
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            strong = abs(value - sum(limits) / 2) > 0.38 * span
            axes.text(j, i, text(value), ha="center", va="center", fontsize=7, color="white" if strong else INK)
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(True)
        side.set_color(FAINT)


def _page(document: Mapping[str, Any], title: str, pictures: Sequence[Figure]) -> str:
    tasks, groups = document["tasks"], document["groups"]
    task_table = Table(
        [Column(["task"], word=True), Column(["minibatches"]), Column(["gradient", "norm"]), Column(["signal %"])],
        [
            [Cell(name, word=True), Cell(row["minibatches"]), Cell(f"{row['grad_norm']:.3g}"),
             Cell(percent(row["signal"]))] for name, row in tasks.items()
        ],
    )  # fmt: skip
    pair_table = Table(
        [Column(["tasks"], word=True), Column(["cosine"]), Column(["90 %", "interval"]), Column(["below 0", "%"]),
         Column(["signs differ", "%"])],
        [
            [Cell(", ".join(pair["tasks"]), word=True), Cell(_signed(pair["cosine"])),
             Cell(f"{_signed(pair['interval'][0])} … {_signed(pair['interval'][1])}"),
             Cell(percent(pair["negative"])), Cell(percent(pair["conflict"]))]
            for pair in sorted(_overall(document), key=lambda p: _number(p["cosine"]))
            if pair["cosine"] is not None
        ],
    )  # fmt: skip
    shared = sum(row["parameters"] for name, row in groups.items() if name.startswith("shared."))
    boxes = [FactBox(len(tasks), "tasks"), FactBox(amount(shared), "shared parameters"),
             FactBox(document["minibatches"], "minibatches of each task"),
             FactBox(f"{document['step']:,}", "step of the checkpoint")]  # fmt: skip
    return render(
        "interference.html.j2", title=title, about=document["about"], boxes=boxes,
        proposals=interference_proposals(document), pictures=pictures, tasks=task_table,
        pairs=pair_table, drift=_drift_table(document["drift"]),
        drift_by_task=_task_drift_table(document["drift"]["by_task"]),
        notes=[*NOTES, document["drift"]["gap"]],
    )  # fmt: skip


def _drift_table(drift: Mapping[str, Any]) -> Table | None:
    """A row for each two checkpoints: how far each group moved, relative to its norm, and who trained."""
    intervals = drift["intervals"]
    if not intervals:
        return None
    groups = _in_order(intervals[0]["moved"])
    rows = [
        [Cell(f"{row['from']:,} to {row['to']:,}", word=True),
         Cell(", ".join(f"{task} {count}" for task, count in row["steps"].items() if count), word=True),
         *(Cell(percent(row["moved"][group])) for group in groups)]
        for row in intervals
    ]  # fmt: skip
    heads = [Column(["steps"], word=True), Column(["of which"], word=True)]
    return Table([*heads, *(Column([group.removeprefix("shared."), "%"]) for group in groups)], rows)


def _task_drift_table(drift: Mapping[str, Any] | None) -> Table | None:
    """A row a task: its steps, how far they moved all shared blocks and each group, and the cosines."""
    if drift is None:
        return None
    groups = _in_order(drift["groups"])

    def moved(row: Mapping[str, Any]) -> list[Cell]:
        return [Cell(f"{row['norm']:.2g}"), Cell(_signed(row["cosine"]))]

    rows = [
        [Cell(task, word=True), Cell(f"{drift['steps'][task]:,}"), *moved(row),
         *(cell for group in groups for cell in moved(drift["groups"][group]["tasks"][task]))]
        for task, row in drift["tasks"].items()
    ]  # fmt: skip
    names = ["all shared blocks", *(group.removeprefix("shared.") for group in groups)]
    heads = [column for name in names for column in (Column([name, "moved"]), Column(["", "cosine"]))]
    return Table([Column(["task"], word=True), Column(["steps"]), *heads], rows)


def _overall(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [pair for pair in document["pairs"] if pair["group"] == OVERALL]


def _in_order(groups: Any) -> list[str]:
    """Groups from the input to the output: tokenizers, adaptors, shared blocks, norm; blocks by number."""
    roles = ("tokenizers", "adaptors", "shared")

    def place(group: str) -> tuple[Any, ...]:
        pieces = group.split(".")
        role = roles.index(pieces[0]) if pieces[0] in roles else len(roles)
        number = int(pieces[-1]) if pieces[-1].isdecimal() else 10_000
        return role, pieces[1] if role < 2 else "", number, group

    return sorted(groups, key=place)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}".replace("-", "−")
