"""Pictures and page of a comparison: what they say, their colours, no label over another, one file in itself."""

import base64
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from matplotlib import image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from runs_kit import CURVE, VALUES, run_config, sweep_of_four, write_run, write_singles

from polyvit.config.sections import ScheduleConfig
from polyvit.errors import UserError
from polyvit.reports.compare.comparison import Comparison, compare, read_runs
from polyvit.reports.compare.curves import draw_losses, draw_metrics, smooth, training_share
from polyvit.reports.compare.heat_maps import (
    _column_colours,
    _is_best,
    draw_differences,
    draw_forgetting,
    draw_key,
)
from polyvit.reports.compare.page import write_report
from polyvit.reports.compare.run_styles import SCHEDULE_COLOURS, run_styles, settings_words
from polyvit.reports.compare.sizes import draw_sizes
from polyvit.reports.compare.tradeoffs import draw_alone, draw_pareto, place_labels
from polyvit.reports.style import OTHER, PALETTE, amount, percent
from polyvit.schedule.schedule import build_schedule


def pixels_of(path: Path, colour: str) -> int:
    """How many pixels of a PNG have very nearly this colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    pixels = (image.imread(path)[..., :3] * 255).round().astype(int)
    return int((np.abs(pixels - wanted).max(axis=2) <= 2).sum())


@pytest.fixture
def four(tmp_path: Path) -> Comparison:
    return compare(read_runs([sweep_of_four(tmp_path / "four")]))


# -------------------------------------------------------------------------------------------- small numbers


def test_numbers_in_words() -> None:
    assert [percent(0.1234), percent(-0.1), percent(None)] == ["12.3", "−10.0", "–"]
    assert [percent(0.021, sign=True), percent(-0.021, sign=True), percent(-1e-9, sign=True)] == [
        "+2.1",
        "−2.1",
        "0.0",
    ]
    assert [amount(n) for n in (999, 96_878, 999_600, 93_123_456, 2e9)] == ["999", "96.9k", "1M", "93.1M", "2G"]


def test_smoothing_is_a_weighted_mean_without_a_pull_to_the_start() -> None:
    assert smooth([1.0, 4.0], keep=0.5) == pytest.approx([1.0, (0.5 * 1 + 4) / 1.5])
    assert smooth([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    assert smooth([]) == []


def test_the_share_of_the_minibatches_that_train_a_task() -> None:
    def shares(kind: str) -> dict[str, list[float]]:
        config = run_config(f"schedule.kind={kind}")  # 18 steps: 5, 4, 6, 3
        schedule = build_schedule(config.schedule, config.tasks, config.seed)
        return {
            task: training_share(schedule, task, 18 if kind == "task_by_task" else 4).tolist()
            for task in config.tasks
        }

    blocks = shares("task_by_task")
    assert [sum(share) for share in blocks.values()] == [5, 4, 6, 3]
    for share in blocks.values():
        assert "0.0" not in "".join(str(int(s)) for s in share).strip("0")  # one block of ones
    assert np.sum(list(blocks.values()), axis=0).tolist() == [1.0] * 18
    assert set(np.ravel(list(shares("accumulating").values()))) == {0.25}


def test_the_best_of_a_column() -> None:
    table = [[0.5, 0.2, None], [0.5 + 1e-12, 0.2, 0.3], [0.4, 0.2, None]]
    best = [[_is_best(table, column, row) for column in range(3)] for row in range(3)]
    assert best == [[True, False, False], [True, False, False], [False, False, False]]


def test_small_differences_have_nearly_the_same_colour() -> None:
    (low,), (high,) = _column_colours([[0.500], [0.501]])
    (worst,), (best,) = _column_colours([[0.2], [0.501]])
    assert best == high
    assert np.abs(np.subtract(low, high)).max() < 0.02 < 0.3 < np.abs(np.subtract(worst, best)).max()


# --------------------------------------------------------------------------------------------------- styles


def test_colours_are_the_schedules_and_dashes_the_rest(four: Comparison) -> None:
    styles = run_styles(four)
    assert {name: colour for name, (colour, _) in styles.items()} == {
        run.name: SCHEDULE_COLOURS[run.config.schedule.kind] for run in four.runs
    }
    assert styles["uniform-0"][1] == styles["task_by_task-0"][1] == "-"
    assert styles["uniform-2"][1] == styles["task_by_task-2"][1] != "-"


def test_every_schedule_has_a_colour_of_its_own(tmp_path: Path) -> None:
    kinds = get_args(ScheduleConfig.model_fields["kind"].annotation)
    for kind in kinds:
        write_run(tmp_path / kind, f"schedule.kind={kind}", "train.eval_every=2")
    comparison = compare(read_runs([tmp_path]))
    assert {name: colour for name, (colour, _) in run_styles(comparison).items()} == SCHEDULE_COLOURS
    assert len(set(SCHEDULE_COLOURS.values())) == len(kinds)
    draw_sizes(comparison, tmp_path / "sizes.png")
    for colour in SCHEDULE_COLOURS.values():
        assert pixels_of(tmp_path / "sizes.png", colour) > 20, colour


def test_runs_that_differ_in_the_seed_alone_look_alike(tmp_path: Path) -> None:
    for kind in ("weighted", "uniform"):
        for seed in (0, 1, 2):
            values = {**VALUES, "clip": (0.3 if kind == "uniform" else 0.2) + seed / 50}
            changed = (f"schedule.kind={kind}", f"seed={seed}", f"model.l_adapt={int(kind == 'uniform')}")
            size = 1000 if kind == "uniform" else 900
            run = tmp_path / "runs" / f"{kind}-{seed}"
            write_run(run, *changed, values=values, evaluations=CURVE, total=size)
    comparison = compare(read_runs([tmp_path / "runs"]))
    assert run_styles(comparison) == {
        f"{kind}-{seed}": (SCHEDULE_COLOURS[kind], "-") for kind in ("weighted", "uniform") for seed in (0, 1, 2)
    }
    assert settings_words(comparison, "uniform-1") == "uniform"
    seeds = compare(read_runs([tmp_path / "runs" / f"uniform-{seed}" for seed in (0, 1, 2)]))
    assert len({colour for colour, _ in run_styles(seeds).values()}) == 3
    assert settings_words(seeds, "uniform-1") == "seed 1"
    assert draw_metrics(comparison, tmp_path / "m.png")
    says = draw_pareto(comparison, tmp_path / "p.png")
    assert says == "Size against quality: no run beats weighted, seed 2 or uniform, seed 2"
    written = write_report(list(comparison.runs), tmp_path / "out", "seeds")
    assert "by_seed.png" not in written


def test_of_many_runs_the_best_have_a_colour(tmp_path: Path) -> None:
    for i in range(10):
        write_run(tmp_path / f"r{i}", f"optim.lr={0.1 + i / 100}", values={**VALUES, "clip": i / 10})
    comparison = compare(read_runs([tmp_path]))
    colours = [run_styles(comparison)[run.name][0] for run in comparison.runs]
    assert colours == [*PALETTE, OTHER, OTHER, OTHER]
    assert draw_metrics(comparison, tmp_path / "m.png") is None  # evaluated once


# ------------------------------------------------------------------------------------------------- pictures


def test_heat_maps_say_who_leads(four: Comparison, tmp_path: Path) -> None:
    says = draw_key(four, "schedule.kind", tmp_path / "s.png")
    # picture: 0.65 against 0.60; the other three are level in all rows, which makes nobody best
    assert says == "Schedules: uniform leads on average (53.8 %), best or level on 1 of 4 tasks"
    says = draw_key(four, "model.l_adapt", tmp_path / "l.png")
    assert says == "Adaptor blocks (L_adapt): L_adapt 2 leads on average (55.6 %), best or level on 1 of 4 tasks"
    assert image.imread(tmp_path / "s.png").shape[1] > 700


def test_forgetting_needs_two_evaluations(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "once")
    assert draw_forgetting(compare(read_runs([tmp_path / "runs"])), tmp_path / "f.png") is None
    assert not (tmp_path / "f.png").exists()
    write_run(tmp_path / "runs" / "thrice", evaluations=CURVE)
    says = draw_forgetting(compare(read_runs([tmp_path / "runs"])), tmp_path / "f.png")
    assert says == "Forgotten by the end: 6.2 points on average by thrice"  # (10 + 15 + 0 + 0) / 4
    assert (tmp_path / "f.png").exists()
    write_run(tmp_path / "runs" / "same", evaluations=CURVE)
    write_run(tmp_path / "runs" / "steady", evaluations={6: VALUES, 18: VALUES})
    says = draw_forgetting(compare(read_runs([tmp_path / "runs"])), tmp_path / "f.png")
    assert says == "Forgotten by the end: 6.2 points on average by same, 0.0 by steady"
    comparison = compare(read_runs([tmp_path / "runs" / "same", tmp_path / "runs" / "thrice"]))
    says = draw_forgetting(comparison, tmp_path / "f.png")
    assert says == "Forgotten by the end: 6.2 points on average by every run"


def test_curves_are_drawn_in_the_runs_colours(tmp_path: Path) -> None:
    for kind in ("uniform", "task_by_task", "accumulating"):
        write_run(tmp_path / kind, f"schedule.kind={kind}", evaluations=CURVE)
    comparison = compare(read_runs([tmp_path]))
    draws: Sequence[Callable[[Comparison, Path], str | None]] = (draw_metrics, draw_losses)
    for draw in draws:
        assert draw(comparison, tmp_path / "c.png")
        assert pixels_of(tmp_path / "c.png", SCHEDULE_COLOURS["task_by_task"]) > 500  # its blocks, solid
        assert pixels_of(tmp_path / "c.png", SCHEDULE_COLOURS["weighted"]) == 0
    for path in tmp_path.glob("*/history/*"):
        path.unlink()
    assert draw_losses(compare(read_runs([tmp_path])), tmp_path / "none.png") is None


@pytest.mark.parametrize(("alone", "gained", "lost"), [(0.1, 4, 0), (0.9, 0, 4)])
def test_against_single_task_models(tmp_path: Path, alone: float, gained: int, lost: int) -> None:
    write_run(tmp_path / "all", total=300)
    write_singles(tmp_path, dict.fromkeys(VALUES, alone))
    comparison = compare(read_runs([tmp_path]))
    says = draw_alone(comparison, tmp_path / "a.png")
    assert says == f"One model for all: level with or above single-task models on {gained} of 4 tasks"
    lines = {colour: pixels_of(tmp_path / "a.png", colour) for colour in PALETTE[:2]}
    assert (lines[PALETTE[0]] > 3000, lines[PALETTE[1]] > 3000) == (gained > 0, lost > 0)
    says = draw_differences(comparison, tmp_path / "d.png")
    assert says == f"Against one model for each task: {gained // 4} of 1 runs are level or better on average"
    draw_pareto(comparison, tmp_path / "p.png")
    assert (tmp_path / "p.png").exists()


def test_the_pareto_picture_names_the_front(four: Comparison, tmp_path: Path) -> None:
    says = draw_pareto(four, tmp_path / "p.png")  # 900 parameters for L_adapt 0, 902 for 2
    assert says == "Size against quality: no run beats uniform, L_adapt 0 or uniform, L_adapt 2"


def test_sizes_are_compared_where_there_are_several(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name)
    assert draw_pareto(compare(read_runs([tmp_path / "runs"])), tmp_path / "p.png") is None
    assert not (tmp_path / "p.png").exists()


def test_a_picture_is_wide_enough_for_its_words(tmp_path: Path) -> None:
    write_run(
        tmp_path / "runs" / "only", only=["word"], values={"word": 0.5}, evaluations={6: CURVE[6], 18: CURVE[6]}
    )
    draw_forgetting(compare(read_runs([tmp_path / "runs"])), tmp_path / "f.png")
    pixels = image.imread(tmp_path / "f.png")[..., :3]
    assert (pixels[:60, -10:] > 0.99).all()  # the title ends before the right edge
    assert (pixels[:60, -200:] < 0.5).any()  # and not long before


def test_labels_hide_neither_points_nor_each_other() -> None:
    figure = Figure(figsize=(6, 4))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    rng = np.random.Generator(np.random.Philox(0))
    marks = [(float(x), float(y), f"label {i}") for i, (x, y) in enumerate(rng.normal(size=(30, 2)))]
    marks[0] = (0.0, 5.0, "label 0")
    axes.plot([x for x, _, _ in marks], [y for _, y, _ in marks], "o")
    figure.draw_without_rendering()
    place_labels(axes, marks, {0}, [])
    boxes = [text.get_window_extent() for text in axes.texts]
    assert 5 <= len(boxes) <= 14
    assert axes.texts[0].get_text() == "label 0"
    dots = axes.transData.transform([(x, y) for x, y, _ in marks])
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert not any(box.contains(x, y) for x, y in dots)


# ------------------------------------------------------------------------------------------------- the page


class Tags(HTMLParser):
    """Checks that tags close in order, and keeps what would be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loaded += [str(value) for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_report_is_one_page_in_itself(tmp_path: Path) -> None:
    runs = read_runs([sweep_of_four(tmp_path / "four"), write_run(tmp_path / "stopped", finished=False)])
    singles = read_runs(write_singles(tmp_path, {"picture": 0.6, "clip": 0.25, "sound": 0.5, "word": 0.25}))
    out = tmp_path / "deep" / "report"
    written = write_report(runs, out, "A < B & <script>", singles, "polyvit compare here")
    assert sorted(path.name for path in out.iterdir()) == sorted(written)
    assert set(written) == {
        "report.html", "leaderboard.csv", "table.md", "by_schedule_kind.png", "by_model_l_adapt.png", "alone.png",
        "differences.png", "pareto.png", "losses.png",
    }  # fmt: skip
    page = written["report.html"].read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    inside = [base64.b64decode(address.removeprefix("data:image/png;base64,")) for address in tags.loaded]
    assert sorted(inside) == sorted(path.read_bytes() for path in out.glob("*.png"))
    assert not re.search(r"https?:|@import|url\(|<script", page)
    text = "\n".join(tags.text)
    for words in (
        "A < B & <script>", "uniform, L_adapt 2", "2.7x fewer", "polyvit compare here", "schedule.kind",
        "stopped at 18 of 18", "Not drawn: needs several evaluations", "train.eval_every",
    ):  # fmt: skip
        assert words in text, words


def test_a_picture_of_an_earlier_report_does_not_stay(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "a", evaluations=CURVE)])
    assert "forgetting.png" in write_report(runs, tmp_path / "out", "first")
    runs = read_runs([write_run(tmp_path / "b")])
    assert "forgetting.png" not in write_report(runs, tmp_path / "out", "second")
    assert not (tmp_path / "out" / "forgetting.png").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "a")])
    with pytest.raises(UserError, match="give another --out"):
        write_report(runs, tmp_path / "a" / "config.json" / "out", "title")
