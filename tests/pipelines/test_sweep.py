"""Sweeps: the space and its mistakes; real trials through Ray Tune, their MLflow runs, the registered winner."""

import contextlib
import io
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import avbert_small
import pytest
import soak
from mlflow.tracking import MlflowClient
from runs_kit import write_run, write_singles
from small import document as small_document
from small import small_config, write_yaml

from pipelines import cli
from pipelines.sweep import idle_rank
from pipelines.training.reporting import objective_of
from pipelines.tuning.search import concurrent_trials, fit, param_space, search_algorithm
from pipelines.tuning.space import all_trials, changes_of, check_space, format_changes, trial_config
from polyvit.config import Range, load_config
from polyvit.errors import UserError
from polyvit.schedule.schedule import schedule_of

ROOT = Path(__file__).parents[2]


def spaced(**changes: Any) -> Any:
    config = small_config()
    return config.model_copy(update={"sweep": config.sweep.model_copy(update=changes)})


def test_a_trial_is_the_config_with_some_keys_changed() -> None:
    base = small_config().model_dump(mode="json")
    trial = trial_config(base, {"schedule.kind": "uniform", "tasks.sound.lr_coef": 0.5})
    assert (trial.schedule.kind, trial.tasks["sound"].lr_coef) == ("uniform", 0.5)
    assert trial.tasks["picture"] == small_config().tasks["picture"]
    assert base == small_config().model_dump(mode="json")  # not changed on the way


def test_models_of_fewer_tasks_are_trials_with_the_same_steps_of_a_task() -> None:
    """Four tasks of three modalities: `sound` and `word` make the one modality that is no task alone."""
    config = small_config("optim.warmup_steps=6", "schedule.steps=36", "sweep.alone=[modalities,tasks]")
    space = {"seed": [3, 4], "model.l_adapt": [0, 1, 2]}
    config = config.model_copy(update={"sweep": config.sweep.model_copy(update={"space": space})})
    check_space(config)
    trials, base = all_trials(config), config.model_dump(mode="json")
    assert trials[:2] == [{"seed": 3, "model.l_adapt": 0}, {"seed": 3, "model.l_adapt": 1}]
    assert [t for t in trials if "only" in t and t["seed"] == 4] == [
        {"only": only, "seed": 4} for only in (["picture"], ["clip"], ["sound", "word"], ["sound"], ["word"])
    ]
    assert len(trials) == 6 + 2 * 5
    counts = {"picture": 10, "clip": 8, "sound": 12, "word": 6}  # twice the tasks' own
    audio, sound = (trial_config(base, {"only": only, "seed": 4}) for only in (["sound", "word"], ["sound"]))
    assert {name: task.steps for name, task in audio.tasks.items()} == {"sound": 12, "word": 6}
    assert schedule_of(audio).counts() == {"sound": 12, "word": 6}
    assert (schedule_of(sound).counts(), sound.seed) == ({"sound": 12}, 4)
    assert schedule_of(config).counts() == counts
    assert (audio.warmup_steps, sound.warmup_steps) == (3, 2)  # 18 and 12 of 36 steps
    assert format_changes({"only": ["sound", "word"], "seed": 4}) == "only=sound,word seed=4"
    assert param_space(config) == {"trial": {"grid_search": trials}}
    assert changes_of({"trial": trials[-1]}) == trials[-1]
    assert changes_of(trials[0]) == trials[0]


def test_models_of_fewer_tasks_cannot_be_ranked_early() -> None:
    with pytest.raises(UserError) as caught:
        small_config("sweep.alone=[tasks]", "sweep.search=random")
    assert "sweep.alone needs sweep.search=grid" in "\n".join([caught.value.message, *caught.value.problems])


def test_every_mistake_of_a_space_is_named_at_once() -> None:
    with pytest.raises(UserError, match="nothing to try"):
        check_space(small_config())
    space = {"model.l_adapt": [0, 99], "schedule.kind": ["weighted", "random"], "model.deepth": [3]}
    with pytest.raises(UserError, match="the space of the sweep does not fit") as caught:
        check_space(spaced(space=space))
    lines = "\n".join(caught.value.problems)
    assert "model.l_adapt=99: model.l_adapt=99 must be at most model.depth=" in lines
    assert "schedule.kind=random: schedule.kind" in lines
    assert "model.deepth" in lines
    assert "model.depth" in lines
    assert len(caught.value.problems) == 3
    check_space(spaced(space={"model.l_adapt": [0, 1]}))


