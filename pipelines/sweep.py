"""Ray Tune: many runs of one config with some keys changed; the best goes into the registry.

    polyvit sweep CONFIG [key=value ...] [--over KEY=A,B ...] [--baseline RUN ...] [--name NAME] [--json FILE]
    polyvit sweep --resume NAME [storage=FOLDER]

What is tried stands in the config's `sweep` section. Each trial is a `cotrain` run of its own; one MLflow run for
the sweep, one below it for each trial. Baselines are runs of one task each (`cotrain CONFIG --only TASK`), which
`sweep.objective=worst_regression` and the report measure against. A sweep is a folder `storage`/NAME: sweep.json,
index/ (shared by the trials), trials/, tune/ (Ray Tune's own state), report/.
"""

import argparse
import importlib.util
import json
import math
import os
import secrets
import shlex
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipelines.runtime import Stopped, command_line, console
from pipelines.tuning import METRIC, PROGRESS, EarlyStopping, Lines, run_trial, trial_config, words
from polyvit.config import Range, RunConfig, load_config, validate_config
from polyvit.errors import UserError

TRIAL_CPUS = 0.01
"""Of the process that follows a trial and hardly computes; Tune reserves it for as long as the trial lasts."""


def check_space(config: RunConfig) -> None:
    """Raises UserError with every value of the space that makes no valid config on its own, for no space, or where
    the search algorithm is not installed."""
    if config.sweep.search == "optuna" and importlib.util.find_spec("optuna") is None:
        raise UserError(
            "sweep.search=optuna needs Optuna, which is not installed: pip install 'polyvit[search]', or set "
            "sweep.search=random"
        )
    if not config.sweep.space:
        raise UserError("nothing to try: give --over KEY=A,B, or sweep.space in the config, such as model.l_adapt")
    base, problems = config.model_dump(mode="json"), []
    for key, values in config.sweep.space.items():
        for value in [values.low, values.high] if isinstance(values, Range) else values:
            whole = int(value) if isinstance(values, Range) and values.integer else value
            try:
                trial_config(base, {key: whole})
            except UserError as error:
                problems += [f"{key}={whole}: {problem}" for problem in error.problems or [error.message]]
    if problems:
        raise UserError("the space of the sweep does not fit the config:", problems)


def param_space(config: RunConfig) -> dict[str, Any]:
    """The space in Tune's terms."""
    from ray import tune

    space: dict[str, Any] = {}
    for key, values in config.sweep.space.items():
        if not isinstance(values, Range):
            space[key] = tune.grid_search(values) if config.sweep.search == "grid" else tune.choice(values)
        elif values.integer:
            draw = tune.lograndint if values.log else tune.randint
            space[key] = draw(int(values.low), int(values.high) + 1)
        else:
            space[key] = (tune.loguniform if values.log else tune.uniform)(values.low, values.high)
    return space


