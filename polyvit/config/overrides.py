"""What `key.path=value` on a command line means: text where the key takes text, YAML everywhere else.

In: a key, the text after its `=`, the config as plain data. Out: the value, and the config with it.

A shell has read the text once already, so nothing of it is cut: `storage=/data/exp #3/runs` is that folder. Of
text keys only a text wholly in quotes is unquoted, and `null`, `~` or nothing is no value. A task's `options`
belong to its layout: what YAML reads whole is taken so (numbers, lists, true), other text is kept:
`label_separator=|`.
"""

import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from polyvit.config.modalities import MODALITIES
from polyvit.config.renamed import new_name
from polyvit.config.run import RunConfig
from polyvit.config.tasks import TaskBase
from polyvit.errors import UserError

_NULLS = ("", "~", "null", "Null", "NULL")


def apply_override(document: dict[str, Any], override: str) -> None:
    """Set one `key.path=value` in plain config data, in place. Raises UserError."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"{override!r} is not an override; write key.path=value, such as model.l_adapt=2")
    set_key(document, path, override_value(document, path, text))


def override_value(document: Mapping[str, Any], path: str, text: str) -> Any:
    """The value that `text` is for the key `path`. document: the whole config. Raises UserError."""
    kind = _annotation(new_name(path).split("."), document)
    if _takes_text(kind):
        return None if text in _NULLS else _unquoted(text)
    if kind is Any:
        return _value_or_text(text)
    return _yaml(f"{path}={text}", text)


def override_values(document: Mapping[str, Any], path: str, text: str) -> list[Any]:
    """Several values of one key, split at commas. Raises UserError."""
    if _takes_text(_annotation(new_name(path).split("."), document)):
        return [override_value(document, path, each) for each in text.split(",")]
    return _yaml(f"{path}={text}", f"[{text}]")


def text_override(overrides: Sequence[str], key: str, default: str) -> str:
    """The text that overrides give a key of the config's first level, the last of them; else the default."""
    document: dict[str, Any] = {}
    for override in overrides:
        if override.startswith(f"{key}="):
            apply_override(document, override)
    return str(document.get(key) or default)


def set_key(document: dict[str, Any], path: str, value: Any) -> None:
    """Set one dotted key, under its name of today, in plain config data, in place."""
    *parents, last = new_name(path).split(".")
    place = document
    for key in parents:
        inner = place.get(key)
        place[key] = dict(inner) if isinstance(inner, dict) else {}
        place = place[key]
    place[last] = value


def _annotation(keys: Sequence[str], document: Mapping[str, Any]) -> Any:
    """The type that the config gives a key; None where it knows none, or no such key."""
    kind: Any = RunConfig
    for i, key in enumerate(keys):
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
            if i == 1 and keys[0] == "tasks":
                kind = _task_class(document, key)
            elif i == 2 and keys[1] == "inputs":
                kind = MODALITIES[key].input if key in MODALITIES else None
            continue
        models = [a for a in (kind, *get_args(kind)) if isinstance(a, type) and issubclass(a, BaseModel)]
        field = models[0].model_fields.get(key) if models else None
        if field is None:
            return None
        kind = field.annotation
    return kind


def _task_class(document: Mapping[str, Any], name: str) -> type[TaskBase]:
    task = (document.get("tasks") or {}).get(name)
    modality = task.get("modality") if isinstance(task, dict) else None
    return MODALITIES[modality].task if modality in MODALITIES else TaskBase


def _takes_text(kind: Any) -> bool:
    """Whether text is all that a key takes, one of a few words or none at all included."""
    if get_origin(kind) in (Union, types.UnionType):
        parts = [part for part in get_args(kind) if part is not type(None)]
        return all(map(_takes_text, parts))
    if get_origin(kind) is Literal:
        return all(isinstance(word, str) for word in get_args(kind))
    return kind is str


def _unquoted(text: str) -> str:
    """Text in quotes as YAML reads it; any other as it is."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            return text
        return value if isinstance(value, str) else text
    return text


def _value_or_text(text: str) -> Any:
    """A number, true or false, a list or a mapping where the whole text is one; else the text, unquoted."""
    if text in _NULLS:
        return None
    if text[:1] in "[{" and text[-1:] in "]}":
        return _yaml(text, text)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, bool):
        return value if text in ("true", "True", "false", "False") else text
    if isinstance(value, int):
        return value if str(value) == text else text
    return value if isinstance(value, float) and text == text.strip() else _unquoted(text)


def _yaml(shown: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"the value of {shown!r} is not YAML: {error}") from None