def test_what_contradicts_itself_in_a_sweep() -> None:
    for overrides, words in (
        (
            ["sweep.space={optim.lr: {low: 0.1, high: 1}}"],
            "grid cannot go through the range of optim.lr",
        ),
        (["sweep.objective=worst_regression", "sweep.baselines={sound: 0.5}"], "missing: picture, clip, word"),
        (["sweep.early_stopping=true"], "set train.eval_every"),
    ):
        with pytest.raises(UserError) as caught:
            small_config(*overrides)
        assert words in str(caught.value)


def test_the_space_in_tunes_terms() -> None:
    grid = param_space(spaced(space={"model.l_adapt": [0, 1]}))
    assert grid == {"model.l_adapt": {"grid_search": [0, 1]}}
    space = {"optim.lr": Range(low=0.01, high=1.0, log=True), "model.l_adapt": Range(low=0, high=2, integer=True)}
    drawn = param_space(spaced(space=space, search="random"))
    rates = [drawn["optim.lr"].sample() for _ in range(200)]
    assert 0.01 <= min(rates) < 0.03 < 0.3 < max(rates) <= 1.0
    assert {drawn["model.l_adapt"].sample() for _ in range(100)} == {0, 1, 2}


def test_optuna_draws_from_the_space_and_the_same_again() -> None:
    space = {"optim.lr": Range(low=0.01, high=1.0, log=True), "schedule.kind": ["weighted", "uniform"]}
    config = spaced(space=space, search="optuna")

    def drawn() -> list[dict[str, Any]]:
        search = search_algorithm(config)
        search.set_search_properties("objective", "max", param_space(config))
        return [search.suggest(str(i)) for i in range(12)]

    draws = drawn()
    assert draws == drawn()
    assert all(0.01 <= each["optim.lr"] <= 1.0 for each in draws)
    assert {each["schedule.kind"] for each in draws} == {"weighted", "uniform"}


def test_without_optuna_it_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    config = spaced(space={"model.l_adapt": [0, 1]}, search="optuna")
    check_space(config)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"sweep.search=optuna needs Optuna.*polyvit\[search\]"):
        check_space(config)


def test_baselines_come_from_runs_of_one_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"picture": 0.6, "clip": 0.25, "sound": 0.5, "word": 0.25}
    singles = write_singles(tmp_path / "single", values)
    started: dict[str, Any] = {}
    monkeypatch.setattr("pipelines.tuning.sweep", lambda *given: started.update(given=given) or {})
    monkeypatch.setattr("pipelines.sweep._print", lambda document: None)
    monkeypatch.setattr("pipelines.index.task_roots", lambda config: {})
    config = write_yaml(tmp_path / "small.yaml", small_document())
    command = [
        "sweep", str(config), f"storage={tmp_path}/runs", "--over", "model.l_adapt=0,1", "--name", "one",
        "sweep.objective=worst_regression",
    ]  # fmt: skip
    assert cli.main([*command, "--baseline", str(tmp_path / "single")]) == 0
    trained, folder, resume, alone, _ = started["given"]
    assert trained.sweep.baselines == values
    assert (folder, resume) == (tmp_path / "runs" / "one", False)
    assert sorted(alone) == sorted(singles)
    with contextlib.redirect_stderr(io.StringIO()) as err:
        assert cli.main([*command, "--baseline", str(singles[0])]) == 2
        write_run(tmp_path / "whole")
        assert cli.main([*command, "--baseline", str(tmp_path / "whole")]) == 2
    assert "missing: clip, sound, word" in err.getvalue()
    assert "--baseline whole: a baseline is a run of one task" in err.getvalue()


def test_demo_sweep_is_two_schedules_by_two_l_adapt() -> None:
    space = load_config("demo-sweep").sweep.space
    assert space == {"schedule.kind": ["weighted", "task_by_task"], "model.l_adapt": [0, 1]}


