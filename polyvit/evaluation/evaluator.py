"""Evaluate tasks on minibatches that ranks share out; totals are merged exactly, no example counts twice.

In: minibatches with inputs[name] [B * V, ...] and labels [B, K]. The model's answers to the views of one example
are averaged before anything is measured. The main number of a task is its `metric`: `top1`, or `map` for
multi-label audio. Legend: B examples, V views of each, N tokens, P patch_dim, K classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polyvit.config import AudiovisualTask, RunConfig, TaskConfig
from polyvit.data.loading import Minibatch, Quarantined, as_tensor, eval_rows, on_device, tensors
from polyvit.distributed import Communicator
from polyvit.evaluation.contrastive import ContrastiveState
from polyvit.evaluation.metrics import MetricState
from polyvit.model import MultiTaskModel, autocast, device_of, normalise
from polyvit.objectives import example_losses, mean_probability, one_answer

Totals = tuple[dict[str, "MetricState | ContrastiveState"], list[Quarantined]]
"""Running totals by task, and the examples that could not be decoded."""


def evaluate(
    model: MultiTaskModel, minibatches: Iterable[Minibatch], config: RunConfig, world: Communicator
) -> tuple[dict[str, dict[str, Any]], list[Quarantined]]:
    """Results of every task, the same on every rank, and the examples left out as undecodable.

    A result: `metric`, `value` (that metric), `examples`, `skipped`, `protocol`, and where an example counted
    `loss`, `top1`, `top5`, `map`; of a contrastive task `loss` and what `polyvit.objectives.MEASURES` names.
    """
    return merged(config, world.gather(totals(model, minibatches, config)))


@torch.no_grad()
def totals(
    model: MultiTaskModel, minibatches: Iterable[Minibatch], config: RunConfig, keep_scores: bool = False
) -> Totals:
    """What one process measures of its share of the minibatches; `merged` makes results of all shares.

    keep_scores: keep every example's logits and labels, for `task_detail`.
    """
    device = device_of(model)
    states = {name: state_of(task, keep_scores) for name, task in config.tasks.items()}
    bad: list[Quarantined] = []
    model.eval()
    for (minibatch,) in on_device(([minibatch] for minibatch in minibatches), device):
        bad += minibatch.bad
        if not minibatch.rows:
            continue
        task = config.tasks[minibatch.task]
        inputs = {name: normalise(array) for name, array in tensors(minibatch, device)[0].items()}
        state = states[minibatch.task]
        if isinstance(state, ContrastiveState):
            assert isinstance(task, AudiovisualTask)  # the config says so
            state.update(model, inputs, task, minibatch, config)
            continue
        if model.compiled:
            inputs = padded(inputs, eval_rows(task))
        with autocast(device, config.train.precision):
            logits = one_answer(model(inputs, minibatch.task)[: minibatch.rows].float(), task.loss)
        logits = average_views(logits.cpu(), minibatch.views, task)
        labels = as_tensor(minibatch.labels)
        losses = example_losses(logits, labels, task.loss, margin=task.margin)
        state.update(logits.numpy(), minibatch.labels, losses.numpy())
    model.train()
    return states, bad


def merged(config: RunConfig, shares: Sequence[Totals]) -> tuple[dict[str, dict[str, Any]], list[Quarantined]]:
    """The results of every task over all shares, as `evaluate` gives them."""
    for others, _ in shares[1:]:
        for name, state in shares[0][0].items():
            state.merge(others[name])  # type: ignore[arg-type]
    all_bad = [entry for _, entries in shares for entry in entries]
    return {
        name: _result(config.tasks[name], state, sum(entry.task == name for entry in all_bad))
        for name, state in shares[0][0].items()
    }, all_bad


def padded(inputs: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Arrays [W, ...] with rows of zeros up to `rows`, in which a model that is compiled for one shape is run."""
    return {
        name: torch.cat([array, array.new_zeros(max(0, rows - len(array)), *array.shape[1:])])
        for name, array in inputs.items()
    }


def average_views(logits_WK: Tensor, views: int, task: TaskConfig) -> Tensor:
    """[B * V, K] float logits, the views of an example side by side -> [B, K]: one answer for each example.

    `eval_average` logits: their mean (scenic's ViViT test step). probabilities: the logits of the mean
    probability (softmax or sigmoid by the task's loss), so that the order of classes and the loss are those of
    the averaged probabilities.
    """
    if views == 1:
        return logits_WK
    logits_BVK = logits_WK.unflatten(0, (-1, views))
    if task.view_average == "logits":
        return logits_BVK.mean(dim=1)
    return mean_probability(logits_BVK, task.loss)


def state_of(task: TaskConfig, keep_scores: bool = False) -> "MetricState | ContrastiveState":
    """Running totals of a task. keep_scores: also where its metric does not need them."""
    if task.loss == "contrastive":
        return ContrastiveState()
    wants_map = task.metric == "map"
    return MetricState(wants_map or keep_scores, wants_map)


def _result(task: TaskConfig, state: "MetricState | ContrastiveState", skipped: int) -> dict[str, Any]:
    results = state.results()
    return {
        "metric": task.metric,
        "value": results.get(task.metric),
        "examples": state.examples,
        "skipped": skipped,
        "protocol": task.protocol,
        **results,
    }
