"""Evaluate tasks on minibatches that ranks share out; totals are merged exactly, no example counts twice.

One view an example. `metric` of the task is what the result is known by: `top1`, or `map` for multi-label audio.
"""

from collections.abc import Iterable
from typing import Any

import torch

from polyvit.config import RunConfig
from polyvit.data.minibatch import Minibatch, Quarantined
from polyvit.losses import example_losses
from polyvit.metrics import MetricState
from polyvit.model.polyvit import PolyViT
from polyvit.model.tokenizer import normalise
from polyvit.step import World


@torch.no_grad()
def evaluate(
    model: PolyViT, minibatches: Iterable[Minibatch], config: RunConfig, world: World
) -> tuple[dict[str, dict[str, Any]], list[Quarantined]]:
    """Results of every task, the same on every rank, and the examples left out as undecodable.

    A result: `metric`, `value` (that metric), `examples`, `skipped`, `loss`, `top1`, `top5`, `map`.
    """
    device = model.shared.norm.weight.device
    states = {name: MetricState(task.metric == "map") for name, task in config.tasks.items()}
    bad: list[Quarantined] = []
    model.eval()
    for minibatch in minibatches:
        bad += minibatch.bad
        if not len(minibatch.tokens):
            continue
        task = config.tasks[minibatch.task]
        tokens = normalise(torch.from_numpy(minibatch.tokens).to(device))
        with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bfloat16"):
            logits = model(tokens, minibatch.task).float()
        labels = torch.from_numpy(minibatch.labels)
        losses = example_losses(logits.cpu(), labels, task.loss)
        states[minibatch.task].update(logits.cpu().numpy(), minibatch.labels, losses.numpy())
    model.train()
    gathered = world.gather((states, bad))
    for others, _ in gathered[1:]:
        for name, state in gathered[0][0].items():
            state.merge(others[name])
    all_bad = [entry for _, entries in gathered for entry in entries]
    return {
        name: _result(config.tasks[name].metric, state, sum(entry.task == name for entry in all_bad))
        for name, state in gathered[0][0].items()
    }, all_bad


def _result(metric: str, state: MetricState, skipped: int) -> dict[str, Any]:
    results = state.results()
    return {
        "metric": metric,
        "value": results.get(metric),
        "examples": state.examples,
        "skipped": skipped,
        **results,
    }
