"""The JSON schema of a recipe, by which an editor completes and checks its keys.

In: the models of a config. Out: a schema (draft 2020-12). In a recipe nothing is required: what it extends, a
known task or the command line may give it.
"""

from typing import Any

from pydantic import TypeAdapter

from polyvit.config.modalities import BUILT_IN, MODALITIES
from polyvit.config.models import KINDS
from polyvit.config.reference import config_sections
from polyvit.config.run import RunConfig

_ABOUT = ("title", "description", "default")


def recipe_schema() -> dict[str, Any]:
    """The schema of a YAML file that `load_config` reads."""
    schema = RunConfig.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    kinds = [_reference(model, definitions) for model in KINDS.values()]
    tasks = [_reference(MODALITIES[name].task, definitions) for name in BUILT_IN]
    properties = schema["properties"]
    properties["model"] = {"anyOf": kinds}
    properties["tasks"] = {"type": "object", "additionalProperties": {"anyOf": [*tasks, {"type": "null"}]}}
    properties["extends"] = {"type": "string", "description": "The recipe that this one starts from."}
    meanings = {key.path: key.meaning for section in config_sections() for key in section.keys}
    for section in (schema, *definitions.values()):
        section.pop("required", None)
    _describe(schema, "", definitions, meanings, set())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "PolyViT recipe"}


def _reference(model: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """A `$ref` to a model, which is put among the definitions with those that it needs."""
    own = TypeAdapter(model).json_schema(ref_template="#/$defs/{model}")
    definitions |= own.pop("$defs", {})
    definitions[model.__name__] = own
    return {"$ref": f"#/$defs/{model.__name__}"}


def _describe(
    schema: dict[str, Any], path: str, definitions: dict[str, Any], meanings: dict[str, str], seen: set[int]
) -> None:
    """Write the meaning of each key into the schema, where the key's text is."""
    if id(schema) in seen:
        return
    seen.add(id(schema))
    for key, inner in schema.get("properties", {}).items():
        below = f"{path}.{key}" if path else key
        for pair in (inner, *inner.get("anyOf", ())):
            if len(pair.get("prefixItems", ())) == 2:  # a height and a width, or one number for both
                either = [{"type": "integer"}, {k: pair.pop(k) for k in list(pair) if k not in _ABOUT}]
                pair["anyOf"] = either
        if below in meanings and "$ref" not in inner:
            inner["description"] = meanings[below]
        _describe(inner, below, definitions, meanings, seen)
    values = schema.get("additionalProperties")
    if isinstance(values, dict):
        _describe(values, f"{path}.NAME", definitions, meanings, seen)
    for choice in (schema, *schema.get("anyOf", ()), *schema.get("allOf", ()), *schema.get("oneOf", ())):
        if reference := choice.get("$ref"):
            _describe(definitions[reference.rpartition("/")[2]], path, definitions, meanings, seen)
