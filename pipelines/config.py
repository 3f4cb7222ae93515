"""What can be set in a config, and what a config says.

    polyvit config show CONFIG [key=value ...]          every value and where it comes from, as YAML
    polyvit config validate CONFIG [key=value ...]      all problems at once, or one line that there is none
    polyvit config diff CONFIG CONFIG [key=value ...]   the keys that differ; key=value: of the second
    polyvit config keys [PATTERN]                       keys with type, default and meaning
    polyvit config schema                               JSON schema of a recipe, for editors
    polyvit config reference                            every key as Markdown: docs/reference/config.md

CONFIG is a recipe's name, a YAML file, or in `show` and `diff` a run's folder.
"""

import argparse
import fnmatch
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.runtime import command_line, console
from polyvit.config import (
    Key,
    Resolved,
    config_difference,
    config_sections,
    config_yaml,
    load_config,
    recipe_schema,
    reference_markdown,
    resolve_config,
    resolve_run,
)
from polyvit.errors import UserError
from polyvit.storage import read_record


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit config`."""
    parser = command_line.parser("config", "What can be set in a config, and what a config says.")
    parser.add_argument("what", choices=sorted(_WHAT), help="show: values and their sources; see below")
    parser.add_argument("given", nargs="*", metavar="CONFIG|key=value|PATTERN", help="as `what` takes")
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    overrides = [text for text in arguments.given if "=" in text and arguments.what != "keys"]
    others = [text for text in arguments.given if text not in overrides]
    takes, body = _WHAT[arguments.what]
    if len(others) not in takes or (overrides and takes == range(1)):
        needs = ("nothing", "one CONFIG", "two CONFIGs")[takes[0]] if len(takes) == 1 else "one PATTERN"
        raise UserError(f"config {arguments.what} takes {needs}; given: {' '.join(arguments.given) or 'nothing'}")
    return body(others, overrides)


def _show(configs: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    resolved = _resolved(configs[0], overrides)
    sys.stdout.write(config_yaml(resolved))
    sources = {".".join(place): source for place, source in resolved.sources.items()}
    return {"config": resolved.config.model_dump(mode="json"), "sources": sources}


def _resolved(config: str, overrides: Sequence[str]) -> Resolved:
    """A recipe, a YAML file or a run's folder, with sources. Raises UserError."""
    record = Path(config) / "config.json"
    if not record.is_file():
        return resolve_config(config, overrides)
    if overrides:
        raise UserError(f"{config} is a run: its config is what it is; give a recipe to change keys of")
    return resolve_run(read_record(record, "give another run, or a recipe"))


def _validate(configs: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    config = load_config(configs[0], overrides)
    console.print(f"{configs[0]}: no problem; {len(config.tasks)} tasks: {', '.join(config.tasks)}")
    return {"tasks": list(config.tasks)}


def _diff(configs: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    first, second = _resolved(configs[0], ()), _resolved(configs[1], overrides)
    differences = config_difference(first, second)
    if not differences:
        console.print("no key differs")
        return {"differences": []}
    table = Table("key", configs[0], "from", configs[1], "from")
    for row in differences:
        table.add_row(row.key, row.first, row.first_source, row.second, row.second_source)
    console.print(table)
    return {"differences": [row._asdict() for row in differences]}


def _keys(patterns: Sequence[str], _: Sequence[str]) -> dict[str, Any]:
    pattern = patterns[0] if patterns else "*"
    glob = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    rows: dict[Key, list[str]] = {}
    for section in config_sections():
        for key in section.keys:
            if fnmatch.fnmatch(key.path, glob):
                rows.setdefault(key, []).append(section.variant)
    if not rows:
        raise UserError(f"no key matches {pattern!r}; `polyvit config keys` lists all")
    for key, variants in rows.items():
        when = f"   ({'; '.join(filter(None, variants))})" if any(variants) else ""
        console.print(f"{key.path}{when}", style="bold")
        console.print(f"    {key.type.replace('`', '')}; default {key.default.strip('`')}")
        console.print(f"    {key.meaning}")
    return {"keys": [asdict(key) for key in rows]}


def _schema(_: Sequence[str], __: Sequence[str]) -> dict[str, Any]:
    schema = recipe_schema()
    sys.stdout.write(json.dumps(schema, indent=1) + "\n")
    return schema


def _reference(_: Sequence[str], __: Sequence[str]) -> dict[str, Any]:
    sys.stdout.write(reference_markdown())
    return {"sections": [asdict(section) for section in config_sections()]}


Body = Callable[[Sequence[str], Sequence[str]], dict[str, Any]]
_WHAT: dict[str, tuple[range, Body]] = {
    "show": (range(1, 2), _show),
    "validate": (range(1, 2), _validate),
    "diff": (range(2, 3), _diff),
    "keys": (range(2), _keys),
    "schema": (range(1), _schema),
    "reference": (range(1), _reference),
}
"""{what: (how many CONFIGs or PATTERNs it takes, what it does)}."""

if __name__ == "__main__":
    sys.exit(main())
