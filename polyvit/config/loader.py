"""From a recipe's name or a YAML file, plus overrides, to a validated `RunConfig`.

A recipe is a YAML mapping of config keys. `extends: NAME` starts from another recipe; mappings merge key by key,
except that a recipe which has `tasks` trains exactly the tasks that it lists (each starts from the extended
recipe's task of that name, or else from `KNOWN_TASKS`). Overrides are `key.path=value` (`overrides.py`).
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from polyvit.config.addresses import check_no_password
from polyvit.config.installed import check_installed
from polyvit.config.modalities import MODALITIES
from polyvit.config.models import KINDS, kind_of
from polyvit.config.overrides import apply_override
from polyvit.config.paper_tasks import KNOWN_TASKS
from polyvit.config.renamed import with_new_names
from polyvit.config.run import RunConfig
from polyvit.config.tasks import TaskBase
from polyvit.errors import UserError

FOLDER = Path(__file__).parents[1] / "recipes"
OF_THE_DATA = ("layout", "num_classes", "train_examples", "licence")
"""Keys of a known task that are the same however its files are read."""
NAME_BYTES = 255
"""Most bytes of a file's name, on the usual file systems."""
MOST_BYTES, MOST_VALUES, DEEPEST = 1 << 20, 100_000, 50
"""Of a config: bytes, values with aliases written out, levels in each other."""


def recipe_names() -> list[str]:
    """The recipes that ship, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_config(recipe: str, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> RunConfig:
    """A recipe's name or the path of a YAML file -> the run's config.

    `only` keeps just these tasks. Raises UserError with every problem.
    """
    document = read_recipe(recipe)
    own = list(document["tasks"]) if isinstance(document.get("tasks"), dict) else []
    for override in overrides:
        apply_override(document, override)
    mistyped = _mistyped_tasks(own, document)
    if only:
        tasks = document.get("tasks") or {}
        if missing := [name for name in only if name not in tasks]:
            raise UserError(f"--only {missing[0]}: the recipe has no such task; it has {', '.join(tasks)}")
        document["tasks"] = {name: task for name, task in tasks.items() if name in only}
    config = validate_config(document, mistyped)
    check_installed(config)
    check_no_password("tracking.uri", config.tracking.uri)
    return with_absolute_paths(config)


def _mistyped_tasks(own: Sequence[str], document: dict[str, Any]) -> list[str]:
    """A problem for each task that only overrides name and that is no whole one; these are taken out.

    own: the recipe's tasks. document: the config after the overrides.
    """
    tasks, problems = document.get("tasks"), []
    for name, task in list(tasks.items()) if isinstance(tasks, dict) and own else ():
        if name not in own and isinstance(task, dict) and "layout" not in task:
            near = difflib.get_close_matches(str(name), own, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(own)}."
            problems.append(
                f"tasks.{name}: the recipe has no such task{hint} A new one needs modality, layout, num_classes,"
                " steps and batch"
            )
            del document["tasks"][name]
    return problems


def check_paths(config: RunConfig) -> None:
    """Raises UserError naming every path that no file system can hold, such as class names in place of a file."""
    paths = {"data.root": config.data.root, "init.path": config.init.path, "storage": config.storage}
    paths["train.checkpoint_dir"] = config.train.checkpoint_dir
    for name, task in config.tasks.items():
        paths |= {f"tasks.{name}.root": task.root, f"tasks.{name}.classes": task.classes}
    problems = [
        f"{key}={text[:40]}...: {len(text)} letters are no path; give the path of a file or a folder"
        for key, text in paths.items()
        if text and "://" not in text and any(len(os.fsencode(part)) > NAME_BYTES for part in Path(text).parts)
    ]
    if problems:
        raise UserError("the config names files that cannot be:", problems)


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Relative folders are the user's, seen from here; train workers run elsewhere. URLs stay as they are."""
    check_paths(config)

    def absolute(path: str | None) -> str | None:
        return path if path is None or "://" in path else str(Path(path).expanduser().absolute())

    def names(task: TaskBase, folder: str) -> str | None:
        # Looked for in the task's folder first, then here.
        here = task.classes is not None and not (Path(folder) / task.classes).is_file()
        return absolute(task.classes) if here and Path(str(task.classes)).is_file() else task.classes

    data = config.data.model_copy(update={"root": absolute(config.data.root)})
    tasks = {}
    for name, task in config.tasks.items():
        root = absolute(task.root)
        changes = {"root": root, "classes": names(task, root or f"{data.root}/{name}")}
        tasks[name] = task.model_copy(update=changes)
    init = config.init.model_copy(update={"path": absolute(config.init.path)})
    train = config.train.model_copy(update={"checkpoint_dir": absolute(config.train.checkpoint_dir)})
    space = {
        key: [absolute(value) for value in values] if _names_folder(key) and isinstance(values, list) else values
        for key, values in config.sweep.space.items()
    }
    changed = {
        "tasks": tasks, "data": data, "init": init, "train": train, "storage": absolute(config.storage),
        "sweep": config.sweep.model_copy(update={"space": space}),
    }  # fmt: skip
    return config.model_copy(update=changed)


