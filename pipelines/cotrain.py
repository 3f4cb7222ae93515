"""Ray Train: co-train one PolyViT on the tasks of a config.

    polyvit cotrain CONFIG [key=value ...] [--resume RUN] [--only TASK] [--name NAME] [--json FILE]
    python -m pipelines.cotrain ...                          the same, for `ray job submit`

A run is a folder `storage`/NAME: config.json, run.json (MLflow run), index/, quarantine.json, and one folder a
checkpoint (`step_00000500`). Resuming re-creates the same Ray Train run, which goes on from its last checkpoint.
"""

import argparse
import json
import secrets
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from pipelines.runtime import Stopped, command_line, console
from polyvit.checkpoint import TrainState, best_step, folder_name, open_store, under
from polyvit.config import (
    RunConfig,
    apply_override,
    check_installed,
    load_config,
    validate_config,
    with_absolute_paths,
)
from polyvit.errors import UserError
from polyvit.model import parameters_of
from polyvit.model.pretrained import check_init
from polyvit.reports import draw_schedule, result_rows
from polyvit.schedule import build_schedule

_RESUMABLE = ("train", "data", "feed", "tracking", "storage")
"""Sections that a resumed run may change: where and how fast, not what is learned."""


@dataclass(frozen=True)
class RunPlace:
    """Where a run lives on (shared) storage."""

    folder: Path

    @property
    def name(self) -> str:
        """The run's name: also Ray Train's and MLflow's."""
        return self.folder.name

    @property
    def record(self) -> Path:
        """Which MLflow run it is; written when the run starts."""
        return self.folder / "run.json"

    def checkpoints(self, config: RunConfig) -> str:
        """Where its checkpoints lie: `train.checkpoint_dir`/NAME, else the run's folder."""
        given = config.train.checkpoint_dir
        return under(given, self.name) if given else str(self.folder)

    def write(self, name: str, document: Any) -> Path:
        """A JSON file in the run's folder."""
        path = self.folder / name
        path.write_text(json.dumps(document, indent=1, default=str) + "\n")
        return path


def new_run(config: RunConfig, name: str | None) -> RunPlace:
    """Make the folder of a new run; a name that is taken is refused, since it would silently resume."""
    unique = name or f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    place = RunPlace(Path(config.storage).expanduser().absolute() / unique)
    try:
        place.folder.mkdir(parents=True)
    except FileExistsError:
        failed_before_it_started = (place.folder / "config.json").exists() and not place.record.exists()
        if not failed_before_it_started:
            raise UserError(
                f"run {unique} exists in {place.folder.parent}; give another --name, or --resume {unique}"
            ) from None
    except OSError as error:
        raise UserError(f"storage={config.storage} cannot be written ({error}); give another folder") from None
    place.write("config.json", config.model_dump(mode="json"))
    return place


def find_run(given: str, storage: str) -> RunPlace:
    """A run by its folder, by its name in `storage`, or by one of its checkpoints."""
    for path in (Path(given), Path(storage) / given):
        for folder in (path, path.parent):
            if RunPlace(folder).record.is_file() and (folder / "config.json").is_file():
                return RunPlace(folder.absolute())
    raise UserError(
        f"--resume {given}: no such run here or in {storage}; give the folder that `polyvit cotrain` printed"
    )


def resumed_config(place: RunPlace, overrides: Sequence[str]) -> RunConfig:
    """The run's own config, with overrides such as train.workers=1.

    Raises UserError for keys that would make it another run than the one whose checkpoints it goes on from.
    """
    document = json.loads((place.folder / "config.json").read_text())
    if other := [o for o in overrides if o.partition("=")[0].split(".")[0] not in _RESUMABLE]:
        raise UserError(
            f"--resume cannot change {', '.join(other)}: a run goes on as it began. It may change keys of "
            f"{', '.join(_RESUMABLE)}; for anything else start a new run"
        )
    for override in overrides:
        apply_override(document, override)
    config = validate_config(document)
    check_installed(config)
    return with_absolute_paths(config)


