"""The command line: exit statuses, one message for a mistake and no traceback, `--json` also on errors."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from pipelines_kit import pair_config
from small import small_config

from pipelines import cli
from pipelines.plan import early_stopping_line
from polyvit import __version__
from polyvit.config import recipe_names

ROOT = Path(__file__).parents[2]


def failed(capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: str) -> tuple[str, dict]:
    """stderr and the JSON of a command that must end with status 2."""
    as_data = tmp_path / "error.json"
    assert cli.main([*arguments, "--json", str(as_data)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    document = json.loads(as_data.read_text())
    assert document.keys() == {"error", "problems"}
    assert document["error"] in err
    assert all(problem.split("\n")[0] in err for problem in document["problems"])
    return err, document


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["help"]])
def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in cli.COMMANDS)


@pytest.mark.parametrize("argument", ["-V", "--version"])
def test_version(capsys: pytest.CaptureFixture[str], argument: str) -> None:
    assert cli.main([argument]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_python_m_polyvit_is_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["polyvit", "no-such-command"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("polyvit", run_name="__main__")
    assert ended.value.code == 2


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_a_module_with_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: polyvit {command}" in capsys.readouterr().out


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cotrian"]) == 2
    err = capsys.readouterr().err
    assert "unknown command 'cotrian'" in err
    assert "cotrain" in err


def test_exit_statuses_of_real_processes() -> None:
    """As a shell sees them; `python -m pipelines.<command>` is the same as the command."""
    good = subprocess.run([sys.executable, "-m", "pipelines.recipes"], cwd=ROOT, capture_output=True, text=True)
    assert (good.returncode, good.stderr) == (0, "")
    assert "tiny-nine" in good.stdout
    bad = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "cotrain", "dmeo"], cwd=ROOT, capture_output=True, text=True
    )
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: unknown recipe 'dmeo'. Did you mean demo?")
    assert len(bad.stderr.splitlines()) == 1


def test_recipes_as_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["recipes", "--json", str(tmp_path / "r.json")]) == 0
    document = json.loads((tmp_path / "r.json").read_text())
    assert list(document["recipes"]) == recipe_names()
    assert document["recipes"]["schedules-tiny"]["steps"] == 225  # its schedule.steps, not its tasks' sum
    out = capsys.readouterr().out
    for name, row in document["recipes"].items():
        assert name in out
        assert f"{row['steps']:,}" in out


@pytest.mark.parametrize("command", ["cotrain", "index", "plan"])
def test_an_unknown_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    err, document = failed(capsys, tmp_path, command, "dmeo")
    assert "unknown recipe 'dmeo'. Did you mean demo?" in err
    assert document["problems"] == []


@pytest.mark.parametrize("command", ["cotrain", "index", "plan"])
def test_all_config_problems_in_one_message(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    _, document = failed(
        capsys, tmp_path, command, "demo", "model.wdth=3", "optim.lr=-1", "model.image.size=30",
        "model.l_adapt=99",
    )  # fmt: skip
    assert document["error"] == "the config has 5 problems:"
    assert sorted(problem.split(":")[0] for problem in document["problems"]) == [
        "model.image", "model.image", "model.l_adapt=99 must be at most model.depth=3", "model.wdth", "optim.lr",
    ]  # fmt: skip


def test_missing_roots(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    nowhere, storage = tmp_path / "nowhere", tmp_path / "runs"
    _, document = failed(capsys, tmp_path, "cotrain", "demo", f"data.root={nowhere}", f"storage={storage}")
    assert document["error"] == "data are missing:"
    assert len(document["problems"]) == 9
    assert document["problems"][3] == (
        f"tasks.pets: {nowhere}/pets is not a folder; set data.root to where the data are"
    )
    assert not storage.exists()  # a run that cannot start leaves nothing behind
    failed(capsys, tmp_path, "plan", "demo", f"data.root={nowhere}")
    failed(capsys, tmp_path, "index", "demo", f"data.root={nowhere}")


@pytest.mark.parametrize("key", ["tasks.shapes.classes", "tasks.shapes.root", "data.root", "init.path", "storage"])
def test_a_text_that_is_no_path(
    pair_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    pair_config(pair_root, tmp_path)
    names = "cat,dog," * 600
    assert cli.main(["plan", f"{tmp_path}/pair.yaml", f"{key}={names}"]) == 2
    assert f"{key}=cat,dog,cat" in (err := capsys.readouterr().err)
    assert "4800 letters are no path" in err


@pytest.mark.parametrize("command", ["plan", "evaluate", "predict", "compare"])
def test_an_argument_that_is_no_path(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert cli.main([command, "x" * 5000, *(["a.jpg"] if command == "predict" else [])]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_what_goes_with_resume(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    storage = f"storage={tmp_path}"
    err, _ = failed(capsys, tmp_path, "cotrain", storage, "--resume", "no-such-run")
    assert "--resume no-such-run: no such run" in err
    assert str(tmp_path) in err
    err, _ = failed(capsys, tmp_path, "cotrain", "demo", "--resume", "no-such-run")
    assert "--resume takes its config from the run; leave out 'demo'" in err
    err, _ = failed(capsys, tmp_path, "cotrain")
    assert "give a CONFIG" in err


def test_storage_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, pair_root: Path
) -> None:
    (tmp_path / "file").write_text("")
    pair_config(pair_root, tmp_path)
    err, _ = failed(capsys, tmp_path, "cotrain", f"{tmp_path}/pair.yaml", f"storage={tmp_path}/file/x")
    assert f"storage={tmp_path}/file/x cannot be written" in err


def test_json_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["recipes", "--json", f"{tmp_path}/none/out.json"]) == 2
    assert "none/out.json" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--nonsense"], ["demo", "--only"], []])
def test_wrong_flags(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["index", *arguments])
    assert ended.value.code == 2
    assert "usage: polyvit index" in capsys.readouterr().err


def test_only_a_task_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    err, _ = failed(capsys, tmp_path, "cotrain", "demo", "--only", "pest")
    assert "--only pest: the recipe has no such task; it has imagenet" in err


def test_synth_and_its_mistakes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target, as_data = tmp_path / "toy", tmp_path / "s.json"
    arguments = ["synth", str(target), "--task", "cifar10", "--train", "8", "--evaluation", "4"]
    assert cli.main([*arguments, "--json", str(as_data)]) == 0
    document = json.loads(as_data.read_text())
    assert document["folder"] == str(target)
    assert document["tasks"].keys() == {"cifar10"}
    assert sum(document["tasks"]["cifar10"].values()) == 12
    assert "polyvit cotrain demo data.root=" in capsys.readouterr().out
    err, _ = failed(capsys, tmp_path, *arguments, "--classes", "2")
    assert "other arguments" in err
    err, _ = failed(capsys, tmp_path, "synth", str(tmp_path / "new"), "--task", "cifar11", "--train", "0")
    assert not (tmp_path / "new").exists()
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("")
    err, _ = failed(capsys, tmp_path, "synth", str(full))
    assert "is not empty" in err


def test_plan_without_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    as_data, picture = tmp_path / "p.json", tmp_path / "s.png"
    arguments = ["plan", "demo", "data.root=null", "--picture", str(picture), "--json", str(as_data)]
    assert cli.main(arguments) == 0
    document, out = json.loads(as_data.read_text()), capsys.readouterr().out
    assert document["steps"] == sum(row["steps"] for row in document["tasks"].values())
    assert sum(row["probability"] for row in document["tasks"].values()) == pytest.approx(1)
    assert document["parameters"]["total"] == sum(v for k, v in document["parameters"].items() if k != "total")
    assert "data not read" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("command", ["cotrain", "index", "plan"])
def test_data_that_contradict_the_config(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, pair_root: Path, command: str
) -> None:
    """A class count, and an empty split: both in one message."""
    pair_config(pair_root, tmp_path)
    _, document = failed(
        capsys, tmp_path, command, f"{tmp_path}/pair.yaml", f"storage={tmp_path}/runs",
        "tasks.shapes.num_classes=2", "tasks.sounds.eval_split=test",
    )  # fmt: skip
    shapes, sounds = document["problems"]
    assert "has 3 classes, tasks.shapes.num_classes is 2" in shapes
    assert "tasks.sounds: eval_split=test is empty" in sounds


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_name_is_free_again_after_a_run_that_did_not_start(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, pair_root: Path
) -> None:
    pair_config(pair_root, tmp_path)
    arguments = ["cotrain", f"{tmp_path}/pair.yaml", f"storage={tmp_path}/runs", "--name", "mine"]
    for _ in range(2):
        _, document = failed(capsys, tmp_path, *arguments, "tasks.shapes.num_classes=2")
        assert document["error"] == "the data do not fit the config:"
    (tmp_path / "runs" / "mine" / "run.json").write_text("{}")  # now it did start
    err, _ = failed(capsys, tmp_path, *arguments)
    assert "run mine exists" in err
    assert "--resume mine" in err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_that_is_too_small(capsys: pytest.CaptureFixture[str], tmp_path: Path, pair_root: Path) -> None:
    """Such a job would wait for ever."""
    pair_config(pair_root, tmp_path)
    _, document = failed(
        capsys, tmp_path, "cotrain", f"{tmp_path}/pair.yaml", f"storage={tmp_path}/runs",
        "train.workers=2", "train.cpus_per_worker=500",
    )  # fmt: skip
    assert "the Ray cluster is too small for train.workers=2" in document["error"]
    assert document["problems"][0].startswith("CPU: needs 1001, the cluster has ")


def test_plan_says_that_early_stopping_may_end_the_run() -> None:
    assert early_stopping_line(small_config()) is None
    line = early_stopping_line(small_config("train.eval_every=4", "train.early_stopping.patience=3"))
    assert line == (
        "may end before the plan's steps (train.early_stopping): after 3 evaluations in a row, one in 4 steps,"
        " without a better mean"
    )


@pytest.mark.parametrize(("steps", "said"), [(60, True), (61, False)])
def test_a_run_that_ends_within_its_warmup_is_said(
    steps: int, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "tiny-nine", "--no-measure", f"schedule.steps={steps}"]) == 0
    words = "warmup takes 60 updates and the run has 60: the peak learning rate is not reached"
    assert (words in " ".join(capsys.readouterr().out.split())) is said


@pytest.mark.parametrize("words", [["plan", "--no-measure"], ["sweep", "--over", "model.l_adapt=0,1"]])
def test_tasks_that_an_extending_file_leaves_out_are_named(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: images-only\ntasks:\n  pets: {steps: 5}\n")
    cli.main([words[0], str(recipe), *words[1:], f"storage={tmp_path}"])  # a sweep needs data: refused after it
    said = " ".join(capsys.readouterr().out.split())
    assert "of images-only it leaves out imagenet, cifar100, cifar10, resisc45" in said
