"""What is trained, put together: the model compiled and divided as the config says, its optimiser, its average,
learned weights of losses, and the tasks' accounts of drift."""

import torch

from polyvit.checkpoint import TrainUnit
from polyvit.config import RunConfig
from polyvit.distributed import Communicator, shard
from polyvit.model import MultiTaskModel, uses_bfloat16
from polyvit.training.drift import build_drift
from polyvit.training.ema import Ema
from polyvit.training.layer_decay import layer_factors
from polyvit.training.loss_weights import learned_weights
from polyvit.training.optim import build_optimiser


def compiles(config: RunConfig, device: torch.device) -> bool:
    """Whether a worker compiles the model: where the config says so, by default on a GPU."""
    return bool(config.train.compile) or (config.train.compile is None and device.type == "cuda")


def build_learner(
    model: MultiTaskModel, config: RunConfig, device: torch.device, world: Communicator
) -> TrainUnit:
    """Compile and shard the model as the config says, and build its optimiser and its moving average (EMA)."""
    model.activation_checkpointing = config.train.activation_checkpointing
    if compiles(config, device):
        model.compile_blocks()
    if config.train.sharding == "full" and world.size > 1:
        shard(model.sharding_units(), uses_bfloat16(device, config.train.precision))
    parameters = dict(model.named_parameters())
    optimiser = build_optimiser(parameters, config.optim, layer_factors(parameters, config))
    ema = Ema(model, config.optim.ema_decay) if config.optim.ema_decay else None
    return TrainUnit(model, optimiser, ema, learned_weights(config, device), build_drift(model, config))
