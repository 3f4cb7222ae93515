"""Evaluate a checkpoint on the cluster: index, decode, measure. `polyvit evaluate` and `polyvit extend` run this.

In: a model, a config that says what to evaluate, and the checkpoint's folder, which knows the class names. Out: a
row of results for each task. Decoding runs on any CPU of the cluster; the model runs on all GPUs that the cluster
has, each with a share of the minibatches, else in this process.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from pipelines.feed import make_decoder, minibatches
from pipelines.index import Indexes, build_indexes, index_report
from pipelines.runtime import (
    ProgressActor,
    ProgressReporter,
    check_resources,
    console,
    live_line,
    one_worker,
    use_gpu,
)
from polyvit.checkpoint import read_document
from polyvit.config import RunConfig
from polyvit.data.index import Scan
from polyvit.data.loading import Minibatch, Request, split_requests
from polyvit.deploy import class_names, pad_names
from polyvit.errors import UserError
from polyvit.evaluation import (
    MetricState,
    TaskDetail,
    Totals,
    chance_of,
    label_shares,
    merged,
    task_detail,
    totals,
)
from polyvit.model import MultiTaskModel, fast_kernels
from polyvit.reports.evaluation import drawn_input, panel


def class_problems(scans: Mapping[str, Scan], trained: Mapping[str, Sequence[str]]) -> list[str]:
    """Tasks whose data give a label another meaning than the data that the checkpoint was trained on.

    `trained`: its class names; where they lack a task, nothing is known and nothing is said.
    """
    problems = []
    for name, scan in scans.items():
        pairs = enumerate(zip(scan.classes, trained.get(name, ()), strict=False))
        differ = next(((i, here, there) for i, (here, there) in pairs if here != there), None)
        if differ is not None:
            i, here, there = differ
            problems.append(
                f"tasks.{name}: label {i} is {here!r} in these data and {there!r} in those of training; set "
                f"tasks.{name}.classes to a file of the training classes, one a line, in their order"
            )
    return problems


def evaluate_checkpoint(
    model: MultiTaskModel, config: RunConfig, checkpoint: Path, details: dict[str, TaskDetail] | None = None
) -> dict[str, dict[str, Any]]:
    """Index the tasks, decode and measure on the cluster that is attached. Returns a row for each task.

    details: filled with the detail of each task with classes and examples, for a report; None: none is wanted.

    Raises UserError where the labels of the data are not those of the checkpoint, or the cluster is too small.
    """
    # One process runs the model, whatever number trained it.
    single = one_worker(config)
    check_resources(single)
    with tempfile.TemporaryDirectory(prefix="polyvit-evaluate-", dir=_shared_folder(config)) as folder:
        console.print(f"indexing {len(config.tasks)} task{'s' if len(config.tasks) > 1 else ''} ...")
        indexes = build_indexes(config, Path(folder), train=False)
    if problems := class_problems(indexes.scans, class_names(checkpoint, config, read_document(checkpoint))):
        raise UserError("the labels of the data are not those of the checkpoint:", problems)
    shares = _measure(model, config, indexes, use_gpu(single), details is not None)
    results, undecodable = merged(config, shares)
    if details is not None:
        details |= _with_media(_details(config, indexes, shares[0][0]), config, indexes)
    report = index_report(indexes)
    return {
        name: {
            **_row(config, name, results[name], indexes.scans[name]),
            "left_out": report[name]["left_out"],
            "skipped_files": [
                *({"path": entry.path, "reason": entry.reason} for entry in undecodable if entry.task == name),
                *({"path": entry["where"], "reason": entry["reason"]} for entry in report[name]["problems"]),
            ],
        }
        for name in config.tasks
    }


def _shared_folder(config: RunConfig) -> Path | None:
    """`storage`, which every node of a cluster sees, if it is here; None: this machine's temporary folder."""
    storage = Path(config.storage)
    return storage if storage.is_dir() and os.access(storage, os.W_OK) else None


def _details(config: RunConfig, indexes: Indexes, states: Mapping[str, Any]) -> dict[str, TaskDetail]:
    """Of totals of all shares, with kept scores."""
    details = {}
    for name, state in states.items():
        if isinstance(state, MetricState) and state.examples:
            names = pad_names(indexes.scans[name].classes, config.tasks[name].num_classes)
            logits_BK, labels_BK = np.concatenate(state.scores), np.concatenate(state.labels)
            losses_B = np.concatenate(state.losses)
            details[name] = task_detail(
                name, config.tasks[name], names, logits_BK, labels_BK, state.keys, losses_B
            )
    return details


