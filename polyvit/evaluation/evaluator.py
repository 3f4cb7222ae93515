"""Evaluate tasks on minibatches that ranks share out; totals are merged exactly, no example counts twice.

In: minibatches with inputs[name] [B * V, ...] and labels [B, K]. The model's answers to the views of one example
are averaged before anything is measured. The main number of a task is its `metric`: `top1`, or `map` for
multi-label audio. Legend: B examples, V views of each, N tokens, P patch_dim, K classes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyvit.config import AudiovisualTask, RunConfig, TaskConfig
from polyvit.data.loading import (
    Minibatch,
    Quarantined,
    as_tensor,
    blank_arrays,
    eval_rows,
    on_device,
    tensors,
)
from polyvit.distributed import Communicator, is_sharded, reshard
from polyvit.evaluation.contrastive import ContrastiveState
from polyvit.evaluation.device_totals import DeviceTotals
from polyvit.evaluation.metrics import MetricState
from polyvit.model import MultiTaskModel, autocast, device_of, normalise
from polyvit.objectives import mean_probability, one_answer

Totals = tuple[dict[str, "MetricState | ContrastiveState"], list[Quarantined]]
"""Running totals by task, and the examples that could not be decoded."""


def evaluate(
    model: MultiTaskModel, minibatches: Iterable[Minibatch], config: RunConfig, world: Communicator
) -> tuple[dict[str, dict[str, Any]], list[Quarantined]]:
    """Results of every task, the same on every rank, and the examples left out as undecodable.

    A result: `metric`, `value` (that metric), `examples`, `skipped`, `protocol`, and where an example counted
    `loss`, `top1`, `top5`, `map`; of a contrastive task `loss` and what `polyvit.objectives.MEASURES` names.
    """
    return merged(config, world.gather(totals(model, minibatches, config, world)))


@torch.no_grad()
def totals(
    model: MultiTaskModel, minibatches: Iterable[Minibatch], config: RunConfig, world: Communicator | None = None,
    keep_scores: bool = False,
) -> Totals:  # fmt: skip
    """What one process measures of its share of the minibatches; `merged` makes results of all shares.

    world: the ranks among which the model is divided, if it is; they call this together. keep_scores: keep every
    example's key, loss, logits and labels, for `task_detail`.
    """
    device, divided = device_of(model), is_sharded(model)
    states = {name: state_of(task, keep_scores) for name, task in config.tasks.items()}
    later = {n: DeviceTotals(config.tasks[n], s) for n, s in states.items() if isinstance(s, MetricState)}
    bad: list[Quarantined] = []
    model.eval()
    uploaded = (minibatch for (minibatch,) in on_device(([each] for each in minibatches), device))
    for minibatch in together(uploaded, config, world) if divided and world else uploaded:
        bad += minibatch.bad
        if divided and minibatch.rows < least_rows(config.tasks[minibatch.task]):
            _take_part(model, minibatch, config)
        if not minibatch.rows:
            continue
        task = config.tasks[minibatch.task]
        arrays, labels = tensors(minibatch, device)
        inputs = {name: normalise(array) for name, array in arrays.items()}
        state = states[minibatch.task]
        if isinstance(state, ContrastiveState):
            assert isinstance(task, AudiovisualTask)  # the config says so
            state.update(model, inputs, task, minibatch, config)
            continue
        if model.compiled:
            inputs = padded(inputs, eval_rows(config, minibatch.task))
        with autocast(device, config.train.precision):
            logits = one_answer(model(inputs, minibatch.task)[: minibatch.rows].float(), task.loss)
        logits = average_views(logits, minibatch.views, task)
        later[minibatch.task].add(logits, minibatch.labels, labels, minibatch.keys if keep_scores else ())
    for each in later.values():
        each.read()
    model.train()
    if divided:  # what the last pass has gathered may be the average's
        reshard(model)
    return states, bad


def together(minibatches: Iterable[Minibatch], config: RunConfig, world: Communicator) -> Iterator[Minibatch]:
    """This rank's minibatches, and between them empty ones, so that all ranks run the same tasks equally often.

    Of a model that is divided among ranks each pass gathers a block at a time from all of them.
    """
    names, source = list(config.tasks), iter(minibatches)
    mine = next(source, None)
    while (turn := min(world.gather(names.index(mine.task) if mine else len(names)))) < len(names):
        if mine and mine.task == names[turn]:
            yield mine
            mine = next(source, None)
        else:
            task = config.tasks[names[turn]]
            arrays = blank_arrays(config.model.input(task.modality), 0)
            yield Minibatch(0, names[turn], arrays, np.zeros((0, task.num_classes), np.uint8), (), 0, 0)


def least_rows(task: TaskConfig) -> int:
    """With fewer, a minibatch of an evaluation is measured without a pass of the model."""
    return 2 if task.loss == "contrastive" else 1


def _take_part(model: MultiTaskModel, minibatch: Minibatch, config: RunConfig) -> None:
    """The pass of a minibatch too small to be measured: other ranks wait for this one's part of the model."""
    task, device = config.tasks[minibatch.task], device_of(model)
    rows = eval_rows(config, minibatch.task) if model.compiled else least_rows(task)
    blank = blank_arrays(config.model.input(task.modality), rows)
    inputs = {name: normalise(as_tensor(array).to(device)) for name, array in blank.items()}
    if isinstance(task, AudiovisualTask) and task.loss == "contrastive":
        ContrastiveState().update(model, inputs, task, replace(minibatch, inputs=blank), config)
    else:
        with autocast(device, config.train.precision):
            model(inputs, minibatch.task)


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
