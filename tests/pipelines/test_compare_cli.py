"""`polyvit compare`: tables, files, JSON; one message for a mistake."""

import json
from pathlib import Path

import pytest
from runs_kit import CURVE, sweep_of_four, write_run, write_singles

from pipelines import cli


def test_a_comparison_with_baselines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep_of_four(tmp_path / "sweep")
    write_run(tmp_path / "sweep" / "halted", "seed=9", evaluations={6: CURVE[6]}, finished=False)
    write_singles(tmp_path / "single", {"picture": 0.6, "clip": 0.25, "sound": 0.5, "word": 0.25})
    out, data = tmp_path / "out", tmp_path / "c.json"
    given = ["compare", str(tmp_path / "sweep"), "--baseline", str(tmp_path / "single"), "--out", str(out)]
    assert cli.main([*given, "--title", "Four", "--json", str(data)]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if "L_adapt" in line]
    assert [line.split("│")[2].strip() for line in lines] == [
        "uniform-2", "task_by_task-2", "uniform-0", "task_by_task-0", "halted",
    ]  # fmt: skip
    assert [line.split("│")[3].strip() for line in lines] == [
        "uniform, L_adapt 2", "task by task, L_adapt 2", "uniform, L_adapt 0", "task by task, L_adapt 0",
        "weighted, L_adapt 1",
    ]  # fmt: skip
    assert "-0.050" in lines[2]
    assert "stopped at 6 of 18" in lines[4]
    assert "2.7x fewer" in printed  # 2400 / 902
    assert "1 of 5 runs did not come to their end" in printed
    document = json.loads(data.read_text())
    assert (document["best"], document["objective"]) == ("uniform-2", "mean")
    assert [row["run"] for row in document["leaderboard"]][-1] == "halted"
    assert document["baselines"]["picture"] == 0.6
    assert all(Path(path).is_file() for path in document["files"].values())
    page = (out / "report.html").read_text()
    assert "<h1>Four</h1>" in page
    assert f"--baseline {tmp_path / 'single'}" in page


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{here}/nothing"], "nothing: no such run here or in runs"),
        (["{here}/good", "--baseline", "{here}/good"], "--baseline good: a baseline is a run of one task"),
        (["{here}/good", "--out", "{here}/good/config.json"], "is a file; give a folder"),
        (["{here}/broken"], "result.json cannot be read"),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    write_run(tmp_path / "good")
    (write_run(tmp_path / "broken") / "result.json").write_text("{")
    given = [argument.format(here=tmp_path) for argument in arguments]
    out = [] if "--out" in given else ["--out", str(tmp_path / "out")]
    assert cli.main(["compare", *given, *out]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert says in err
    assert "Traceback" not in err
