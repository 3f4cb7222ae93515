"""A sweep's picture of size against quality: every trial a point, a log axis, what differs as label and legend."""

import json
from pathlib import Path

import avbert_small
from matplotlib import image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from runs_kit import VALUES, write_run, write_singles

from polyvit.model import parameters_of
from polyvit.reports.compare.comparison import Comparison, compare, read_runs
from polyvit.reports.compare.page import write_report
from polyvit.reports.compare.sizes import draw_sizes, plot_sizes, size_points
from polyvit.reports.style import PALETTE

SPACE = "sweep.space={model.sharing.rank: [4, 8, 16], model.l_adapt: [0, 2]}"
SIZES = {(0, 4): 1_000, (0, 8): 2_000, (0, 16): 4_000, (2, 4): 40_000, (2, 8): 41_000, (2, 16): 43_000}


def six(folder: Path, sizes: dict[tuple[int, int], int] = SIZES) -> Comparison:
    """Rank by L_adapt; the mean rises with both: 0.5 + l_adapt / 80 + rank / 640 ."""
    for (l_adapt, rank), total in sizes.items():
        values = {**VALUES, "picture": 0.5 + l_adapt / 20 + rank / 160}
        changes = ("model.sharing.modalities=low_rank", f"model.sharing.rank={rank}", f"model.l_adapt={l_adapt}")
        write_run(folder / f"r{rank}-l{l_adapt}", SPACE, *changes, values=values, total=total)
    return compare(read_runs([folder]))


def drawn(comparison: Comparison) -> Figure:
    figure = Figure(figsize=(9, 5.8), layout="constrained")
    FigureCanvasAgg(figure)
    points = size_points(comparison)
    plot_sizes(figure, comparison, points, [0])
    return figure


def test_the_data_of_the_picture(tmp_path: Path) -> None:
    comparison = six(tmp_path)
    figure = drawn(comparison)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    points = {
        (float(line.get_xdata()[0]), round(float(line.get_ydata()[0]), 4)): line  # type: ignore[index]
        for line in axes.lines
        if line.get_marker() not in ("None", "")
    }
    expected = {
        (float(total), round(100 * (0.5 + l_adapt / 80 + rank / 640), 4)): (l_adapt, rank)
        for (l_adapt, rank), total in SIZES.items()
    }
    assert points.keys() == expected.keys()
    looks = {expected[at]: (line.get_color(), line.get_marker()) for at, line in points.items()}
    assert {look[0] for (l_adapt, _), look in looks.items() if l_adapt == 0} == {PALETTE[0]}
    assert {look[0] for (l_adapt, _), look in looks.items() if l_adapt == 2} == {PALETTE[1]}
    assert len({look[1] for (l_adapt, _), look in looks.items() if l_adapt == 2}) == 3
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "L_adapt 0", "L_adapt 2", "rank 4", "rank 8", "rank 16",
    ]  # fmt: skip
    assert "parameters" in axes.get_xlabel()
    assert axes.get_ylabel() == "objective: mean over tasks of the metric, %"
    assert "1k" in [label.get_text() for label in axes.get_xticklabels()]
    labels = {text.get_text() for text in axes.texts}
    assert "L_adapt 2, rank 16" in labels
    assert labels <= {f"L_adapt {l_adapt}, rank {rank}" for l_adapt, rank in SIZES}


def test_trials_of_one_size_are_drawn_too(tmp_path: Path) -> None:
    comparison = six(tmp_path / "trials", dict.fromkeys(SIZES, 5_000))
    says = draw_sizes(comparison, tmp_path / "s.png")
    assert says == "Size against quality: no trial beats L_adapt 2, rank 16"
    assert image.imread(tmp_path / "s.png").shape[1] > 700
    (axes,) = drawn(comparison).axes
    assert axes.get_xscale() == "log"
    low, high = axes.get_xlim()
    assert low < 5_000 < high
    ticks = [text.get_text() for text in axes.get_xticklabels()]
    assert ticks == ["5k"]
    only = compare(read_runs([tmp_path / "trials" / "r4-l0"]))
    assert draw_sizes(only, tmp_path / "one.png")
    assert [text.get_text() for text in drawn(only).legends[0].get_texts()] == ["a trial"]


def test_the_objective_may_be_the_worst_difference(tmp_path: Path) -> None:
    objective = ("sweep.objective=worst_regression", f"sweep.baselines={dict.fromkeys(VALUES, 0.4)}")
    write_run(tmp_path / "runs" / "a", *objective, total=700)
    write_run(tmp_path / "runs" / "b", *objective, "model.l_adapt=0", total=900, finished=False)
    singles = read_runs(write_singles(tmp_path, dict.fromkeys(VALUES, 0.4)))
    comparison = compare(read_runs([tmp_path / "runs"]), singles)
    points = size_points(comparison)
    assert [(point.parameters, round(point.objective, 6)) for point in points] == [(700, -15.0), (900, -15.0)]
    assert drawn(comparison).axes[0].get_ylabel() == "objective: worst difference to a single-task model, points"


def test_the_report_of_a_sweep_has_it(tmp_path: Path) -> None:
    comparison = six(tmp_path / "trials")
    written = write_report(list(comparison.runs), tmp_path / "report", "Sweep")
    assert "sizes.png" in written
    assert "pareto.png" not in written
    page = written["report.html"].read_text()
    assert "Size against quality" in page
    plain = read_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", "model.l_adapt=0", total=900)])
    assert "pareto.png" in write_report(plain, tmp_path / "other", "no sweep")


def test_runs_of_audiovisual_tasks_are_compared(tmp_path: Path) -> None:
    """Another kind of model, and a modality that comes after the three."""
    for rank in (2, 4):
        config = avbert_small.tiny(sharing={"rank": rank})
        folder = tmp_path / "runs" / f"rank-{rank}"
        folder.mkdir(parents=True)
        rows = {task: {"value": rank / 10, "chance": 0.2, "metric": "top1"} for task in config.tasks}
        (folder / "config.json").write_text(config.model_dump_json())
        (folder / "result.json").write_text(json.dumps({"run": folder.name, "steps": 8, "tasks": rows}))
    comparison = compare(read_runs([tmp_path / "runs"]))
    assert comparison.tasks == ("one", "two")
    points = {point.label: (point.parameters, point.objective) for point in size_points(comparison)}
    assert points == {
        f"rank {rank}": (sum(parameters_of(avbert_small.tiny(sharing={"rank": rank})).values()), 10.0 * rank)
        for rank in (2, 4)
    }
    assert "pareto.png" in write_report(list(comparison.runs), tmp_path / "report", "AVBert")