def test_ways_of_keeping_something_private_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ranks by L_adapt at the paper's size, named by what differs; a rank that nothing uses is said."""
    started: list[Any] = []
    monkeypatch.setattr("pipelines.tuning.sweep", lambda *given: started.append(given[0]) or {})
    monkeypatch.setattr("pipelines.sweep._print", lambda document: None)
    monkeypatch.setattr("pipelines.index.task_roots", lambda config: {})
    over = ["--over", "model.sharing.rank=32,64,128", "--over", "model.l_adapt=0,2,6"]
    command = ["sweep", "polyvit-b-nine", f"storage={tmp_path}", *over]
    assert cli.main([*command, "--name", "low", "model.sharing.modalities=low_rank"]) == 0
    assert "changes nothing" not in capsys.readouterr().out
    (config,) = started
    assert config.sweep.space == {"model.sharing.rank": [32, 64, 128], "model.l_adapt": [0, 2, 6]}
    changes = {"model.sharing.rank": 32, "model.l_adapt": 6}
    assert format_changes(changes) == "model.sharing.rank=32 model.l_adapt=6"
    assert trial_config(config.model_dump(mode="json"), changes).model.sharing.rank == 32
    assert cli.main([*command, "--name", "full"]) == 0
    assert "model.sharing.rank changes nothing while model.sharing.modalities=full" in capsys.readouterr().out
    assert cli.main([*command, "--name", "both", "--over", "model.sharing.modalities=full,low_rank"]) == 0
    assert "changes nothing" not in capsys.readouterr().out
    assert cli.main([*command, "model.sharing.modalities=low_rank", "--over", "model.sharing.rank=64,999"]) == 2
    assert "model.sharing.rank=999 must be at most model.width=768" in capsys.readouterr().err


def test_a_rank_that_no_transformer_uses_is_said() -> None:
    space = {"sweep.space": {"model.sharing.rank": [2, 4]}}
    for roles, words in (("low_rank", None), ("low_rank_alone", None), ("full", "model.sharing.roles=full")):
        config = trial_config(
            avbert_small.tiny(sharing={"roles": roles, "rank": 4}).model_dump(mode="json"), space
        )
        said = idle_rank(config)
        assert said is None if words is None else words in str(said)


def test_as_many_trials_at_once_as_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config("train.workers=2", "data.decode_cpus=1")  # 3 CPUs a trial

    def room(resources: dict[str, float], most: int | None = None) -> int:
        monkeypatch.setattr("ray.cluster_resources", lambda: resources)
        sweep = config.sweep.model_copy(update={"max_concurrent": most})
        return concurrent_trials(config.model_copy(update={"sweep": sweep}))

    assert [room({"CPU": cpus}) for cpus in (3.5, 6.0, 6.5, 30.0)] == [1, 1, 2, 9]
    assert room({"CPU": 30.0}, 4) == 4
    assert room({"CPU": 64.0, "GPU": 4.0}) == 2
    with pytest.raises(UserError, match=r"needs 3 CPUs for its workers .*the cluster has 3: add one"):
        room({"CPU": 3.0})


