"""Runs as the paper lays them out: rows, marks, spread over seeds, sets of models as one row."""

from pathlib import Path

import pytest
from runs_kit import write_run

from polyvit.reports.compare.comparison import compare
from polyvit.reports.compare.page import write_report
from polyvit.reports.compare.paper import SINGLE_MODALITY, SINGLE_TASK, paper_rows, paper_table, ranks
from polyvit.reports.compare.run_summary import RunSummary, read_runs

TASKS = ("picture", "clip", "sound", "word")


@pytest.fixture
def runs(tmp_path: Path) -> list[RunSummary]:
    """Two schedules of two seeds each, all four tasks alone, and the audio tasks together."""
    folders = []
    for kind, base in (("weighted", 0.6), ("uniform", 0.5)):
        for seed in (0, 1):
            values = dict.fromkeys(TASKS, base + 0.02 * seed) | {"clip": 0.3}
            folder = tmp_path / f"{kind}-{seed}"
            folders.append(write_run(folder, f"schedule.kind={kind}", f"seed={seed}", values=values, only=TASKS,
                                     total=1000))  # fmt: skip
    folders += [write_run(tmp_path / f"only-{t}", values={t: 0.55}, only=[t], total=600) for t in TASKS]
    audio = {"sound": 0.7, "word": 0.4}
    folders.append(write_run(tmp_path / "audio", values=audio, only=["sound", "word"], total=700))
    return read_runs(folders)


def test_rows_as_the_paper_has_them(runs: list[RunSummary]) -> None:
    rows = paper_rows(runs)
    assert [row.name for row in rows] == [SINGLE_TASK, SINGLE_MODALITY, "weighted", "uniform"]
    alone, audio, weighted, uniform = rows
    assert (alone.models, alone.parameters, alone.means) == (4, 2400, dict.fromkeys(TASKS, 0.55))
    assert (audio.models, audio.parameters, audio.means) == (1, 700, {"sound": 0.7, "word": 0.4})
    assert (weighted.models, weighted.parameters, weighted.seeds) == (1, 1000, 2)
    assert weighted.means["picture"] == pytest.approx(0.61)
    assert weighted.sds["picture"] == pytest.approx(0.02 / 2**0.5)
    assert uniform.means["sound"] == pytest.approx(0.51)
    assert ranks(rows, "picture") == {"weighted": 1, SINGLE_TASK: 2}
    assert ranks(rows, "sound") == {SINGLE_MODALITY: 1, "weighted": 2}
    assert ranks(rows, "clip") == {SINGLE_TASK: 1, "weighted": 2, "uniform": 2}  # level as printed


def test_the_markdown(runs: list[RunSummary]) -> None:
    lines = paper_table(runs).splitlines()
    assert lines[0].startswith("| model | #models | #params | picture (top-1) | clip (top-1) | sound (mAP)")
    assert lines[2] == "| single-task models | 4 | 2.4k | <u>55.0</u> | **55.0** | 55.0 | **55.0** |".replace(
        "55.0 | **55.0** |", "55.0 | <u>55.0</u> |"
    )
    assert lines[4].startswith("| weighted | 1 | 1k | **61.0** ± 1.4 | <u>30.0</u> ± 0.0 | <u>61.0</u> ± 1.4")
    assert "up to 2 runs behind a value, ± their standard deviation" in lines[-1]


def test_one_run_has_no_spread_and_no_mark(runs: list[RunSummary]) -> None:
    table = paper_table(runs[:1])
    assert "**" not in table
    assert "±" not in table
    assert "no spread is known" in table


def test_rows_by_l_adapt_in_order(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / f"l{n}", f"model.l_adapt={n}") for n in (2, 0, 3, 1)])
    assert [row.name for row in paper_rows(runs)] == [f"L_adapt {n}" for n in range(4)]


def test_a_report_of_single_modality_models_beside_the_whole(tmp_path: Path) -> None:
    """No task is in all of these runs, and the leaderboard is of those that have all tasks."""
    whole = write_run(tmp_path / "whole", only=TASKS, values=dict.fromkeys(TASKS, 0.5))
    audio = write_run(tmp_path / "audio", only=["sound", "word"], values={"sound": 0.6, "word": 0.6})
    image = write_run(tmp_path / "image", only=["picture"], values={"picture": 0.4})
    video = write_run(tmp_path / "video", "tasks.clip.steps=9", only=["clip"], values={"clip": 0.4})
    runs = read_runs([whole, audio, image, video])
    assert [run.name for run in compare(runs).runs if len(run.config.tasks) > 2] == ["whole"]
    written = write_report(runs, tmp_path / "report", "title")
    assert "single-modality models" in written["table.md"].read_text()
    page = written["report.html"].read_text()
    assert "As the paper lays it out" in page
    assert 'class="second"' in page
