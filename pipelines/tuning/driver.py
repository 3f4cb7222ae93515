"""A whole sweep, as the driver sees it: start Ray, index once, run the trials, report, register the best model.

In: a config with a `sweep` section, and the sweep's folder. Out: the result document, also as result.json in the
folder and in MLflow; a report beside it; the winner in the registry.
"""

import json
import math
import os
import shlex
import signal
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.index import build_indexes, of_other_data
from pipelines.runtime import Stopped, check_resources, cluster, command_line, console, with_workers
from pipelines.tracking import Tracker, log_model
from pipelines.training import METRIC, PROGRESS
from pipelines.tuning.search import fit
from pipelines.tuning.space import ONLY, changes_of, format_changes, trial_config
from polyvit.checkpoint import read_document
from polyvit.config import Range, RunConfig
from polyvit.errors import UserError
from polyvit.reports.compare import Comparison, compare, only_repeats, read_run, read_runs, write_report
from polyvit.storage import read_record, sole_owner, write_whole

ShowComparison = Callable[[Comparison, str], None]
"""Shows a comparison under a title."""


def sweep(
    config: RunConfig, folder: Path, resume: bool, baselines: Sequence[Path], show: ShowComparison
) -> dict[str, Any]:
    """Index, run all trials, report, register the best. Returns what the command prints, as data.

    config: the config that every trial changes. folder: the sweep's. resume: whether the sweep was begun before.
    baselines: folders of runs of one task each, for the report; a resumed sweep has its own.
    show: prints the comparison of all trials, before the best one is registered.

    Raises Stopped where a signal ended the sweep, UserError where no trial came to its end.
    """
    # Ray cleans up a stopped trial's workers through the state API, which comes with the dashboard.
    os.environ.setdefault("POLYVIT_RAY_DASHBOARD", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's tables, which our lines replace
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # else Tune would end with some trials, as if these were all
    train, at_once = config.train, config.sweep.max_concurrent or 1
    console.print("starting Ray ...")
    owned = sole_owner(
        [folder], "wait for its end, or end it there; a new sweep needs another --name", console.print
    )
    config = with_workers(config, train.known_workers)
    workers = train.known_workers * at_once + 1  # one more for Tune's own processes
    with owned, cluster(workers, train.cpus_per_worker):
        check_resources(config)
        tracker, baseline_paths = (_reopen if resume else _start)(config, folder, baselines)
        status = "FAILED"
        if threading.current_thread() is threading.main_thread():  # Ray has set its own handler
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            results = fit(config, folder, tracker.run_id, resume)
            report = _conclude(config, folder, tracker, results, baseline_paths, show)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            again = f"{command_line.tool('polyvit')} sweep --resume {folder}"
            raise Stopped(f"stopped; go on: {again}", signal.SIGINT, {"sweep": folder.name}) from None
        finally:
            tracker.finish(status)
    return report


def _start(config: RunConfig, folder: Path, baselines: Sequence[Path]) -> tuple[Tracker, list[str]]:
    """Index, open an MLflow run and write sweep.json. Returns the MLflow run and the baselines."""
    if (folder / "sweep.json").exists():  # of a process that had the same name, and came first
        raise UserError(f"{folder} exists; give another --name, or --resume {folder.name}")
    console.print(f"indexing {len(config.tasks)} tasks ...")
    build_indexes(config, folder / "index")
    _index_other_data(config)
    tracker = Tracker.start(config, folder.name, {"polyvit.sweep": folder.name})
    paths = [str(path) for path in baselines]
    document = {
        "config": _shared_store(config, tracker.uri), "mlflow_run": tracker.run_id,
        "mlflow_uri": tracker.uri, "baselines": paths,
    }  # fmt: skip
    write_whole(folder / "sweep.json", json.dumps(document, indent=1))
    return tracker, paths


def _index_other_data(config: RunConfig) -> None:
    """Scan what trials read that the config does not, such as other folds: the cache of indexes keeps it, and a
    mistake shows before any trial. Raises UserError."""
    base = config.model_dump(mode="json")
    for key, values in config.sweep.space.items():
        for value in [] if isinstance(values, Range) else values:
            if others := of_other_data(trial_config(base, {key: value}), config):
                with tempfile.TemporaryDirectory(prefix="polyvit-index-") as temporary:
                    build_indexes(others, Path(temporary))


def _reopen(config: RunConfig, folder: Path, baselines: Sequence[Path]) -> tuple[Tracker, list[str]]:
    """The MLflow run and the baselines of a sweep that was begun before."""
    document = read_record(folder / "sweep.json", "put back a copy of it, or start a new sweep", "config")
    tracker = Tracker(document["mlflow_uri"], document["mlflow_run"])
    tracker.reopen()
    return tracker, list(document.get("baselines", []))


def _shared_store(config: RunConfig, uri: str) -> dict[str, Any]:
    """The config that trials start from: all of them log to the sweep's MLflow store."""
    document = config.model_dump(mode="json")
    document["tracking"]["uri"] = uri
    return document


def _conclude(
    config: RunConfig, folder: Path, tracker: Tracker, results: Any, baselines: Sequence[str], show: ShowComparison
) -> dict[str, Any]:
    """Report on all trials, log it to MLflow, and put the winner into the registry.

    config, folder, tracker: of the sweep. results: Tune's result grid. baselines, show: as for `sweep`.
    """
    trials = _ended_trials(folder, results)
    if not trials or trials[0]["state"] != "finished" or ONLY in trials[0]["changes"]:
        failures = [f"{t['trial']} {t['state']}: {format_changes(t['changes'])}" for t in trials]
        raise UserError(f"no trial came to its end; see the logs in {folder / 'tune'}, then --resume", failures)
    best = trials[0]
    document: dict[str, Any] = {
        "sweep": folder.name, "folder": str(folder), "mlflow_run": tracker.run_id, "mlflow_uri": tracker.uri,
        "objective": config.sweep.objective, "trials": trials, "best": best,
    }  # fmt: skip
    document["report"] = _report(trials, folder, tracker, baselines, show)
    document["registered"] = None
    if not only_repeats(config.sweep.space):  # of folds and seeds the best one is no better than the others
        version = log_model(Path(best["folder"]), config.sweep.model_name, config.sweep.alias)
        step = read_document(Path(version["checkpoint"]))["global_step"]
        document["registered"] = {**version, "step": step}
    tracker.metrics(0, {f"best/{METRIC}": best[METRIC]})
    write_whole(folder / "result.json", json.dumps(document, indent=1, default=str) + "\n")
    tracker.artifact(folder / "result.json")
    return document


def _ended_trials(folder: Path, results: Any) -> list[dict[str, Any]]:
    """Each trial's state, values and objective, best first, models of fewer tasks (`sweep.alone`) last. Ends the
    MLflow runs of trials that were stopped early."""
    trials: list[dict[str, Any]] = []
    for result in results:
        metrics = result.metrics or {}
        name = metrics.get("trial_id") or Path(result.path).name.split("_")[1]
        run = folder / "trials" / name
        state = "failed" if result.error else "finished" if (run / "result.json").exists() else "stopped"
        entry = {"trial": name, "state": state, "changes": changes_of(result.config), "folder": str(run)}
        trials.append({**entry, METRIC: metrics.get(METRIC), PROGRESS: metrics.get(PROGRESS)})
        if state == "stopped" and (record := run / "run.json").exists():
            try:
                recorded = read_record(record, "its MLflow run stays as it is", "mlflow_uri", "mlflow_run")
                Tracker(recorded["mlflow_uri"], recorded["mlflow_run"]).finish("KILLED")
            except UserError as error:  # of one trial, when all others have come to their end
                console.print(str(error), style="yellow")

    def rank(trial: Mapping[str, Any]) -> tuple[bool, bool, float, str]:
        value = trial[METRIC]
        known = value is not None and not math.isnan(value)
        last = ONLY in trial["changes"]
        return last, trial["state"] != "finished", -value if known else math.inf, trial["trial"]

    return sorted(trials, key=rank)


def _report(
    trials: Sequence[Mapping[str, Any]], folder: Path, tracker: Tracker, baselines: Sequence[str],
    show: ShowComparison,
) -> str:  # fmt: skip
    """Compare all trials whose folders can be read; show it and write the page. Returns the page's path.

    trials: as `_ended_trials` returns them. folder, tracker: of the sweep. baselines, show: as for `sweep`.
    """
    runs = []
    for trial in trials:
        try:
            runs.append(read_run(Path(trial["folder"])))
        except UserError as error:
            console.print(f"not in the report: {error}", style="yellow")
    try:
        single_task_runs = read_runs(baselines)
    except UserError as error:
        console.print(f"without baselines: {error}", style="yellow")
        single_task_runs = []
    again = [
        "polyvit", "compare", str(folder / "trials"), *(f"--baseline={run.folder}" for run in single_task_runs),
        "--out", str(folder / "report"),
    ]  # fmt: skip
    title = f"Sweep {folder.name}"
    show(compare(runs, single_task_runs), title)
    write_report(runs, folder / "report", title, single_task_runs, shlex.join(again))
    tracker.artifact(folder / "report")
    return str(folder / "report" / "report.html")