def _with_media(details: Mapping[str, TaskDetail], config: RunConfig, indexes: Indexes) -> dict[str, TaskDetail]:
    """The details, with path and panel of each of the worst examples; decoded once more, on the cluster."""
    decoder, examples, requests = make_decoder(config, indexes), {}, []
    inputs = dict(decoder.inputs)
    for name, detail in details.items():
        task, keys = config.tasks[name], {each.key for each in detail.worst}
        examples[name] = {e.key: e for e in indexes.scans[name].split(task.eval_split) if e.key in keys}
        spec = drawn_input(decoder.inputs[name], decoded_before=task.layout == "tokens")
        if spec is not None:
            inputs[name] = spec
            requests.append(Request(0, name, [examples[name][each.key] for each in detail.worst]))
    tasks = {name: task.with_one_view() for name, task in config.tasks.items()}
    panels: dict[str, dict[str, np.ndarray]] = {name: {} for name in details}
    with closing(minibatches(requests, replace(decoder, tasks=tasks, inputs=inputs), config)) as stream:
        for minibatch in stream:
            for i, key in enumerate(minibatch.keys):
                row = i * minibatch.views + minibatch.views // 2
                view = {array_name: array[row] for array_name, array in minibatch.inputs.items()}
                panels[minibatch.task][key] = panel(view, inputs[minibatch.task])
    return {
        name: replace(
            detail,
            worst=tuple(
                replace(each, path=examples[name][each.key].path, panel=panels[name].get(each.key))
                for each in detail.worst
            ),
        )
        for name, detail in details.items()
    }


def _measure(
    model: MultiTaskModel, config: RunConfig, indexes: Indexes, gpu: bool, keep_scores: bool
) -> list[Totals]:
    """`measure_share` of as many Ray tasks as there are GPUs, or here."""
    progress_actor = ProgressActor.remote()  # type: ignore[attr-defined]
    ray.get(progress_actor.post.remote({"phase": "starting the feed ..."}))
    with live_line(progress_actor):
        if not gpu:
            return [measure_share(model, config, indexes, progress_actor, "cpu", 0, 1, keep_scores)]
        train = config.train
        shares = gpu_shares(config, ray.cluster_resources(), len(all_ranks_requests(config, indexes.scans)))
        task = ray.remote(num_cpus=train.cpus_per_worker, num_gpus=train.gpus_per_worker)(measure_share)
        model_ref = ray.put(model)
        given = (model_ref, config, indexes, progress_actor, "cuda")
        return ray.get(
            [
                task.options(name=f"evaluate: share {rank + 1} of {shares}").remote(
                    *given, rank, shares, keep_scores
                )
                for rank in range(shares)
            ]
        )


def gpu_shares(config: RunConfig, have: Mapping[str, float], requests: int) -> int:
    """How many GPUs measure: all that the cluster has, as long as CPUs are left to decode and each has work."""
    cpus = (have["CPU"] - config.data.decode_cpus) // config.train.cpus_per_worker
    return max(1, min(int(have["GPU"] // config.train.gpus_per_worker), int(cpus), requests))


def measure_share(
    model: MultiTaskModel, config: RunConfig, indexes: Indexes, progress_actor: Any, device: str, rank: int = 0,
    shares: int = 1, keep_scores: bool = False,
) -> Totals:  # fmt: skip
    """Run the model on every `shares`-th minibatch of every task's evaluation split, from the rank-th on.

    model, config, indexes: what to evaluate. progress_actor: gets the live line, of rank 0. device: "cpu" or
    "cuda". keep_scores: for a report.
    """
    requests = all_ranks_requests(config, indexes.scans)[rank::shares]
    stream = minibatches(requests, make_decoder(config, indexes), config)
    progress = ProgressReporter(progress_actor, rank)

    def announced(i: int, minibatch: Minibatch) -> Minibatch:
        progress({"phase": f"evaluating: {minibatch.task} (minibatch {i} of {len(requests)}) ..."})
        return minibatch

    try:
        numbered = (announced(i, minibatch) for i, minibatch in enumerate(stream, start=1))
        with fast_kernels(torch.device(device), config.train.precision):
            return totals(model.to(device), numbered, config, keep_scores=keep_scores)
    finally:
        stream.close()


def all_ranks_requests(config: RunConfig, scans: Mapping[str, Scan]) -> list[Request]:
    """Every example of the evaluation splits once, task by task.

    The minibatches are those of the ranks that trained; others would give results that are rounded otherwise.
    """
    splits = {name: scans[name].split(task.eval_split) for name, task in config.tasks.items()}
    size = config.train.known_workers
    requests = [r for rank in range(size) for r in split_requests(config, splits, rank, size)]
    order = list(config.tasks)
    return sorted(requests, key=lambda request: order.index(request.task))


def _row(config: RunConfig, name: str, result: dict[str, Any], scan: Scan) -> dict[str, Any]:
    task = config.tasks[name]
    examples = scan.split(task.eval_split)
    present = label_shares(examples, task.num_classes)
    # Training counts the classes to guess from in its own split; where that is not at hand, in this one.
    known = label_shares(scan.split("train") or examples, task.num_classes)
    return {
        "modality": task.modality,
        "eval_split": task.eval_split,
        **result,
        "chance": chance_of(task, result, present, int((known > 0).sum())),
    }