def concurrent_trials(config: RunConfig) -> int:
    """How many trials the cluster has room for at once, at most `sweep.max_concurrent`. Tune does not see what the
    train workers of a trial take, so it has to be told. Raises UserError where there is room for none.
    """
    import ray

    train, have = config.train, ray.cluster_resources()
    cpus, needed = have.get("CPU", 0.0), train.workers * train.cpus_per_worker + config.data.decode_cpus
    if cpus < needed + TRIAL_CPUS:
        raise UserError(
            f"a trial needs {needed:g} CPUs for its workers and decoding, and some for itself; the cluster has "
            f"{cpus:g}: add one, or lower train.cpus_per_worker or data.decode_cpus"
        )
    room = int((cpus - 0.5) // needed)
    if have.get("GPU", 0) and train.use_gpu is not False:
        room = min(room, int(have["GPU"] // (train.workers * train.gpus_per_worker)))
    return max(1, min(room, config.sweep.max_concurrent or room))


def fit(config: RunConfig, folder: Path, parent: str, resume: bool) -> Any:
    """All trials to their end. Returns Tune's result grid."""
    from ray import tune

    trainable = tune.with_resources(
        tune.with_parameters(run_trial, folder=str(folder), parent=parent),  # type: ignore[arg-type]
        {"CPU": TRIAL_CPUS},
    )
    state = folder / "tune" / "tune"
    if resume and tune.Tuner.can_restore(str(state)):
        tuner = tune.Tuner.restore(str(state), trainable, resume_unfinished=True, resume_errored=True)
        return tuner.fit()
    sweep = config.sweep
    tuner = tune.Tuner(
        trainable,
        param_space=param_space(config),
        tune_config=tune.TuneConfig(
            metric=METRIC, mode="max", search_alg=_search(config),
            scheduler=EarlyStopping() if sweep.early_stopping else None,
            num_samples=1 if sweep.search == "grid" else sweep.samples,
            max_concurrent_trials=concurrent_trials(config),
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(folder / "tune"), verbose=0, callbacks=[Lines()],
        ),
    )  # fmt: skip
    return tuner.fit()


def _search(config: RunConfig) -> Any:
    from ray.tune.search import BasicVariantGenerator

    if config.sweep.search != "optuna":
        # Given a generator of ours, Tune leaves the cap to it.
        return BasicVariantGenerator(max_concurrent=concurrent_trials(config), random_state=config.seed)
    import optuna
    from optuna.samplers import TPESampler
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(sampler=TPESampler(seed=config.seed))


def sweep(config: RunConfig, folder: Path, resume: bool, baselines: Sequence[Path] = ()) -> dict[str, Any]:
    """Index, all trials, report, registration. Returns what the command prints, as data.

    baselines: folders of runs of one task each, for the report.
    """
    from pipelines.index import build_indexes
    from pipelines.runtime import check_resources, cluster
    from pipelines.tracking import Tracker

    # A stopped trial's workers are cleaned up by way of the state API, which comes with the dashboard.
    os.environ.setdefault("POLYVIT_RAY_DASHBOARD", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its tables, which our lines replace
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # which would end with half of the trials, as if that were all
    train, at_once = config.train, config.sweep.max_concurrent or 1
    console.print("starting Ray ...")
    with cluster(train.workers * at_once + 1, train.cpus_per_worker):  # the one: Tune's own processes
        check_resources(config)
        if not resume:
            console.print(f"indexing {len(config.tasks)} tasks ...")
            build_indexes(config, folder / "index")
            tracker = Tracker.start(config, folder.name, {"polyvit.sweep": folder.name})
            document = {
                "config": _shared_store(config, tracker.uri), "mlflow_run": tracker.run_id,
                "mlflow_uri": tracker.uri, "baselines": [str(path) for path in baselines],
            }  # fmt: skip
            (folder / "sweep.json").write_text(json.dumps(document, indent=1))
        else:
            document = json.loads((folder / "sweep.json").read_text())
            tracker = Tracker(document["mlflow_uri"], document["mlflow_run"])
            tracker.reopen()
        status = "FAILED"
        if threading.current_thread() is threading.main_thread():  # Ray has set its own
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            results = fit(config, folder, tracker.run_id, resume)
            report = _conclude(config, folder, tracker, results, list(document.get("baselines", [])))
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            again = f"{command_line.tool('polyvit')} sweep --resume {folder}"
            raise Stopped(f"stopped; go on: {again}", signal.SIGINT, {"sweep": folder.name}) from None
        finally:
            tracker.finish(status)
    return report


def _shared_store(config: RunConfig, uri: str) -> dict[str, Any]:
    """The config that trials start from: all of them log to the sweep's store."""
    document = config.model_dump(mode="json")
    document["tracking"]["uri"] = uri
    return document


def _conclude(
    config: RunConfig, folder: Path, tracker: Any, results: Any, baselines: Sequence[str]
) -> dict[str, Any]:
    """Report of all trials, pictures to MLflow, the winner into the registry."""
    from pipelines.tracking import log_model
    from polyvit.checkpoint import read_document

    trials = _ended_trials(folder, results)
    if not trials or trials[0]["state"] != "finished":
        failures = [f"{t['trial']} {t['state']}: {words(t['changes'])}" for t in trials]
        raise UserError(f"no trial came to its end; see the logs in {folder / 'tune'}, then --resume", failures)
    best = trials[0]
    document: dict[str, Any] = {
        "sweep": folder.name, "folder": str(folder), "mlflow_run": tracker.run_id, "mlflow_uri": tracker.uri,
        "objective": config.sweep.objective, "trials": trials, "best": best,
    }  # fmt: skip
    document["report"] = _report(trials, folder, tracker, baselines)
    version = log_model(Path(best["folder"]), config.sweep.model_name, config.sweep.alias)
    step = read_document(Path(version["checkpoint"]))["global_step"]
    document["registered"] = {**version, "step": step}
    tracker.metrics(0, {f"best/{METRIC}": best[METRIC]})
    (folder / "result.json").write_text(json.dumps(document, indent=1, default=str) + "\n")
    tracker.artifact(folder / "result.json")
    return document


def _ended_trials(folder: Path, results: Any) -> list[dict[str, Any]]:
    """Each trial's state, values and objective, best first; MLflow runs of trials stopped early are ended."""
    from pipelines.tracking import Tracker

    trials: list[dict[str, Any]] = []
    for result in results:
        metrics = result.metrics or {}
        name = metrics.get("trial_id") or Path(result.path).name.split("_")[1]
        place = folder / "trials" / name
        state = "failed" if result.error else "finished" if (place / "result.json").exists() else "stopped"
        entry = {"trial": name, "state": state, "changes": result.config, "folder": str(place)}
        trials.append({**entry, METRIC: metrics.get(METRIC), PROGRESS: metrics.get(PROGRESS)})
        if state == "stopped" and (record := place / "run.json").exists():
            run = json.loads(record.read_text())
            Tracker(run["mlflow_uri"], run["mlflow_run"]).finish("KILLED")

    def rank(trial: Mapping[str, Any]) -> tuple[bool, float, str]:
        value = trial[METRIC]
        known = value is not None and not math.isnan(value)
        return trial["state"] != "finished", -value if known else math.inf, trial["trial"]

    return sorted(trials, key=rank)


def _report(trials: Sequence[Mapping[str, Any]], folder: Path, tracker: Any, baselines: Sequence[str]) -> str:
    """Tables, pictures and page of all trials whose folder can be read."""
    from pipelines.compare import print_comparison
    from polyvit.reports.compare import compare, read_run, read_runs, write_report

    runs = []
    for trial in trials:
        try:
            runs.append(read_run(Path(trial["folder"])))
        except UserError as error:
            console.print(f"[yellow]not in the report: {error}[/]")
    try:
        alone = read_runs(baselines)
    except UserError as error:
        console.print(f"[yellow]without baselines: {error}[/]")
        alone = []
    again = ["polyvit", "compare", str(folder / "trials"), *(f"--baseline={run.folder}" for run in alone)]
    title = f"Sweep {folder.name}"
    print_comparison(compare(runs, alone), title)
    write_report(runs, folder / "report", title, alone, shlex.join([*again, "--out", str(folder / "report")]))
    tracker.artifact(folder / "report")
    return str(folder / "report" / "report.html")


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit sweep`."""
    made = command_line.parser("sweep", "Try several values of any keys of a config; register the best model.")
    command_line.add_config(made, optional=True)
    made.add_argument("--over", action="append", default=[], metavar="KEY=A,B", help="values to try (repeatable)")
    made.add_argument(
        "--baseline", action="append", default=[], metavar="RUN",
        help="a run of one task, or a folder of such, to measure against (repeatable)",
    )  # fmt: skip
    made.add_argument("--name", help="the sweep's name (default: recipe, time and four random digits)")
    made.add_argument("--resume", metavar="NAME", help="go on with a sweep: its folder, or its name in `storage`")
    return command_line.run(made, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.resume:
        config, folder = _resumed(arguments)
        document = sweep(config, folder, resume=True)
    else:
        if not arguments.config:
            raise UserError("give a CONFIG (a recipe's name or a YAML file), or --resume NAME")
        from pipelines.index import task_roots
        from polyvit.reports.compare import baselines_of, read_runs

        alone = read_runs(arguments.baseline, _storage(arguments.overrides))
        measured = [f"sweep.baselines.{task}={found.value}" for task, found in baselines_of(alone).items()]
        config = load_config(arguments.config, [*arguments.overrides, *measured], arguments.only)
        config = _with_values(config, arguments.over)
        check_space(config)
        task_roots(config)
        folder = _new_folder(config, arguments.name)
        document = sweep(config, folder, False, [run.folder for run in alone])
    _print(document)
    return document


def _with_values(config: RunConfig, over: Sequence[str]) -> RunConfig:
    """The config with `--over` in its space."""
    document = config.model_dump(mode="json")
    for text in over:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise UserError(f"--over {text}: write KEY=A,B, such as model.l_adapt=0,2")
        document["sweep"]["space"][key] = yaml.safe_load(f"[{values}]")
    return validate_config(document)


def _new_folder(config: RunConfig, name: str | None) -> Path:
    unique = name or f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder = Path(config.storage) / unique
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if (folder / "sweep.json").exists() or not (folder / "index").exists():
            raise UserError(f"{folder} exists; give another --name, or --resume {unique}") from None
    except OSError as error:
        raise UserError(f"storage={config.storage} cannot be written ({error}); give another folder") from None
    return folder


def _resumed(arguments: argparse.Namespace) -> tuple[RunConfig, Path]:
    given = [o for o in [arguments.config, *arguments.overrides] if o]
    given += [f"--over {o}" for o in arguments.over] + [f"--baseline {o}" for o in arguments.baseline]
    if other := [o for o in given if not o.startswith("storage=")]:
        raise UserError(f"--resume takes the sweep as it began; leave out {', '.join(other)}")
    storage = _storage(given)
    for folder in (Path(arguments.resume), Path(storage) / arguments.resume):
        if (folder / "sweep.json").is_file():
            document = json.loads((folder / "sweep.json").read_text())
            return validate_config(document["config"]), folder.absolute()
    raise UserError(f"--resume {arguments.resume}: no such sweep here or in {storage}")


def _storage(overrides: Sequence[str]) -> str:
    return next((o.partition("=")[2] for o in overrides if o.startswith("storage=")), "runs")


def _print(document: dict[str, Any]) -> None:
    best, model = document["best"], document["registered"]
    console.print(f"best        {best['trial']}: {words(best['changes'])}  {METRIC} {best[METRIC]:.4f}")
    console.print(f"registered  models:/{model['name']}@{model['alias']} (version {model['version']})")
    console.print(f"report      {document['report']}")
    console.print(f"MLflow      run {document['mlflow_run']} in {document['mlflow_uri']}")


if __name__ == "__main__":
    sys.exit(main())
