"""Where each value of a config comes from: the command line, a recipe, a known task, or the default.

In: what `load_config` takes. Out: the config with a source for each key, as YAML with the sources in comments,
which `load_config` reads again; and the keys in which two configs differ.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from polyvit.config.loader import known_task, load_config, recipe_chain, validate_config, values_of
from polyvit.config.renamed import new_name, with_new_names
from polyvit.config.run import RunConfig

Place = tuple[str, ...]
"""The keys that lead to a value; a task's name may have a dot in it."""
MISSING = "(not there)"
"""Shown by `config_difference` for a key that one of two configs does not have."""


class Resolved(NamedTuple):
    """A config, and by the place of each of its values where that comes from."""

    config: RunConfig
    sources: dict[Place, str]


class Difference(NamedTuple):
    """A key whose value is not the same in two configs, with where both come from."""

    key: str
    first: str
    first_source: str
    second: str
    second_source: str


def resolve_config(recipe: str, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> Resolved:
    """The config that `load_config` gives, with sources. Raises UserError."""
    config = load_config(recipe, overrides, only)
    given = [tuple(new_name(override.partition("=")[0]).split(".")) for override in overrides]
    chain = [(name, with_new_names(document)) for name, document in recipe_chain(recipe)]
    sources = {
        place: _source(place, given, chain, config) for place, _ in values_of(config.model_dump(mode="json"))
    }
    return Resolved(config, sources)


def resolve_run(document: dict[str, Any]) -> Resolved:
    """The config of a run, from its config.json. Raises UserError."""
    config = validate_config(with_new_names(document))
    return Resolved(config, {place: "the run" for place, _ in values_of(config.model_dump(mode="json"))})


def config_yaml(resolved: Resolved) -> str:
    """YAML of the whole config, a source behind each value: `width: 64  # recipe demo`."""
    return "\n".join(_lines(resolved.config.model_dump(mode="json"), (), resolved.sources)) + "\n"


def config_difference(first: Resolved, second: Resolved) -> list[Difference]:
    """The keys in which two configs differ, in the order of the first, then those that only the second has."""
    a, b = (dict(values_of(each.config.model_dump(mode="json"))) for each in (first, second))
    places = [*a, *(place for place in b if place not in a)]
    return [
        Difference(
            ".".join(place),
            _shown(a[place]) if place in a else MISSING, first.sources.get(place, ""),
            _shown(b[place]) if place in b else MISSING, second.sources.get(place, ""),
        )
        for place in places
        if place not in a or place not in b or a[place] != b[place]
    ]  # fmt: skip


def _source(
    place: Place, given: Sequence[Place], chain: Sequence[tuple[str, dict[str, Any]]], config: RunConfig
) -> str:
    if any(place[: len(key)] == key for key in given):
        return "command line"
    for name, document in chain:
        if _says(document, place):
            return f"{'file' if name.endswith(('.yaml', '.yml')) else 'recipe'} {name}"
    if place[0] == "tasks" and _says(known_task(place[1], config.tasks[place[1]].model_dump()), place[2:]):
        return f"known task {place[1]}"
    return "default"


def _says(document: Any, place: Place) -> bool:
    """Whether plain data gives this value, or one that stands for all below it."""
    for key in place:
        if not isinstance(document, Mapping):
            return document is not None
        if key not in document:
            return False
        document = document[key]
    return True


def _lines(document: Mapping[str, Any], before: Place, sources: Mapping[Place, str]) -> Iterator[str]:
    indent = "  " * len(before)
    for key, value in document.items():
        name, place = _shown(key), (*before, key)
        if isinstance(value, Mapping) and value:
            yield f"{indent}{name}:"
            yield from _lines(value, place, sources)
        else:
            yield f"{indent}{name}: {_shown(value)}  # {sources[place]}"


def _shown(value: Any) -> str:
    """A value as one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