def test_the_objective_of_an_evaluation() -> None:
    scores = {"picture": 0.5, "clip": 0.25, "sound": 0.75, "word": 0.5, "mean": 0.5}
    baselines = {"picture": 0.25, "clip": 0.5, "sound": 0.75, "word": 0.5}
    for config, objective in [
        (spaced(), 0.5),
        (spaced(objective="worst_regression", baselines=baselines), -0.25),
        (spaced(objective="worst_regression", baselines=baselines | {"clip": 0.0}), 0.0),
    ]:
        assert objective_of(config, scores) == objective


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_poor_trial_ends_at_its_first_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluated_thrice(changes: dict[str, Any], folder: str, parent: str) -> None:
        from ray import tune

        for percent in (33, 67, 100):
            tune.report({"objective": changes["optim.lr"], "percent": percent})
        time.sleep(2)
        (Path(folder) / f"end of {changes['optim.lr']}").touch()

    monkeypatch.setattr("pipelines.tuning.search.run_trial", evaluated_thrice)
    config = spaced(space={"optim.lr": [0.2, 0.1, 0.3]}, early_stopping=True, max_concurrent=1)
    results = fit(config, tmp_path, "parent", resume=False)
    reached = {result.config["optim.lr"]: result.metrics["percent"] for result in results}
    assert reached == {0.2: 100, 0.1: 33, 0.3: 100}
    assert capsys.readouterr().out.count("stopped early, at 33 %") == 1
    assert sorted(path.name for path in tmp_path.glob("end of *")) == ["end of 0.2", "end of 0.3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def config(folder: Path) -> Path:
    return soak.write_config(folder, 40)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_two_trials_a_report_and_a_registered_winner(
    folder: Path, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    storage, as_data = folder / "two", folder / "two.json"
    arguments = [
        "--name", "one", f"storage={storage}", "train.workers=1", "train.eval_every=20", "sweep.max_concurrent=1",
        "--over", "schedule.kind=weighted,uniform", "--json", str(as_data),
    ]  # fmt: skip
    assert cli.main(["sweep", str(config), *arguments]) == 0
    document, printed = json.loads(as_data.read_text()), capsys.readouterr().out
    check_trials(document)
    for trial in document["trials"]:
        counts = json.loads((Path(trial["folder"]) / "parameters.json").read_text())
        assert f"{counts['total'] / 1000:.1f}k" in printed


def check_trials(document: dict[str, Any]) -> None:
    """Of a sweep over two schedules."""
    trials = document["trials"]
    assert sorted(trial["changes"]["schedule.kind"] for trial in trials) == ["uniform", "weighted"]
    assert {trial["state"] for trial in trials} == {"finished"}
    assert document["best"] == max(trials, key=lambda trial: trial["objective"])
    _mlflow_holds(document)
    report = Path(document["report"])
    assert report.read_text().count("data:image/png") >= 3
    assert len((report.parent / "leaderboard.csv").read_text().splitlines()) == 3


def _mlflow_holds(document: dict[str, Any]) -> None:
    client = MlflowClient(tracking_uri=document["mlflow_uri"])
    parent = client.get_run(document["mlflow_run"])
    runs = client.search_runs([parent.info.experiment_id])
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(runs) == 3
    assert len({run.data.tags["polyvit.trial"] for run in children}) == 2
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in children:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "global_step")]
        assert steps == sorted(set(steps))
    names = {run.info.run_name for run in children}
    assert names == {"schedule.kind=weighted", "schedule.kind=uniform"}
    version = client.get_model_version_by_alias("polyvit", "champion")
    assert version.run_id in {run.info.run_id for run in children}
    assert str(version.version) == str(document["registered"]["version"])


@pytest.mark.faults
def test_a_sweep_that_is_interrupted_says_how_to_go_on_and_registers_nothing(
    folder: Path, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*given: Any) -> None:
        assert os.environ["TUNE_DISABLE_SIGINT_HANDLER"] == "1"
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("pipelines.tuning.driver.cluster", lambda *sizes: contextlib.nullcontext())
    monkeypatch.setattr("pipelines.tuning.driver.check_resources", lambda config: None)
    monkeypatch.setattr("pipelines.tuning.driver.build_indexes", lambda config, folder: None)
    monkeypatch.setattr("pipelines.tuning.driver.fit", interrupted)
    before, storage = signal.getsignal(signal.SIGTERM), folder / "interrupted"
    command = ["sweep", str(config), f"storage={storage}", "--name", "cut", "--over", "model.l_adapt=0,1"]
    try:
        assert cli.main(command) == 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGTERM, before)
    assert f"sweep --resume {storage / 'cut'}" in capsys.readouterr().err
    client = MlflowClient(tracking_uri=f"sqlite:///{storage}/mlflow.db")
    document = json.loads((storage / "cut" / "sweep.json").read_text())
    assert client.get_run(document["mlflow_run"]).info.status == "KILLED"
    assert client.search_registered_models() == []


def test_a_sweep_that_cannot_be_is_refused_before_anything_starts(folder: Path, config: Path) -> None:
    for arguments, words in (
        ([str(config)], "nothing to try"),
        ([str(config), "--over", "model.l_adapt"], "--over model.l_adapt: write KEY=A,B"),
        ([str(config), "--over", "model.l_adapt=7,8"], "model.l_adapt=7"),
        ([str(config), "--over", "init.path=null,no/run"], f"no checkpoint at {Path('no/run').absolute()}"),
        (["--resume", "nowhere"], "no such sweep"),
    ):
        with contextlib.redirect_stderr(io.StringIO()) as err:
            assert cli.main(["sweep", *arguments, f"storage={folder / 'none'}"]) == 2
        assert words in err.getvalue()
    assert not (folder / "none").exists()
