"""Ray Tune: many runs of one config with some keys changed; the best goes into the registry.

    polyvit sweep CONFIG [key=value ...] [--over KEY=A,B ...] [--baseline RUN ...] [--name NAME] [--json FILE]
    polyvit sweep --resume NAME [storage=FOLDER]

The config's `sweep` section says what is tried. Each trial is a co-training run of its own; MLflow gets one run
for the sweep, and one below it for each trial. Baselines are runs of one task each (`cotrain CONFIG --only TASK`),
which `sweep.objective=worst_regression` and the report compare with. A sweep is a folder `storage`/NAME:
sweep.json, index/ (shared by the trials), trials/, tune/ (Ray Tune's own state), report/. `tuning/driver.py` says
what happens.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.compare import print_comparison
from pipelines.runtime import command_line, console
from pipelines.tuning import check_space, format_changes
from polyvit.config import (
    RunConfig,
    left_out_tasks,
    load_config,
    override_values,
    run_name,
    text_override,
    validate_config,
    with_absolute_paths,
)
from polyvit.data.loading import check_readable
from polyvit.errors import UserError
from polyvit.reports.compare import baselines_of, read_runs
from polyvit.storage import read_record


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit sweep`."""
    parser = command_line.parser("sweep", "Try several values of any keys of a config; register the best model.")
    command_line.add_config(parser, optional=True)
    parser.add_argument(
        "--over", action="append", default=[], metavar="KEY=A,B", help="values to try (repeatable)"
    )
    parser.add_argument(
        "--baseline", action="append", default=[], metavar="RUN",
        help="a run of one task, or a folder of such, to measure against (repeatable)",
    )  # fmt: skip
    parser.add_argument("--name", help="the sweep's name (default: recipe, time and four random digits)")
    parser.add_argument(
        "--resume", metavar="NAME", help="go on with a sweep: its folder, or its name in `storage`"
    )
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    config, folder, baselines = _resumed(arguments) if arguments.resume else _new(arguments)
    from pipelines.tuning import sweep  # start-up: ray, where the arguments have no mistake

    document = sweep(config, folder, bool(arguments.resume), baselines, print_comparison)
    _print(document)
    return document


def _new(arguments: argparse.Namespace) -> tuple[RunConfig, Path, list[Path]]:
    """The config, the folder and the baselines of a new sweep. Raises UserError."""
    if not arguments.config:
        raise UserError("give a CONFIG (a recipe's name or a YAML file), or --resume NAME")
    single_task_runs = read_runs(arguments.baseline, _storage(arguments.overrides))
    baselines = baselines_of(single_task_runs).items()
    overrides = [f"sweep.baselines.{task}={baseline.value}" for task, baseline in baselines]
    config = load_config(arguments.config, [*arguments.overrides, *overrides], arguments.only)
    if words := left_out_tasks(arguments.config):
        console.print(words, style="yellow")
    config = _with_values(config, arguments.over)
    check_space(config)
    _check_starts(config)
    if words := idle_rank(config):
        console.print(words, style="yellow")
    from pipelines.index import task_roots  # start-up: ray, where the arguments have no mistake

    check_readable(config)
    task_roots(config)
    return config, _new_folder(config, arguments.name), [run.folder for run in single_task_runs]


def _with_values(config: RunConfig, over: Sequence[str]) -> RunConfig:
    """The config with the values of `--over` in its space. Raises UserError."""
    document = config.model_dump(mode="json")
    for text in over:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise UserError(f"--over {text}: write KEY=A,B, such as model.l_adapt=0,2")
        document["sweep"]["space"][key] = override_values(document, key, values)
    return with_absolute_paths(validate_config(document))


def _check_starts(config: RunConfig) -> None:
    """Raises UserError where a trial cannot start from its `init.path`."""
    starts = config.sweep.space.get("init.path", [config.init.path])
    for path in starts if isinstance(starts, list) else ():
        if path:
            from polyvit.training import check_init  # start-up: torch, where nothing is read

            check_init(config.model_copy(update={"init": config.init.model_copy(update={"path": path})}))


def idle_rank(config: RunConfig) -> str | None:
    """A warning where trials differ in a rank that none of them uses."""
    key = "modalities" if config.model.kind == "polyvit" else "roles"
    value = str(getattr(config.model.sharing, key))
    space = config.sweep.space
    if "model.sharing.rank" not in space or f"model.sharing.{key}" in space or value.startswith("low_rank"):
        return None
    return (
        f"model.sharing.rank changes nothing while model.sharing.{key}={value}: trials that differ in it alone are"
        f" the same; set model.sharing.{key}=low_rank"
    )


def _new_folder(config: RunConfig, name: str | None) -> Path:
    """Make the sweep's folder. Raises UserError for a name that is taken."""
    unique = run_name(config, name)
    folder = Path(config.storage) / unique
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if (folder / "sweep.json").exists() or not (folder / "index").exists():
            raise UserError(f"{folder} exists; give another --name, or --resume {unique}") from None
    except OSError as error:
        raise UserError(f"storage={config.storage} cannot be written ({error}); give another folder") from None
    return folder


def _resumed(arguments: argparse.Namespace) -> tuple[RunConfig, Path, list[Path]]:
    """The config and the folder of the sweep that `--resume` names; it has its own baselines. Raises UserError."""
    changes = [o for o in [arguments.config, *arguments.overrides] if o]
    changes += [f"--over {o}" for o in arguments.over] + [f"--baseline {o}" for o in arguments.baseline]
    if other := [o for o in changes if not o.startswith("storage=")]:
        raise UserError(f"--resume takes the sweep as it began; leave out {', '.join(other)}")
    storage = _storage(changes)
    for folder in (Path(arguments.resume), Path(storage).expanduser() / arguments.resume):
        if (folder / "sweep.json").is_file():
            document = read_record(folder / "sweep.json", "put back a copy of it, or start a new sweep", "config")
            return validate_config(document["config"]), folder.absolute(), []
    raise UserError(f"--resume {arguments.resume}: no such sweep here or in {storage}")


def _storage(overrides: Sequence[str]) -> str:
    """`storage` as the overrides say, else its default."""
    return text_override(overrides, "storage", "runs")


def _print(document: dict[str, Any]) -> None:
    best, model = document["best"], document["registered"]
    console.print(
        f"best        {best['trial']}: {format_changes(best['changes'])}  objective {best['objective']:.4f}"
    )
    if model is None:
        again = f"{command_line.tool('polyvit')} register {best['folder']}"
        console.print(f"registered  none: the trials repeat each other, and chance tells which is best; {again}")
    else:
        console.print(f"registered  models:/{model['name']}@{model['alias']} (version {model['version']})")
    console.print(f"report      {document['report']}")
    console.print(f"MLflow      run {document['mlflow_run']} in {document['mlflow_uri']}")


if __name__ == "__main__":
    sys.exit(main())
