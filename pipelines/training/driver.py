"""A whole co-training run, as the driver sees it: start Ray, index, train, report.

In: a config and a run's folder. Out: the result document, also as result.json in the folder and in MLflow. A
resumed run re-creates the same Ray Train run, which goes on from its last checkpoint.
"""

import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import yaml

from pipelines.index import build_indexes, index_report, load_indexes, task_roots
from pipelines.runtime import Stopped, check_resources, cluster, command_line, console, resolved_workers
from pipelines.tracking import Tracker, store_problem
from pipelines.training.run_dir import RunDir
from pipelines.training.worker import fit, recorded_tracker
from polyvit.checkpoint import TrainState, best_step, folder_name, open_store
from polyvit.config import RunConfig
from polyvit.data.index import Scan
from polyvit.errors import UserError
from polyvit.evaluation import result_rows
from polyvit.model import parameters_of
from polyvit.reports import draw_schedule
from polyvit.schedule import Schedule, schedule_of
from polyvit.storage import under, write_whole
from polyvit.training import how_it_ended


def cotrain(
    config: RunConfig, run_dir: RunDir, run_id: str | None = None, trial_tags: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Index (unless resuming), train, evaluate, report. Returns what the command prints, as data.

    config: the whole config. run_dir: the run's folder, with its config.json. run_id: the MLflow run of
    a resumed run; None: a new one. trial_tags: of a sweep's trial, its MLflow run's tags; it has indexes already.

    Raises Stopped where a signal ended the run, and UserError for the user's mistakes. Anything else that ends the
    run is raised as Ray Train's error, after a line that says how to go on from the last checkpoint.
    """
    task_roots(config)  # before anything is started
    open_store(run_dir.checkpoints(config))  # refuses credentials in its address before that is logged
    schedule = schedule_of(config)
    with run_dir.owned(config, console.print), cluster(config.train.workers, config.train.cpus_per_worker):
        given, config = config, resolved_workers(config)
        check_resources(config)
        if run_id is None:
            if run_dir.record.exists():  # of a process that had the same name, and came first
                raise run_dir.name_taken()
            run_dir.write("config.json", given.model_dump(mode="json"))
            console.print(f"indexing {len(config.tasks)} tasks ...")
        build = load_indexes if run_id or trial_tags else build_indexes
        indexes = build(config, run_dir.folder / "index")
        report = index_report(indexes)
        run_dir.write("index.json", report)
        _print_left_out(report)
        console.print(f"after a crash: {_resume_command(run_dir)}")  # Ray ends this process where its head dies
        status, trackers = "FAILED", list[Tracker]()

        def track() -> None:  # takes seconds, while the workers start
            trackers.append(_tracker(config, run_dir, run_id, trial_tags))
            _log_plan(config, run_dir, trackers[0], report)

        def draw() -> None:  # takes two seconds more, for which no step waits
            draw_schedule(schedule, config, run_dir.folder / "schedule.png")
            trackers[0].artifact(run_dir.folder / "schedule.png")

        try:
            state, signum = fit(config, run_dir, trial_tags is not None, track, draw)
            if state.stopped:
                status = "KILLED"
                raise _stopped(run_dir, state, signum or signal.SIGTERM)
            rows = _rows(config, schedule, indexes.scans, state, draw)
            document = _result_document(config, run_dir, trackers[0], state, rows, report)
            run_dir.write("result.json", document)
            _log_results(config, run_dir, trackers[0], state)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        except (UserError, Stopped):
            raise
        except Exception:
            console.print(f"the run failed; go on from its last checkpoint: {_resume_command(run_dir)}")
            raise
        finally:
            for tracker in trackers:
                tracker.finish(status)
    return document


def _rows(
    config: RunConfig, schedule: Schedule, scans: Mapping[str, Scan], state: TrainState, draw: Callable[[], None]
) -> dict[str, dict[str, Any]]:
    """A result row for each task; an adaptive schedule, of which the start knew an interval, is drawn again."""
    if schedule.adaptive:
        schedule.follow(state.decisions)
        draw()
    return result_rows(config, schedule, scans, _last_evaluation(state), state.global_step)


def _tracker(config: RunConfig, run_dir: RunDir, run_id: str | None, tags: Mapping[str, str] | None) -> Tracker:
    """The run's MLflow run.

    A new one is written into run.json, where the train workers wait for it. That of a resumed run is reopened.
    """
    if run_id is None:
        tracker = Tracker.start(config, run_dir.name, tags)
        record = {"mlflow_run": tracker.run_id, "mlflow_uri": tracker.uri}
        elsewhere = run_dir.checkpoints(config) if config.train.checkpoint_dir else None
        run_dir.write(run_dir.record.name, {**record, "checkpoints": elsewhere})
        return tracker
    tracker = recorded_tracker(config, run_dir)
    if problem := store_problem(tracker.uri):
        raise UserError(problem)
    tracker.reopen()
    return tracker


def _resume_command(run_dir: RunDir) -> str:
    return f"{command_line.tool('polyvit')} cotrain --resume {run_dir.folder}"


def _stopped(run_dir: RunDir, state: TrainState, signum: int) -> Stopped:
    name = signal.Signals(signum).name
    return Stopped(
        f"stopped by {name} after step {state.global_step}, checkpoint written; go on: {_resume_command(run_dir)}",
        signum,
        {"run": run_dir.name, "stopped_by": name, "steps": state.global_step},
    )


def _last_evaluation(state: TrainState) -> dict[str, Any]:
    return state.evaluations[-1]["tasks"] if state.evaluations else {}


def _log_plan(config: RunConfig, run_dir: RunDir, tracker: Tracker, report: Mapping[str, Any]) -> None:
    """What is known before the first step, to the folder and to MLflow. report: of the indexes."""
    table = parameters_of(config)
    parameters = run_dir.write("parameters.json", {**table, "total": sum(table.values())})
    as_yaml = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_whole(run_dir.folder / "config.yaml", as_yaml)
    for path in (parameters, run_dir.folder / "config.yaml", run_dir.folder / "index.json"):
        tracker.artifact(path)
    tracker.inputs(config, report)


def _log_results(config: RunConfig, run_dir: RunDir, tracker: Tracker, state: TrainState) -> None:
    """The results and the last checkpoint, to MLflow.

    config, run_dir, tracker: of the run. state: at its end.
    """
    quarantine = run_dir.write("quarantine.json", [asdict(entry) for entry in state.quarantine])
    tracker.artifact(quarantine)
    tracker.artifact(run_dir.folder / "result.json")
    with open_store(run_dir.checkpoints(config)).fetched(state.global_step) as folder:
        tracker.artifact(folder, "checkpoint")


def _result_document(
    config: RunConfig, run_dir: RunDir, tracker: Tracker, state: TrainState, rows: dict[str, Any],
    report: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """What result.json holds.

    config, run_dir, tracker: of the run. state: at its end. rows: a result row for each task, to which the
    examples that were not usable are added. report: the report on the indexes.
    """
    for name, row in rows.items():
        skipped = [asdict(entry) for entry in state.quarantine if entry.task == name]
        row["left_out"] = report[name]["left_out"]
        row["skipped_files"] = [{"path": entry["path"], "reason": entry["reason"]} for entry in skipped] + [
            {"path": problem["where"], "reason": problem["reason"]} for problem in report[name]["problems"]
        ]
    return {
        "run": run_dir.name,
        "run_id": tracker.run_id,
        "mlflow_uri": tracker.uri,
        "mlflow_page": tracker.page(),
        "checkpoint": under(run_dir.checkpoints(config), folder_name(state.global_step)),
        "best": _best(config, run_dir),
        "steps": state.global_step,
        "ended": how_it_ended(state.ended, state.global_step),
        "workers": config.train.workers,
        "tasks": rows,
        **({"decisions": state.decisions} if config.schedule.kind == "adaptive" else {}),
    }


def _best(config: RunConfig, run_dir: RunDir) -> dict[str, Any] | None:
    """The best of the kept checkpoints by `train.best_metric`; None where none of them was evaluated."""
    address, metric = run_dir.checkpoints(config), config.train.best_metric
    store = open_store(address)
    step = best_step(store, metric)
    if step is None:
        return None
    value = store.manifest(step)["metrics"][metric]
    return {"step": step, "metric": metric, "value": value, "checkpoint": under(address, folder_name(step))}


def _print_left_out(report: Mapping[str, Any]) -> None:
    for name, entry in report.items():
        if entry["left_out"]:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(entry["left_out"].items()))
            first = entry["problems"][0]
            console.print(
                f"{name}: left out {sum(entry['left_out'].values())} listed examples ({kinds}); "
                f"first: {first['where']}: {first['reason']}",
                style="yellow",
            )