def cotrain(
    config: RunConfig, place: RunPlace, run_id: str | None = None, callbacks: Sequence[Any] = (),
    tags: Mapping[str, str] | None = None, indexed: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Index (unless resuming), train, evaluate, report. Returns what the command prints, as data.

    `run_id`: the MLflow run to go on with. `callbacks`: Ray Train's. `tags`: of a new MLflow
    run. `indexed`: a new run's folder holds its indexes already. Raises Stopped where a signal ended the run,
    UserError for the user's mistakes; what else ends it comes as Ray Train's error, after a line that says how to
    go on from the last checkpoint.
    """
    from pipelines.index import build_indexes, index_report, load_indexes, task_roots
    from pipelines.runtime import check_resources, cluster
    from pipelines.tracking import Tracker, import_client
    from pipelines.training import fit

    task_roots(config)  # before anything is started
    schedule = build_schedule(config.schedule, config.tasks, config.seed)
    console.print("starting Ray ..." if run_id is None else f"going on with {place.name}: starting Ray ...")
    with cluster(config.train.workers, config.train.cpus_per_worker):
        check_resources(config)
        if run_id is None:
            console.print(f"indexing {len(config.tasks)} tasks ...")
            build = partial(build_indexes, meanwhile=partial(import_client, config))
            indexes = (load_indexes if indexed else build)(config, place.folder / "index")
            tracker = Tracker.start(config, place.name, tags)
            record = {"mlflow_run": tracker.run_id, "mlflow_uri": tracker.uri}
            place.write(place.record.name, {**record, "checkpoints": place.checkpoints(config)})
        else:
            indexes = load_indexes(config, place.folder / "index")
            # The store that the run was started in, unless the user names another in the config.
            started_in = json.loads(place.record.read_text())["mlflow_uri"]
            tracker = Tracker(config.tracking.uri or started_in, run_id)
            tracker.reopen()
        report = index_report(indexes)
        place.write("index.json", report)
        _print_left_out(report)
        status = "FAILED"
        try:
            log_plan = partial(_log_plan, config, place, schedule, tracker)
            state, signum = fit(config, place, tracker.uri, tracker.run_id, callbacks, log_plan)
            if state.stopped:
                status = "KILLED"
                raise _stopped(place, state, signum or signal.SIGTERM)
            rows = result_rows(config, schedule, indexes.scans, _last_evaluation(state), state.global_step)
            document = _document(config, place, tracker, state, rows, report)
            place.write("result.json", document)
            _log_results(config, place, tracker, state, rows)
            status = "FINISHED"
        except (UserError, Stopped):
            raise
        except Exception:
            console.print(f"the run failed; go on from its last checkpoint: {_resume_command(place)}")
            raise
        finally:
            tracker.finish(status)
    return document


def _resume_command(place: RunPlace) -> str:
    return f"{command_line.tool('polyvit')} cotrain --resume {place.folder}"


def _stopped(place: RunPlace, state: TrainState, signum: int) -> Stopped:
    name = signal.Signals(signum).name
    return Stopped(
        f"stopped by {name} after step {state.global_step}, checkpoint written; go on: {_resume_command(place)}",
        signum,
        {"run": place.name, "stopped_by": name, "steps": state.global_step},
    )


def _last_evaluation(state: TrainState) -> dict[str, Any]:
    return state.evaluations[-1]["tasks"] if state.evaluations else {}


def _log_plan(config: RunConfig, place: RunPlace, schedule: Any, tracker: Any) -> None:
    draw_schedule(schedule, config, place.folder / "schedule.png")
    table = parameters_of(config)
    parameters = place.write("parameters.json", {**table, "total": sum(table.values())})
    (place.folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    for path in (
        place.folder / "schedule.png",
        parameters,
        place.folder / "config.yaml",
        place.folder / "index.json",
    ):
        tracker.artifact(path)


def _log_results(
    config: RunConfig, place: RunPlace, tracker: Any, state: TrainState, rows: dict[str, dict[str, Any]]
) -> None:
    quarantine = place.write("quarantine.json", [asdict(entry) for entry in state.quarantine])
    tracker.artifact(quarantine)
    tracker.artifact(place.folder / "result.json")
    with open_store(place.checkpoints(config)).fetched(state.global_step) as folder:
        tracker.artifact(folder, "checkpoint")
    values = {
        f"final/{name}/{row['metric']}": row["value"] for name, row in rows.items() if row["value"] is not None
    }
    tracker.metrics(state.global_step, values)


def _document(
    config: RunConfig,
    place: RunPlace,
    tracker: Any,
    state: TrainState,
    rows: dict[str, Any],
    report: dict[str, Any],
) -> dict[str, Any]:
    for name, row in rows.items():
        skipped = [asdict(entry) for entry in state.quarantine if entry.task == name]
        row["left_out"] = report[name]["left_out"]
        row["skipped_files"] = [{"path": entry["path"], "reason": entry["reason"]} for entry in skipped] + [
            {"path": problem["where"], "reason": problem["reason"]} for problem in report[name]["problems"]
        ]
    return {
        "run": place.name,
        "run_id": tracker.run_id,
        "mlflow_uri": tracker.uri,
        "checkpoint": under(place.checkpoints(config), folder_name(state.global_step)),
        "best": _best(config, place),
        "steps": state.global_step,
        "workers": config.train.workers,
        "tasks": rows,
    }


def _best(config: RunConfig, place: RunPlace) -> dict[str, Any] | None:
    """The best kept checkpoint by `train.best_metric`; None where no kept one was evaluated."""
    address, metric = place.checkpoints(config), config.train.best_metric
    store = open_store(address)
    step = best_step(store, metric)
    if step is None:
        return None
    value = store.manifest(step)["metrics"][metric]
    return {"step": step, "metric": metric, "value": value, "checkpoint": under(address, folder_name(step))}


def _print_left_out(report: dict[str, Any]) -> None:
    for name, entry in report.items():
        if entry["left_out"]:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(entry["left_out"].items()))
            first = entry["problems"][0]
            console.print(
                f"[yellow]{name}: left out {sum(entry['left_out'].values())} listed examples ({kinds}); "
                f"first: {first['where']}: {first['reason']}[/]"
            )


def print_results(document: dict[str, Any]) -> None:
    """The table at the end, where things are, and what to try next."""
    table = Table(title=f"{document['run']}: {document['steps']} steps on {document['workers']} workers")
    for column, side in [("task", "left"), ("modality", "left"), ("steps", "right"), ("examples seen", "right"),
                         ("epochs", "right"), ("eval on", "right"), ("metric", "left"), ("value", "right"),
                         ("chance", "right"), ("majority", "right"), ("skipped", "right")]:  # fmt: skip
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for name, row in document["tasks"].items():
        value = "-" if row["value"] is None else f"{row['value']:.3f}"
        majority = "" if row["majority"] is None else f"{row['majority']:.3f}"
        table.add_row(
            name, row["modality"], str(row["steps"]), str(row["examples_seen"]), f"{row['epochs']:.1f}",
            f"{row['eval_examples']} {row['eval_split']}", row["metric"], value, f"{row['chance']:.3f}", majority,
            str(len(row["skipped_files"])),
        )  # fmt: skip
    console.print(table)
    console.print(
        "chance: a guess; majority: always the most frequent training class; skipped: listed or read, not usable"
    )
    console.print(f"checkpoint  {document['checkpoint']}")
    if best := document["best"]:
        where = "" if best["checkpoint"] == document["checkpoint"] else f": {best['checkpoint']}"
        console.print(f"best        step {best['step']} ({best['metric']} {best['value']:.3f}){where}")
    console.print(f"MLflow      run {document['run_id']} in {document['mlflow_uri']}")
    if document["mlflow_uri"].startswith("sqlite:"):
        console.print(f"see it      {command_line.tool('mlflow')} ui --backend-store-uri {document['mlflow_uri']}")


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit cotrain`."""
    made = command_line.parser("cotrain", "Co-train one model on all tasks of a config.")
    command_line.add_config(made, optional=True)
    made.add_argument("--resume", metavar="RUN", help="go on with a run: its folder, or its name in `storage`")
    made.add_argument("--name", help="the new run's name (default: recipe, time and four random digits)")
    return command_line.run(made, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.resume:
        document = _resume(arguments)
    else:
        if not arguments.config:
            raise UserError(
                "give a CONFIG (a recipe's name or a YAML file), or --resume RUN; see `polyvit recipes`"
            )
        from pipelines.index import task_roots

        config = load_config(arguments.config, arguments.overrides, arguments.only)
        task_roots(config)  # before a run's folder is made
        check_init(config)
        document = cotrain(config, new_run(config, arguments.name))
    print_results(document)
    polyvit = command_line.tool("polyvit")
    console.print(f"next        {polyvit} evaluate {document['checkpoint']}")
    if not arguments.resume:
        only = [f"--only {task}" for task in arguments.only]
        given = " ".join([arguments.config, *arguments.overrides, *only])
        console.print(
            f"            {polyvit} cotrain {given} schedule.kind=uniform   (another schedule, to compare)"
        )
    return document


def _resume(arguments: argparse.Namespace) -> dict[str, Any]:
    overrides = [*([arguments.config] if arguments.config else []), *arguments.overrides]
    if arguments.config and "=" not in arguments.config:
        raise UserError(f"--resume takes its config from the run; leave out {arguments.config!r}")
    if arguments.only or arguments.name:
        raise UserError("--resume goes on with a run as it is; leave out --only and --name")
    storage = next((o.partition("=")[2] for o in overrides if o.startswith("storage=")), "runs")
    place = find_run(arguments.resume, storage)
    run_id = json.loads(place.record.read_text())["mlflow_run"]
    return cotrain(resumed_config(place, overrides), place, run_id)


if __name__ == "__main__":
    sys.exit(main())
