"""Every key of a config, with its type, default and meaning, read from the models themselves.

In: `RunConfig` (or another pydantic model). Out: `KeySection`s, and docs/reference/config.md as Markdown. The
meaning of a key is the string under its field in the source, so the page cannot differ from the code.
"""

import ast
import collections.abc
import inspect
import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from polyvit.config.run import RunConfig

INTRODUCTION = """\
# Every key of a config

Written by `polyvit config reference`; a test compares this page with that output. Do not edit it by hand: the
meaning of a key is the text under its field in `polyvit/config/`.

Set any key in a YAML file (nested: `model: {width: 192}`) or on the command line (dotted: `model.width=192`).
`null` means "not set". Where a size is a height and a width, one number stands for both. In `tasks.NAME`, NAME is
the name that you give to a task.
"""
_PLAIN = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "any value"}
_BOUNDS = (
    (annotated_types.Gt, "gt", ">"),
    (annotated_types.Ge, "ge", ">="),
    (annotated_types.Lt, "lt", "<"),
    (annotated_types.Le, "le", "<="),
)


@dataclass(frozen=True)
class Key:
    """One key: its dotted path, what may be given, the default as in YAML ("required" if none), what it means."""

    path: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class KeySection:
    """The keys of one model: `path` is "" for the top, `variant` says when the keys apply ("modality: image")."""

    path: str
    variant: str
    summary: str
    keys: tuple[Key, ...]


def config_sections(model: type[BaseModel] = RunConfig) -> list[KeySection]:
    """All sections, in the order of the fields; nested sections follow their parent."""
    return list(_sections(model, "", "", frozenset()))


def reference_markdown() -> str:
    """docs/reference/config.md: a heading and a table for each section of `RunConfig`."""
    blocks = [INTRODUCTION]
    for section in config_sections():
        title = f"`{section.path}`" if section.path else "The run"
        when = f", with `{section.variant}`" if section.variant else ""
        blocks.append(f"## {title}{when}\n\n{section.summary}\n")
        rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
        rows += [f"| `{key.path}` | {_cells(key.type, key.default, key.meaning)} |" for key in section.keys]
        blocks.append("\n".join([*rows, ""]))
    return "\n".join(blocks)


def _cells(*texts: str) -> str:
    return " | ".join(text.replace("|", "\\|") for text in texts)


def _sections(model: type[BaseModel], path: str, variant: str, hidden: frozenset[str]) -> Iterator[KeySection]:
    """The section of `model` without the keys in `hidden`, then the sections that its fields hold."""
    prefix = f"{path}." if path else ""
    fields = {name: field for name, field in model.model_fields.items() if name not in hidden}
    meanings = _meanings(model)
    keys, nested = [], []
    for name, field in fields.items():
        models = [inner for inner in _models(field.annotation) if inner.model_fields]
        if models:
            holds = f"{prefix}{name}.NAME" if _is_mapping(field.annotation) else f"{prefix}{name}"
            nested.append((models, holds))
            if _is_only_sections(field.annotation):
                continue
        meaning = meanings.get(name) or " ".join((field.description or "").split())
        keys.append(Key(f"{prefix}{name}", _type(field.annotation, field.metadata), _default(field), meaning))
    if keys:
        yield KeySection(path, variant, _summary(model), tuple(keys))
    for models, holds in nested:
        yield from _variants(models, holds, variant)


def _variants(models: Sequence[type[BaseModel]], path: str, variant: str) -> Iterator[KeySection]:
    """Sections of one field: of its model, or first what several models share and then what each one adds."""
    if len(models) == 1:
        yield from _sections(models[0], path, variant, frozenset())
        return
    base = _common_base(models)
    own = {name for name in base.model_fields if any(_kind(model, name) != _kind(base, name) for model in models)}
    shared = frozenset(base.model_fields) - own
    yield from _sections(base, path, variant, frozenset(own))
    for model in models:
        yield from _sections(model, path, _discriminator(model, shared) or model.__name__, shared)


def _kind(model: type[BaseModel], name: str) -> Any:
    return model.model_fields[name].annotation


def _common_base(models: Sequence[type[BaseModel]]) -> type[BaseModel]:
    return next(cls for cls in models[0].__mro__ if all(issubclass(model, cls) for model in models))


def _discriminator(model: type[BaseModel], shared: frozenset[str]) -> str:
    """ "modality: image" for a model whose own field `modality` can only be "image"."""
    for name, field in model.model_fields.items():
        if name not in shared and get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
            return f"{name}: {get_args(field.annotation)[0]}"
    return ""


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models inside an annotation, in order; a base class with keys stands for what extends it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        ours = [cls for cls in annotation.__subclasses__() if cls.__module__.startswith("polyvit.")]
        leaves = [model for cls in ours for model in _models(cls)]
        return leaves if leaves and annotation.model_fields else [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _is_mapping(annotation: Any) -> bool:
    return get_origin(annotation) in (dict, collections.abc.Mapping)


def _is_only_sections(annotation: Any) -> bool:
    """Whether nothing but sections can be given: a model, a union of models, or a mapping to them."""
    if get_origin(annotation) is Annotated:
        return _is_only_sections(get_args(annotation)[0])
    if _is_mapping(annotation):
        return _is_only_sections(get_args(annotation)[1])
    if get_origin(annotation) in (Union, UnionType):
        return all(_is_only_sections(part) for part in get_args(annotation) if part is not NoneType)
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _type(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """An annotation in words: "integer > 0, or null"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0], [*arguments[1:], *metadata])
    if origin in (Union, UnionType):
        return ", or ".join(_type(part, metadata if part is not NoneType else ()) for part in arguments)
    if origin is Literal:
        return " / ".join(f"`{value}`" for value in arguments)
    if _is_mapping(annotation):
        return f"mapping of {_type(arguments[0])} to {_type(arguments[1])}"
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"[{', '.join(_type(part) for part in arguments)}]"
    if origin in (list, tuple):
        return f"list of {_type(arguments[0])}"
    if annotation is NoneType:
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "{" + ", ".join(annotation.model_fields) + "}" if annotation.model_fields else "a section of keys"
    bounds = " and".join(f" {sign} {value:g}" for value, sign in _bounds(metadata))
    return _PLAIN.get(annotation, getattr(annotation, "__name__", str(annotation))) + bounds


def _bounds(metadata: Sequence[Any]) -> Iterator[tuple[float, str]]:
    for item in metadata:
        limits = item.metadata if isinstance(item, FieldInfo) else [item]
        for limit in limits:
            for kind, attribute, sign in _BOUNDS:
                if isinstance(limit, kind):
                    yield getattr(limit, attribute), sign


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return f"`{value}`" if isinstance(value, str) and value else f"`{json.dumps(value, default=str)}`"


def _summary(model: type[BaseModel]) -> str:
    """The first paragraph of the model's docstring."""
    return " ".join(inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].split())


@cache
def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """Field -> the string under it in the source, of the model and the classes that it extends."""
    meanings: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, BaseModel) or cls is BaseModel:
            continue
        try:
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        except (OSError, TypeError):
            continue  # built by `create_model`: there is no source, its fields have descriptions
        assert isinstance(definition, ast.ClassDef)
        for field, after in zip(definition.body, definition.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(after, ast.Expr)
            ):
                text = ast.literal_eval(after.value) if isinstance(after.value, ast.Constant) else ""
                meanings[field.target.id] = " ".join(str(text).split())
    return meanings
