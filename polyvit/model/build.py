"""From a config to its model."""

from collections.abc import Mapping

import torch

from polyvit.config import AVBertConfig, RunConfig, TaskConfig
from polyvit.model.avbert import AVBert
from polyvit.model.polyvit import PolyViT


def build_model(
    config: RunConfig, tasks: Mapping[str, TaskConfig] | None = None, seed: int = 0
) -> PolyViT | AVBert:
    """The model of a config, for all of its tasks or for those given; initial values from `seed`."""
    tasks = config.tasks if tasks is None else tasks
    if isinstance(config.model, AVBertConfig):
        return AVBert(config.model, tasks, seed)
    return PolyViT(config.model, tasks, seed)


def parameters_of(config: RunConfig) -> dict[str, int]:
    """Parameters by role of a config's model, without allocating them."""
    with torch.device("meta"):
        return build_model(config).parameter_table()


def touched_parameters(config: RunConfig) -> dict[str, int]:
    """Parameters that a step of each task reaches, without allocating them."""
    with torch.device("meta"):
        model = build_model(config)
    return {task: sum(p.numel() for p in model.touched(task).values()) for task in config.tasks}
