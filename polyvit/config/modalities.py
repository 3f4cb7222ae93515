"""The two tables that a user may add to: modalities and layouts.

A modality is one entry of MODALITIES: its input section, which names its decoder, and its class of tasks, which
has its augmentation section. A layout is one entry of LAYOUTS: the file that scans it. Both are filled in from
outside of this package by `plugins` in a config:

    plugins:
      modalities: {sensor: "my_package.sensor:SENSOR"}     # a Modality
      layouts: {my_folders: "my_package.folders:LAYOUT"}   # a Layout, see data/layouts/scanner.py

Every process that reads the config imports the named objects, so the modules must be importable on every node.
"""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, ValidationError, WrapValidator
from pydantic_core import InitErrorDetails, PydanticCustomError

from polyvit.config.avbert import AudiovisualTask, SequenceInput
from polyvit.config.inputs import AudioInput, ImageInput, InputSection, Section, VideoInput
from polyvit.config.layouts import LAYOUTS
from polyvit.config.tasks import AudioTask, ImageTask, TaskBase, VideoTask


@dataclass(frozen=True)
class ModalityEntry:
    """One modality.

    input: its input section, under `model.<name>` or, of a plugin, `model.inputs.<name>`.
    task: the class of its tasks, under `tasks.NAME` with `modality: <name>`.
    """

    input: type[InputSection]
    task: type[TaskBase]


MODALITIES: dict[str, ModalityEntry] = {
    "image": ModalityEntry(ImageInput, ImageTask),
    "video": ModalityEntry(VideoInput, VideoTask),
    "audio": ModalityEntry(AudioInput, AudioTask),
    "audiovisual": ModalityEntry(SequenceInput, AudiovisualTask),
}
"""{name: entry}, in the order in which a model lists them."""
BUILT_IN = tuple(MODALITIES)


class PluginsConfig(Section):
    """Modalities and layouts of the user's own, each named as "module:attribute"."""

    modalities: dict[str, str] = Field(default_factory=dict)
    """{name: "module:attribute"} of `polyvit.config.ModalityEntry` objects."""
    layouts: dict[str, str] = Field(default_factory=dict)
    """{name: "module:attribute"} of `polyvit.data.layouts.Layout` objects."""


def load_attribute(address: str) -> Any:
    """The object at "module:attribute". Raises ValueError that says what is wrong with the address."""
    module, colon, attribute = address.partition(":")
    if not colon:
        raise ValueError(f"{address!r} is no address; write module:attribute")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{address}: {error}; the module must be importable here and on every node") from None


def register_plugins(document: Any) -> None:
    """Enter what a config's `plugins` section names into the tables; twice the same is once.

    document: the section as plain data; what is not a mapping of texts is left for validation to name. Raises
    ValueError for a name that is taken and for an address at which there is no such object.
    """
    if not isinstance(document, dict):
        return
    for name, address in (document.get("modalities") or {}).items():
        entry = load_attribute(str(address))
        if not isinstance(entry, ModalityEntry):
            raise ValueError(f"plugins.modalities.{name}: {address} is not a polyvit.config.ModalityEntry")
        if MODALITIES.setdefault(name, entry) != entry:
            raise ValueError(f"plugins.modalities.{name}: the name is taken by another modality")
    for name, address in (document.get("layouts") or {}).items():
        if LAYOUTS.setdefault(name, str(address)) != address:
            raise ValueError(f"plugins.layouts.{name}: the name is taken by another layout")


def _task_of_modality(value: Any, _: Any) -> TaskBase:
    """Validate a task as its modality's class."""
    if isinstance(value, TaskBase):
        return value
    if not isinstance(value, dict):
        raise PydanticCustomError("not_a_mapping", "a task must be a mapping of keys")
    modality = value.get("modality")
    if modality not in MODALITIES:
        what = "missing" if modality is None else f"unknown modality {modality!r}"
        raise problem_at("modality", f"{what}; give {one_of(MODALITIES)}", value)
    return MODALITIES[modality].task.model_validate(value)


def _inputs_of_plugins(value: Any, _: Any) -> dict[str, InputSection]:
    """Validate the input section of every plugin modality; those that are not given have their defaults."""
    if not isinstance(value, dict):
        raise PydanticCustomError("not_a_mapping", "must be a mapping of modality to its input section")
    plugins = {name: entry.input for name, entry in MODALITIES.items() if name not in BUILT_IN}
    if unknown := [name for name in value if name not in plugins]:
        known = f"it has {one_of(plugins)}" if plugins else "it is empty"
        raise problem_at(unknown[0], f"no modality of plugins.modalities; {known}", value)
    return {name: section.model_validate(value.get(name, {})) for name, section in plugins.items()}


def problem_at(key: str, message: str, value: Any) -> ValidationError:
    """One problem at a key below the value that is being validated."""
    details = InitErrorDetails(type=PydanticCustomError("choice", message), loc=(key,), input=value)  # type: ignore[arg-type]
    return ValidationError.from_exception_data("config", [details])


def one_of(names: Iterable[str]) -> str:
    """Names in words: a, b or c."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def modalities_of(tasks: Mapping[str, TaskBase]) -> tuple[str, ...]:
    """The modalities of tasks, each once: image, video, audio, then those of plugins in the tasks' order."""
    present = dict.fromkeys(task.modality for task in tasks.values())
    return tuple(sorted(present, key=lambda m: BUILT_IN.index(m) if m in BUILT_IN else len(BUILT_IN)))


TaskConfig = Annotated[SerializeAsAny[TaskBase], WrapValidator(_task_of_modality)]
"""A task, validated as the class of its modality."""
PluginInputs = Annotated[dict[str, SerializeAsAny[InputSection]], WrapValidator(_inputs_of_plugins)]
"""{modality: input section} of the plugins' modalities."""