def _names_folder(key: str) -> bool:
    """Whether a key of the config is a folder that may be relative."""
    folders = ("data.root", "init.path", "storage", "train.checkpoint_dir")
    return key in folders or (key.startswith("tasks.") and key.endswith(".root"))


def recipe_chain(recipe: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, what it says) of the recipe and of all that it extends, itself first."""
    chain = [(recipe, _parse(_find(recipe)))]
    while parent := chain[-1][1].pop("extends", None):
        seen = [name for name, _ in chain]
        if parent in seen:
            raise UserError(f"{recipe}: recipes extend each other in a circle: {' -> '.join([*seen, parent])}")
        chain.append((str(parent), _parse(_find(str(parent)))))
    return chain


def left_out_tasks(recipe: str) -> str | None:
    """Which tasks of the recipe that it extends a YAML file does not name, and so does not train, as a sentence.

    None where it leaves none out, and for recipes that ship, which mean it.
    """
    if Path(recipe).suffix not in (".yaml", ".yml") or len(chain := recipe_chain(recipe)) == 1:
        return None
    parent = chain[1][0]
    kept, inherited = (read_recipe(name).get("tasks") or {} for name in (recipe, parent))
    missing = [task for task in inherited if task not in kept]
    if not missing:
        return None
    return (
        f"{recipe} trains the tasks that it names; of {parent} it leaves out {', '.join(missing)}. To train one of"
        f" them too, name it under `tasks` (`{missing[0]}: {{}}` is enough)"
    )


def read_recipe(recipe: str) -> dict[str, Any]:
    """The recipe as plain data, with what it extends merged in."""
    (_, document), *parents = recipe_chain(recipe)
    named = "name" in document
    for _, parent in parents:
        document = _extend(parent, document)
        if not named:
            document.pop("name", None)  # an extended recipe is another recipe
    tasks = document.get("tasks")
    if isinstance(tasks, dict):
        document["tasks"] = {
            name: _merge(known_task(name, task or {}), task or {}) if isinstance(task, dict | None) else task
            for name, task in tasks.items()
        }
    document.setdefault("name", Path(recipe).stem)
    return with_new_names(document)


def known_task(name: str, task: Mapping[str, Any]) -> dict[str, Any]:
    """What KNOWN_TASKS says of a task; of one that is read as another modality, what its data are alone."""
    known = KNOWN_TASKS.get(name, {})
    if task.get("modality", known.get("modality")) == known.get("modality"):
        return known
    return {key: value for key, value in known.items() if key in OF_THE_DATA}


def validate_config(document: dict[str, Any], known: Sequence[str] = ()) -> RunConfig:
    """Plain data -> config. Raises UserError that lists every problem, unknown keys with the nearest known.

    known: problems that were seen before.
    """
    problems = list(known)
    try:
        config = RunConfig.model_validate(document)
    except ValidationError as error:
        problems += _problems(error, document)
        problems += _cross_field_problems_behind(error, document)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise UserError(f"the config has {count}:", problems)
    return config


def _find(recipe: str) -> Path:
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"{recipe} is not a file; give a YAML file, or a recipe: {', '.join(recipe_names())}")
        return path
    shipped = FOLDER / f"{recipe}.yaml"
    if recipe not in recipe_names():
        near = difflib.get_close_matches(recipe, recipe_names(), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(
            f"unknown recipe {recipe!r}.{hint} Recipes: {', '.join(recipe_names())}; or give a .yaml file's path"
        )
    return shipped


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, and what grows without bounds. `<<: *base` merges; keys beside it
    win."""

    def get_single_node(self) -> yaml.Node | None:
        """The document, once it is known how large it is with its aliases written out."""
        node = super().get_single_node()
        if node is not None and _values(node, 1, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"with its aliases written out it has more than {MOST_VALUES:,} values")
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Called again for a mapping that another one merges: it has no merge key any more then."""
        if not getattr(node, "flat", False):
            own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            keys = [self.construct_object(key, deep=True) for key in own]
            if odd := [key for key in keys if isinstance(key, list | dict)]:
                raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {odd[0]!r} cannot be a key")
            if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
                raise yaml.YAMLError(f"line {node.start_mark.line + 1}: key {twice[0]!r} is given twice")
            setattr(node, "flat", True)  # noqa: B010
            super().flatten_mapping(node)


def _values(node: yaml.Node, depth: int, known: dict[int, int]) -> int:
    """How many values a node is with its aliases written out. An alias of what it lies in is infinitely deep."""
    if depth > DEEPEST:
        raise yaml.YAMLError(f"line {node.start_mark.line + 1}: more than {DEEPEST} levels, or an alias of itself")
    if id(node) not in known:
        inside: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inside = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inside = node.value
        known[id(node)] = 1 + sum(_values(part, depth + 1, known) for part in inside)
    return known[id(node)]


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    return {loader.construct_object(k): loader.construct_object(v, deep=True) for k, v in node.value}


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _parse(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes; a config has at most {MOST_BYTES:,}")
        document = yaml.load(path.read_text(), _StrictLoader)  # a SafeLoader
    except RecursionError:
        raise UserError(f"{path} is not readable YAML: more than {DEEPEST} levels in each other") from None
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise UserError(f"{path} is not readable YAML: {error}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} must hold a mapping of config keys, such as `tasks:`")
    return document


def _extend(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    merged = _merge(parent, child)
    if isinstance(child.get("tasks"), dict):
        merged["tasks"] = {name: merged["tasks"][name] for name in child["tasks"]}
    return merged


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        elif not (value is None and isinstance(merged.get(key), dict)):
            merged[key] = value
    return merged


def values_of(document: Mapping[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(the keys that lead to it, value) of each value of a config as plain data; an empty mapping is one."""
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from values_of(value, (*before, key))
        else:
            yield (*before, key), value


