"""MLflow: register a trained model, and say by aliases which version is in use.

    polyvit register RUN_OR_CHECKPOINT [--name polyvit] [--alias champion]
    polyvit register --set-alias champion=3 [--name polyvit]
    polyvit register --list
    python -m pipelines.register ...

A version holds the checkpoint without its optimiser (safetensors and JSON), the code that runs it, a signature
and a model card, in the MLflow store of its run. `polyvit predict models:/polyvit@champion FILE` uses it; so does
`mlflow.pyfunc.load_model`, where neither Ray nor this package is installed.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.runtime import command_line, console
from polyvit.errors import UserError

NAME = "polyvit"


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit register`."""
    parser = command_line.parser("register", "Register a trained model with MLflow; move and list aliases.")
    parser.add_argument("model", metavar="RUN_OR_CHECKPOINT", nargs="?", help="a run's folder, or a checkpoint's")
    parser.add_argument("--name", default=NAME, help=f"the registered model's name (default: {NAME})")
    parser.add_argument("--alias", help="give the new version this alias, such as champion")
    parser.add_argument("--set-alias", metavar="ALIAS=VERSION", help="move an alias to a version that is there")
    parser.add_argument("--list", action="store_true", help="list registered versions and their aliases")
    parser.add_argument(
        "--store", metavar="URI", help="MLflow store (default: the run's; else MLFLOW_TRACKING_URI, else runs/)"
    )
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    from pipelines.tracking import list_versions, registry_uri, set_alias  # start-up: torch

    choices = [bool(arguments.model), arguments.set_alias is not None, arguments.list]
    if sum(choices) != 1:
        raise UserError("give one of: a run or a checkpoint to register, --set-alias ALIAS=VERSION, --list")
    if arguments.model:
        return _register(arguments)
    store = arguments.store or registry_uri()
    if arguments.set_alias is not None:
        alias, equals, version = arguments.set_alias.partition("=")
        if not (alias and equals and version.isdecimal()):
            raise UserError(f"--set-alias {arguments.set_alias}: write ALIAS=VERSION, such as champion=3")
        set_alias(arguments.name, alias, version, store)
        console.print(f"{arguments.name}@{alias} is version {version} now")
    versions = list_versions(store)
    _print_versions(versions, store)
    return {"store": store, "versions": versions}


def _register(arguments: argparse.Namespace) -> dict[str, Any]:
    from pipelines.tracking import log_model  # start-up: torch

    path = Path(arguments.model).expanduser()
    console.print(f"registering {path} as {arguments.name} ...")
    version = log_model(path, arguments.name, arguments.alias, arguments.store)
    named = f"@{arguments.alias}" if arguments.alias else f"/{version['version']}"
    console.print(f"registered  {version['name']} version {version['version']} of {version['checkpoint']}")
    console.print(f"MLflow      run {version['run_id']} in {version['uri']}")
    console.print(
        f"next        MLFLOW_TRACKING_URI={version['uri']} {command_line.tool('polyvit')} predict "
        f"models:/{version['name']}{named} FILE",
    )
    return version


def _print_versions(versions: Sequence[dict[str, Any]], store: str) -> None:
    if not versions:
        console.print(f"no registered model in {store}; set MLFLOW_TRACKING_URI or --store")
        return
    table = Table(title=store)
    for column in ("model", "version", "aliases", "run", "registered"):
        table.add_column(column)
    for each in versions:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each["created"] / 1000))
        table.add_row(each["name"], each["version"], ", ".join(each["aliases"]) or "-", each["run_id"], when)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
