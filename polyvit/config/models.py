"""Which model a run trains: one section for each kind, told apart by `model.kind`.

In: the `model` section as plain data. Out: a `ModelConfig` (PolyViT, where no kind is said) or an `AVBertConfig`.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import WrapValidator
from pydantic_core import PydanticCustomError

from polyvit.config.avbert import AVBertConfig
from polyvit.config.modalities import one_of, problem_at
from polyvit.config.sections import ModelConfig

KINDS: Mapping[str, type[ModelConfig] | type[AVBertConfig]] = {"polyvit": ModelConfig, "avbert": AVBertConfig}


def kind_of(document: Any) -> Any:
    """The kind that a `model` section in plain data says; PolyViT where it says none."""
    return document.get("kind", "polyvit") if isinstance(document, Mapping) else "polyvit"


def _model_of_kind(value: Any, _: Any) -> ModelConfig | AVBertConfig:
    """Validate the section as its kind's class."""
    if isinstance(value, ModelConfig | AVBertConfig):
        return value
    if not isinstance(value, dict):
        raise PydanticCustomError("not_a_mapping", "must be a mapping of keys")
    kind = kind_of(value)
    if kind not in KINDS:
        raise problem_at("kind", f"unknown kind {kind!r}; give {one_of(KINDS)}", value)
    return KINDS[kind].model_validate(value)


AnyModel = Annotated[ModelConfig | AVBertConfig, WrapValidator(_model_of_kind)]
"""The `model` section, validated as the class of its kind."""