def flatten(document: Mapping[str, Any]) -> dict[str, Any]:
    """{"model": {"width": 8}} -> {"model.width": 8}; the keys are those of the command line."""
    return {".".join(map(str, place)): value for place, value in values_of(document)}


def _problems(error: ValidationError, document: dict[str, Any]) -> list[str]:
    lines = []
    for item in error.errors():
        location = item["loc"]
        path = ".".join(str(part) for part in location)
        if item["type"] == "extra_forbidden":
            lines.append(f"{path}: unknown key{_nearest(location, document)}")
        elif item["type"] == "choice":
            lines.append(f"{path}: {item['msg']}")
        elif item["type"] == "missing":
            lines.append(f"{path}: missing; give a value")
        elif item["type"] == "value_error" and not location:
            lines += str(item["ctx"]["error"]).split("\n")
        else:
            shown = f" (given: {item['input']!r})" if not isinstance(item["input"], dict) else ""
            lines.append(f"{path}: {item['msg']}{shown}")
    return lines


def _nearest(location: tuple[int | str, ...], document: dict[str, Any]) -> str:
    known = known_keys(location[:-1], document)
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}"


def known_keys(location: Sequence[int | str], document: Mapping[str, Any]) -> list[str]:
    """The keys that the config allows at a location such as ("model", "image").

    document: the whole config as plain data; a task's keys depend on the modality that it says there.
    """
    model: Any = RunConfig
    parts = list(location)
    while parts:
        part = parts.pop(0)
        if part == "tasks" and model is RunConfig and parts:
            task = document["tasks"][parts.pop(0)]
            model = MODALITIES[task["modality"]].task
            continue
        if part == "model" and model is RunConfig:
            kind = kind_of(document.get("model"))
            model = KINDS[kind if kind in KINDS else "polyvit"]
            continue
        if part == "inputs" and parts:
            model = MODALITIES[str(parts.pop(0))].input
            continue
        annotation = model.model_fields[str(part)].annotation
        choices = [
            a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        if not choices:
            return []
        model = choices[0]
    return list(model.model_fields)


def _cross_field_problems_behind(error: ValidationError, document: dict[str, Any]) -> list[str]:
    """Contradictions that show once the keys that failed on their own are left out."""
    if any(not item["loc"] for item in error.errors()):
        return []  # those are the contradictions already
    trimmed = _merge({}, document)
    for item in error.errors():
        location = item["loc"]
        place: Any = trimmed
        for part in location[:-1]:
            if not isinstance(place, dict) or not isinstance(place.get(part), dict):
                place = None
                break
            place[part] = dict(place[part])
            place = place[part]
        if isinstance(place, dict):
            place.pop(location[-1], None)
    try:
        RunConfig.model_validate(trimmed)
    except ValidationError as second:
        if all(not item["loc"] for item in second.errors()):
            return _problems(second, document)
    return []
