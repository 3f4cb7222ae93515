"""Numbers of a comparison by hand: reading, order, forgetting, fronts, differences; what damaged runs say."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from runs_kit import CURVE, VALUES, run_config, sweep_of_four, write_run, write_singles
from s3_kit import s3_server

from polyvit.checkpoint.store import open_store, write_manifest
from polyvit.errors import UserError
from polyvit.model import parameters_of
from polyvit.reports.compare.comparison import (
    Baseline,
    cells,
    compare,
    differences,
    forgetting,
    leaderboard,
    parameters_saved,
    pareto,
    write_csv,
)
from polyvit.reports.compare.heat_maps import draw_key
from polyvit.reports.compare.run_summary import read_run, read_runs
from polyvit.storage.location import under

# -------------------------------------------------------------------------------------------------- reading


def test_evaluations_also_come_from_checkpoints_kept_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_run(tmp_path / "a", evaluations={}, finished=False)
    evaluations = [{"step": 6, "tasks": {task: {"value": value} for task, value in CURVE[6].items()}}]
    with s3_server() as url:
        store = open_store(under(url, "a"))
        with store.scratch() as scratch:
            (scratch / "state.json").write_text(json.dumps({"evaluations": evaluations}))
            write_manifest(scratch, {})
            store.commit(scratch, 6)
        (folder / "run.json").write_text(json.dumps({"checkpoints": store.address}))
        assert read_run(folder).values == CURVE[6]
    (folder / "run.json").write_text(json.dumps({"checkpoints": "nowhere://bucket/a"}))
    assert read_run(folder).evaluations == ()
    assert "its curves count" in caplog.text


def test_a_finished_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a", evaluations=CURVE))
    assert (run.name, run.steps, run.finished, run.status) == ("a", 18, True, "finished")
    assert run.values == VALUES
    assert run.evaluations == tuple(CURVE.items())
    assert run.losses["clip"] == [(step, 1 / step) for step in range(2, 19, 2)]
    assert run.chance == dict.fromkeys(VALUES, 0.1)
    assert run.total_parameters == 1000
    assert len(run.schedule) == 18


def test_a_stopped_run_has_the_values_of_its_last_evaluation(tmp_path: Path) -> None:
    curve = {step: CURVE[step] for step in (6, 12)}
    run = read_run(write_run(tmp_path / "a", evaluations=curve, finished=False))
    assert (run.finished, run.steps, run.status) == (False, 12, "stopped at 12 of 18")
    assert run.values == CURVE[12]


def test_evaluations_also_come_from_the_newest_checkpoint(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", evaluations={}, finished=False)
    for step in (6, 12):
        lost = [
            {"step": s, "tasks": {task: {"value": v} for task, v in CURVE[s].items()}}
            for s in (6, 12)
            if s <= step
        ]
        (folder / f"step_{step:08d}").mkdir()
        (folder / f"step_{step:08d}" / "state.json").write_text(json.dumps({"evaluations": lost}))
    run = read_run(folder)
    assert run.evaluations == ((6, CURVE[6]), (12, CURVE[12]))
    assert (run.steps, run.values) == (12, CURVE[12])


def test_a_run_without_evaluation_is_shown_last(tmp_path: Path) -> None:
    write_run(tmp_path / "a", evaluations={}, finished=False)
    write_run(tmp_path / "b")
    comparison = compare(read_runs([tmp_path]))
    assert [run.name for run in comparison.runs] == ["b", "a"]
    assert comparison.runs[1].status == "stopped at 2 of 18, no evaluation"
    assert comparison.mean(comparison.runs[1]) is None
    with pytest.raises(UserError, match=r"none of these runs has been evaluated yet.*train\.eval_every"):
        compare(read_runs([tmp_path / "a"]))


def test_parameters_are_counted_where_their_file_is_absent(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a", total=None))
    assert run.total_parameters == sum(parameters_of(run_config()).values())


def test_a_folder_of_runs_a_checkpoint_and_a_name_in_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    assert [run.name for run in read_runs(["runs"])] == ["a", "b"]
    assert [run.name for run in read_runs(["b", "runs/a/step_00000018", "runs/b"])] == ["b", "a"]  # b once


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for parent in ("x", "y"):
        write_run(tmp_path / parent / "a")
    write_run(tmp_path / "c")
    runs = read_runs([tmp_path / "x", tmp_path / "y", tmp_path / "c"])
    assert [run.name for run in runs] == ["x/a", "y/a", "c"]


# --------------------------------------------------------------------------------------------------- damage


def test_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        read_runs([tmp_path / "empty", tmp_path / "nowhere", write_run(tmp_path / "good")])
    assert caught.value.message == "2 of the runs cannot be compared:"
    empty, nowhere = caught.value.problems
    assert "empty is not a run and holds none: no config.json" in empty
    assert "nowhere: no such run" in nowhere
    assert "polyvit cotrain" in nowhere


def test_what_a_failed_start_left_is_no_run(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "good")
    (tmp_path / "runs" / "bad" / "index").mkdir(parents=True)
    shutil.copy(tmp_path / "runs" / "good" / "config.json", tmp_path / "runs" / "bad")
    assert [run.name for run in read_runs([tmp_path / "runs"])] == ["good"]
    with pytest.raises(UserError, match="one of the runs") as caught:
        read_runs([tmp_path / "runs" / "bad"])
    assert "bad is what a failed start left: the run took no step. Delete it" in caught.value.problems[0]
    shutil.rmtree(tmp_path / "runs" / "good")
    with pytest.raises(UserError, match="holds no run that took a step"):
        read_runs([tmp_path / "runs"])


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("result.json", '{"steps": 18, "tasks"', "result.json cannot be read"),
        ("result.json", "[]", "result.json holds no mapping"),
        ("result.json", '{"steps": 18, "tasks": {}}', "KeyError: 'picture'"),
        ("config.json", '{"tasks": {}}', "config.json does not fit this version"),
        ("parameters.json", "{", "parameters.json cannot be read"),
        ("history/00000001-00000018.jsonl", '{"step": 2, "val', "history or checkpoint is damaged"),
        ("step_00000018/state.json", '{"evaluations": [{"step": 3}]}', "history or checkpoint is damaged"),
    ],
)
def test_damage_names_the_run_and_what_to_do(tmp_path: Path, file: str, content: str, says: str) -> None:
    folder = write_run(tmp_path / "broken")
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(content)
    with pytest.raises(UserError) as caught:
        read_run(folder)
    assert str(folder) in caught.value.message
    assert says in caught.value.message
    if file not in ("config.json", "parameters.json"):
        assert "leave this run out" in caught.value.message


def test_runs_that_cannot_be_compared(tmp_path: Path) -> None:
    a = read_run(write_run(tmp_path / "a", only=["clip", "word"]))
    b = read_run(write_run(tmp_path / "b", only=["picture", "sound"]))
    with pytest.raises(UserError, match="no measured task in common"):
        compare([a, b])
    with pytest.raises(UserError, match=r"--baseline b: a baseline is a run of one task.*--only TASK"):
        compare([a], [b])
    with pytest.raises(UserError, match="no run to compare"):
        compare([])


# -------------------------------------------------------------------------------------------------- numbers


def test_forgetting_is_the_best_so_far_minus_the_last(tmp_path: Path) -> None:
    lost = forgetting(read_run(write_run(tmp_path / "a", evaluations=CURVE)))
    assert lost == pytest.approx({"picture": 0.1, "clip": 0.15, "sound": 0.0, "word": 0.0})
    assert forgetting(read_run(write_run(tmp_path / "b"))) == {}


def test_pareto_front() -> None:
    #         dear    best    beaten  same size  front   equal to 4
    points = [(9, 0.7), (5, 0.9), (5, 0.8), (6, 0.9), (1, 0.2), (1, 0.2), (3, 0.2), (4, 0.5)]
    assert pareto(points) == [4, 7, 1]
    assert pareto([]) == []


def test_differences_to_single_task_models(tmp_path: Path) -> None:
    write_run(tmp_path / "all")
    write_singles(tmp_path, {"picture": 0.4, "clip": 0.45, "sound": 0.75, "word": 0.5})
    write_run(tmp_path / "again", values={"word": 0.625}, only=["word"], total=500)  # of two, the better counts
    comparison = compare(read_runs([tmp_path]))
    assert [run.name for run in comparison.runs] == ["all"]
    assert comparison.baselines["word"] == Baseline(0.625, 500, tmp_path / "again")
    gaps = differences(comparison.best.values, comparison.baselines)
    assert gaps == pytest.approx({"picture": 0.1, "clip": -0.2, "sound": 0.0, "word": -0.125})
    assert comparison.worst(comparison.best) == ("clip", pytest.approx(-0.2))
    assert parameters_saved(comparison.best, comparison.baselines) == (600 * 3 + 500, pytest.approx(2.3))


def test_nothing_is_said_of_parameters_where_a_single_model_is_missing(tmp_path: Path) -> None:
    write_run(tmp_path / "all")
    write_singles(tmp_path, {"picture": 0.4})
    comparison = compare(read_runs([tmp_path]))
    assert parameters_saved(comparison.best, comparison.baselines) is None
    assert comparison.worst(comparison.best) == ("picture", pytest.approx(0.1))


def test_baselines_and_objective_of_a_sweep(tmp_path: Path) -> None:
    sweep = "sweep={objective: worst_regression, baselines: {picture: 0.5, clip: 0.25, sound: 0.5, word: 0.5}}"
    write_run(tmp_path / "mean", sweep, values={"picture": 0.9, "clip": 0.15, "sound": 0.8, "word": 0.6})
    write_run(tmp_path / "safe", sweep)
    comparison = compare(read_runs([tmp_path]))
    assert comparison.objective == "worst_regression"
    assert [run.name for run in comparison.runs] == ["safe", "mean"]
    assert comparison.worst(comparison.runs[1]) == ("clip", pytest.approx(-0.1))
    assert comparison.keys == {}  # the sweep section tells nothing about a run


def test_runs_of_single_tasks_alone_are_compared_as_runs(tmp_path: Path) -> None:
    for name, value in (("a", 0.2), ("b", 0.4)):
        write_run(tmp_path / name, values={"word": value}, only=["word"])
    comparison = compare(read_runs([tmp_path]))
    assert [run.name for run in comparison.runs] == ["b", "a"]
    assert comparison.baselines == {}


# --------------------------------------------------------------------------------- keys, labels, leaderboard


def test_differing_keys_and_labels(tmp_path: Path) -> None:
    comparison = compare(read_runs([sweep_of_four(tmp_path)]))
    assert list(comparison.keys) == ["schedule.kind", "model.l_adapt"]
    assert comparison.keys["model.l_adapt"]["uniform-2"] == 2
    assert comparison.labels == {
        "uniform-2": "uniform, L_adapt 2", "uniform-0": "uniform, L_adapt 0",
        "task_by_task-2": "task by task, L_adapt 2", "task_by_task-0": "task by task, L_adapt 0",
    }  # fmt: skip
    assert [run.name for run in comparison.runs] == ["uniform-2", "task_by_task-2", "uniform-0", "task_by_task-0"]


def test_a_key_that_tells_nothing_more_stays_out_of_the_labels(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "seed=1", "optim.lr=0.1", "optim.momentum=0.5")
    write_run(tmp_path / "b", "seed=2", "optim.lr=0.2", "optim.momentum=0.6")
    write_run(tmp_path / "c", "seed=1", "optim.lr=0.2", "optim.momentum=0.5")
    comparison = compare(read_runs([tmp_path]))
    assert list(comparison.keys) == ["seed", "optim.lr", "optim.momentum"]
    assert comparison.labels == {"a": "lr 0.1, seed 1", "b": "lr 0.2, seed 2", "c": "lr 0.2, seed 1"}


def test_a_key_that_does_nothing_in_a_run_is_not_said_of_it(tmp_path: Path) -> None:
    """Temperature is of weighted sampling, the coefficient and the aggregator of accumulating; how often a run is
    evaluated matters where its schedule reacts."""
    write_run(tmp_path / "a", "schedule.temperature=2", "train.eval_every=2")
    write_run(tmp_path / "b", "seed=1", "train.eval_every=3")
    write_run(tmp_path / "c", "schedule.kind=uniform")
    sums = ("schedule.kind=accumulating", "schedule.accumulating_lr_coef=0.5")
    write_run(tmp_path / "d", *sums)
    write_run(tmp_path / "e", *sums, "schedule.balancing=upgrad")
    write_run(tmp_path / "f", "schedule.kind=adaptive", "train.eval_every=4")
    comparison = compare(read_runs([tmp_path]))
    assert list(comparison.keys) == ["schedule.kind", "schedule.balancing", "schedule.temperature", "seed"]
    assert comparison.labels == {
        "a": "weighted, temperature 2", "b": "weighted, temperature 1", "c": "uniform",
        "d": "accumulating, balancing sum", "e": "accumulating, balancing upgrad", "f": "adaptive, temperature 1",
    }  # fmt: skip
    rows = cells(comparison, "schedule.temperature")
    assert [(row.value, row.runs) for row in rows] == [(1.0, 2), (2.0, 1)]


def test_a_run_of_a_task_that_no_other_has_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "alone", only=["picture"], values={"picture": 0.5})
    write_run(tmp_path / "others", only=["clip", "sound"])
    with pytest.raises(UserError, match="no other run has the task of alone: nothing to compare it with"):
        compare(read_runs([tmp_path / "alone", tmp_path / "others"]))


def test_other_data_and_copies_are_said(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "data.root=here")
    write_run(tmp_path / "copy", "data.root=here")
    write_run(tmp_path / "b", "data.root=there", "tasks.clip.eval_split=test")
    notes = compare(read_runs([tmp_path])).notes
    assert "All tasks: read from different places (`data.root`, `tasks.T.root`)" in " ".join(notes)
    assert "clip: evaluated on different splits (`eval_split`)" in " ".join(notes)
    (copies,) = (note for note in notes if "copies of one run?" in note)
    assert copies.startswith("a, copy have the same settings, seed and values")


def test_a_sweeps_folder_stands_for_its_trials(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_run(tmp_path / "swept" / "trials" / name, f"model.l_adapt={int(name == 'two')}")
    write_run(tmp_path / "run", "optim.lr=0.3")
    (tmp_path / "swept" / "sweep.json").write_text("{}")
    assert [run.name for run in read_runs([tmp_path / "swept"])] == ["one", "two"]
    assert sorted(run.name for run in read_runs([tmp_path])) == ["one", "run", "two"]


def test_runs_of_unequal_lengths_have_no_winner_among_schedules(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "short")
    write_run(tmp_path / "runs" / "long", "schedule.kind=uniform", "schedule.steps=40")
    says = draw_key(compare(read_runs([tmp_path / "runs"])), "schedule.kind", tmp_path / "kinds.png")
    assert says == "Schedules: runs of 18 to 40 minibatches, so no value is the best"


def test_equal_examples_are_equal_lengths(tmp_path: Path) -> None:
    """Steps of accumulating are fewer and larger."""
    write_run(tmp_path / "one", "schedule.steps=20")
    write_run(tmp_path / "sum", "schedule.steps=20", "schedule.kind=accumulating")
    (note,) = (note for note in compare(read_runs([tmp_path])).notes if "minibatches" in note)
    assert note.startswith("All runs took 20 minibatches.")
    assert note.endswith("it made 5 updates where others made 20.")


def test_equal_runs_keep_their_names_and_their_order(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_run(tmp_path / name)
    comparison = compare(read_runs([tmp_path / "c", tmp_path / "b", tmp_path / "a"]))
    assert [run.name for run in comparison.runs] == ["a", "b", "c"]
    assert comparison.labels == {"a": "a", "b": "b", "c": "c"}


def test_means_are_over_the_tasks_that_all_runs_have(tmp_path: Path) -> None:
    write_run(tmp_path / "a", only=["picture", "clip"], values={"picture": 0.3, "clip": 0.5})
    write_run(tmp_path / "b", only=["clip", "sound"], values={"clip": 0.4, "sound": 0.9})
    comparison = compare(read_runs([tmp_path]))
    assert comparison.tasks == ("picture", "clip", "sound")
    assert [(run.name, comparison.mean(run)) for run in comparison.runs] == [("a", 0.5), ("b", 0.4)]
    assert comparison.keys["tasks"] == {"a": "picture, clip", "b": "clip, sound"}
    assert comparison.notes == ("The runs have different tasks; means are over those of all runs: clip.",)


def test_a_task_that_no_run_measured_is_in_no_mean(tmp_path: Path) -> None:
    write_run(tmp_path / "a", values={**VALUES, "word": None})
    comparison = compare(read_runs([tmp_path / "a"]))
    assert comparison.mean(comparison.best) == 0.5
    assert comparison.notes == ("Not measured in any run, and in no mean: word.",)


def test_the_leaderboard_as_rows_and_csv(tmp_path: Path) -> None:
    write_singles(tmp_path / "single", {"picture": 0.6, "clip": 0.25, "sound": 0.5, "word": 0.25})
    comparison = compare(read_runs([sweep_of_four(tmp_path / "runs")]), read_runs([tmp_path / "single"]))
    rows = leaderboard(comparison)
    assert rows[1] == {
        "rank": 2, "run": "task_by_task-2", "status": "finished", "steps": 18, "schedule.kind": "task_by_task",
        "model.l_adapt": 2, "mean": pytest.approx(0.55), "worst_regression": 0.0, "worst_task": "clip",
        "times_fewer_parameters": pytest.approx(2400 / 902), "eval/picture/top1": 0.7, "eval/clip/top1": 0.25,
        "eval/sound/map": 0.75, "eval/word/top1": 0.5, "parameters": 902,
        "folder": str(tmp_path / "runs" / "task_by_task-2"),
    }  # fmt: skip
    write_csv(rows, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [row["run"] for row in read] == [row["run"] for row in rows]
    assert [row["worst_regression"] for row in read][2:] == ["-0.04999999999999993", "-0.09999999999999998"]
    assert list(read[0]) == list(rows[0])


def test_cells_are_means_over_finished_runs(tmp_path: Path) -> None:
    sweep_of_four(tmp_path)
    write_run(tmp_path / "halted", "schedule.kind=uniform", evaluations={6: CURVE[6]}, finished=False)
    write_run(tmp_path / "lone", "schedule.kind=alternating", evaluations={6: CURVE[6]}, finished=False)
    comparison = compare(read_runs([tmp_path]))
    rows = cells(comparison, "schedule.kind")
    assert [(row.value, row.runs, row.stopped) for row in rows] == [
        ("uniform", 2, 0), ("task_by_task", 2, 0), ("alternating", 1, 1)
    ]  # fmt: skip
    assert rows[0].means == pytest.approx({"picture": 0.65, "clip": 0.25, "sound": 0.75, "word": 0.5})
    assert rows[0].mean == pytest.approx(0.5375)
    assert rows[2].means == CURVE[6]
    numbers = cells(comparison, "model.l_adapt")
    assert [row.value for row in numbers] == [0, 1, 2]  # numbers in order, not by merit
    assert numbers[0].means["picture"] == pytest.approx(0.525)
    assert comparison.notes[0].startswith("2 of 6 runs did not come to their end")


def test_the_spread_of_cells_is_over_seeds_alone(tmp_path: Path) -> None:
    for l_adapt, seed, value in ((0, 1, 0.2), (0, 2, 0.4), (1, 1, 0.7), (1, 2, 0.9), (1, 3, 0.8)):
        name, values = f"{l_adapt}-{seed}", {**VALUES, "clip": value}
        write_run(tmp_path / "runs" / name, f"model.l_adapt={l_adapt}", f"seed={seed}", values=values)
    write_run(tmp_path / "runs" / "lone", "schedule.kind=uniform", "seed=1")
    comparison = compare(read_runs([tmp_path / "runs"]))
    uniform, weighted = sorted(cells(comparison, "schedule.kind"), key=lambda row: row.value)
    # Squares about the mean of 0.2 0.4, and of 0.7 0.9 0.8: 0.02 + 0.02, with 1 + 2 degrees of freedom.
    assert weighted.sds == pytest.approx({"picture": 0, "clip": (0.04 / 3) ** 0.5, "sound": 0, "word": 0})
    assert weighted.sd == pytest.approx((0.04 / 3) ** 0.5 / 4)
    assert (uniform.sds, uniform.sd) == ({}, None)
    others = compare(read_runs([sweep_of_four(tmp_path / "four")]))
    assert all((row.sds, row.sd) == ({}, None) for row in cells(others, "schedule.kind"))


def test_what_is_no_run_among_runs_is_left_out_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_run(tmp_path / "first")
    (tmp_path / "failed").mkdir()
    shutil.copy(tmp_path / "first" / "config.json", tmp_path / "failed")
    (tmp_path / "index-cache").mkdir()
    (tmp_path / "mlflow.db").write_text("")
    runs = read_runs(sorted(tmp_path.iterdir()))
    assert [run.name for run in runs] == ["first"]
    (line,) = [record.message for record in caplog.records if "left out" in record.message]
    assert line.endswith(f"no runs: {tmp_path}/index-cache, {tmp_path}/mlflow.db, {tmp_path}/failed")
    with pytest.raises(UserError, match="cannot be compared"):
        read_runs([tmp_path / "first", tmp_path / "typo"])


def test_runs_of_different_lengths_are_said_to_be_so(tmp_path: Path) -> None:
    write_run(tmp_path / "long")
    short = json.loads((write_run(tmp_path / "short") / "result.json").read_text())
    (tmp_path / "short" / "result.json").write_text(json.dumps({**short, "steps": 9}))
    notes = compare(read_runs([tmp_path])).notes
    assert any("different lengths, 9 to 18 steps" in note for note in notes)


def test_repeats_are_one_note_and_runs_of_different_lengths_have_no_mean(tmp_path: Path) -> None:
    """0.2 and 0.4: mean 30 %, standard deviation 0.1 times the root of 2."""
    for seed, value in ((1, 0.2), (2, 0.4)):
        write_run(tmp_path / str(seed), f"seed={seed}", values={**VALUES, "clip": value})
    (note,) = compare(read_runs([tmp_path])).notes
    assert note.startswith("Over seed, in %, mean ± standard deviation: picture ")
    assert "clip 30.0 ± 14.1 (n = 2)" in note
    result = json.loads((tmp_path / "2" / "result.json").read_text())
    (tmp_path / "2" / "result.json").write_text(json.dumps({**result, "steps": 9}))
    lengths, mean = compare(read_runs([tmp_path])).notes
    assert "different lengths" in lengths
    assert mean == "No mean over seed: the runs took 9 to 18 steps. Compare runs of one length."
