"""Whether the cluster can hold a job, and what Ray Train is told to reserve for it.

In: a config and the nodes that live. Out: bundles of resources, Ray Train's scaling config, a user's mistakes.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.train

from pipelines.runtime.workers import with_workers
from polyvit.config import RunConfig
from polyvit.errors import UserError

_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_GIVEN_START_TIMEOUT = os.environ.get(_START_TIMEOUT)


@dataclass(frozen=True)
class Node:
    """A living node: its labels, and all the resources that Ray was told it has."""

    labels: Mapping[str, str]
    resources: Mapping[str, float]

    def carries(self, selector: Mapping[str, str]) -> bool:
        """Whether its labels satisfy a Ray label selector: values x, !x, in(x, y) or !in(x, y).

        As Ray does, a node without the key satisfies a negated value.
        """
        return all(_matches(self.labels.get(key), wanted) for key, wanted in selector.items())

    def holds(self, bundle: Mapping[str, float]) -> int:
        """How many of these bundles it has room for."""
        return min(int((self.resources.get(key, 0) + 1e-6) // need) for key, need in bundle.items() if need)


def _matches(value: str | None, wanted: str) -> bool:
    negated, operand = wanted.startswith("!"), wanted.removeprefix("!")
    if operand.startswith("in(") and operand.endswith(")"):
        allowed = {item.strip() for item in operand[3:-1].split(",")}
    else:
        allowed = {operand}
    return (value in allowed) != negated


def living_nodes() -> list[Node]:
    """The cluster's nodes, as Ray's head knows them."""
    return [Node(node["Labels"] or {}, node["Resources"]) for node in ray.nodes() if node["Alive"]]


def use_gpu(config: RunConfig) -> bool:
    """Whether train workers get GPUs: as `train.use_gpu` says, else where the nodes for training have any."""
    return config.train.use_gpu if config.train.use_gpu is not None else workers_on_gpus(config) > 0


def workers_on_gpus(config: RunConfig) -> int:
    """How many train workers the GPUs of the nodes for training hold."""
    train = config.train
    nodes = [node for node in living_nodes() if node.carries(train.worker_node_labels)]
    return sum(node.holds({"GPU": train.gpus_per_worker}) for node in nodes)


def resolved_workers(config: RunConfig) -> RunConfig:
    """The config with a number for `train.workers`: null is one for each GPU of the cluster, one without any.

    Raises UserError where the config cannot be trained by as many.
    """
    train = config.train
    if train.workers is not None:
        return config
    gpus = 0 if train.use_gpu is False else workers_on_gpus(config)
    return with_workers(config, max(1, gpus, train.min_workers or 1))


def worker_bundle(config: RunConfig, gpu: bool) -> dict[str, float]:
    """What Ray reserves for one train worker."""
    bundle = {"CPU": config.train.cpus_per_worker}
    return {**bundle, "GPU": config.train.gpus_per_worker} if gpu else bundle


def one_worker(config: RunConfig) -> RunConfig:
    """The config with one worker, for a job that runs the model in one process."""
    return config.with_train(workers=1, min_workers=None)


def scaling(config: RunConfig, gpu: bool) -> ray.train.ScalingConfig:
    """The train workers as Ray Train wants them: a fixed number, or elastic between two.

    Also sets how long Ray waits for room for all workers before it counts again how many fit. Ray notices a lost
    node up to 20 s late, so an elastic run first tries in vain to start as many workers as it had.
    """
    train = config.train
    os.environ[_START_TIMEOUT] = _GIVEN_START_TIMEOUT or ("300" if train.min_workers is None else "25")
    most = train.known_workers
    number = most if train.min_workers is None else (train.min_workers, most)
    return ray.train.ScalingConfig(  # type: ignore[call-arg]
        num_workers=number,  # type: ignore[arg-type]
        use_gpu=gpu,
        resources_per_worker=worker_bundle(config, gpu),
        label_selector=dict(train.worker_node_labels) or None,
        elastic_resize_monitor_interval_s=train.resize_check_s,
    )


def on_this_node() -> dict[str, Any]:
    """Ray options that keep a small actor on the driver's node, so that it survives the loss of other nodes."""
    return {"label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()}}


def check_resources(config: RunConfig) -> None:
    """Raises UserError where the cluster can never hold the workers and one decoding task.

    A job that cannot be placed would wait for ever otherwise.
    """
    if problems := placement_problems(config, living_nodes(), use_gpu(config)):
        fewest = config.train.min_workers or config.train.known_workers
        name = "workers" if config.train.min_workers is None else "min_workers"
        raise UserError(
            f"the Ray cluster is too small for train.{name}={fewest} and one decoding task of "
            f"data.decode_cpus={config.data.decode_cpus:g}; lower them, add nodes, or change the labels",
            problems,
        )


def placement_problems(config: RunConfig, nodes: Sequence[Node], gpu: bool) -> list[str]:
    """Why these nodes cannot hold the run's workers and one decoding task, wherever Ray puts the workers."""
    train, data = config.train, config.data
    bundle, fewest = worker_bundle(config, gpu), train.min_workers or train.known_workers
    problems = []
    for key, selector in (
        ("train.worker_node_labels", train.worker_node_labels),
        ("data.decode_node_labels", data.decode_node_labels),
    ):
        if not any(node.carries(selector) for node in nodes):
            problems.append(f"{key}={_shown(selector)}: no node carries it; {_labels_of(nodes)}")
    if problems:
        return problems
    trainers = [node for node in nodes if node.carries(train.worker_node_labels)]
    decoders = [node for node in nodes if node.carries(data.decode_node_labels)]
    where = (
        f" with train.worker_node_labels={_shown(train.worker_node_labels)}" if train.worker_node_labels else ""
    )
    shared = data.decode_cpus if not train.worker_node_labels and not data.decode_node_labels else 0.0
    for name, each in bundle.items():
        need = fewest * each + (shared if name == "CPU" else 0)
        have = sum(node.resources.get(name, 0) for node in trainers)
        if have < need:
            otherwise = "; or set train.use_gpu=false to train on CPUs" if name == "GPU" else ""
            problems.append(f"{name}: needs {need:g}, the cluster has {have:g}{where}{otherwise}")
    if problems:
        return problems
    room = sum(node.holds(bundle) for node in trainers)
    if room < fewest:
        problems.append(
            f"train workers of {_shown(bundle)} each: nodes{where} have room for {room}, {fewest} are needed"
        )
    elif all(node.resources.get("CPU", 0) < data.decode_cpus for node in decoders):
        problems.append(f"data.decode_cpus={data.decode_cpus:g}: no node that may decode has as many CPUs")
    elif not _can_decode(decoders, trainers, bundle, min(train.known_workers, room), data.decode_cpus):
        problems.append(
            f"data.decode_cpus={data.decode_cpus:g}: the train workers may fill every node"
            + (
                f" with data.decode_node_labels={_shown(data.decode_node_labels)}"
                if data.decode_node_labels
                else ""
            )
            + "; keep train.worker_node_labels and data.decode_node_labels on different nodes, or lower "
            "train.workers"
        )
    if train.min_workers is not None and train.worker_node_labels:
        others = sum(node.holds(bundle) for node in nodes if not node.carries(train.worker_node_labels))
        if others:
            problems.append(
                f"train.min_workers with train.worker_node_labels: Ray's elastic scaling counts nodes of any "
                "label,"
                f" and others have room for {others} workers, for which it would wait; leave one of the keys out"
            )
    return problems


def _can_decode(
    decoders: Sequence[Node], trainers: Sequence[Node], bundle: Mapping[str, float], workers: int, cpus: float
) -> bool:
    """Whether one decoding task of `cpus` fits beside the workers wherever Ray puts them."""
    blockers = 0
    for node in decoders:
        free = node.resources.get("CPU", 0)
        most = node.holds(bundle) if node in trainers else 0
        if free < cpus:
            continue
        needed = next((k for k in range(most + 1) if free - k * bundle["CPU"] < cpus - 1e-6), None)
        if needed is None:
            return True
        blockers += needed
    return blockers > workers


def _shown(mapping: Mapping[str, object]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in mapping.items()) + "}"


def _labels_of(nodes: Sequence[Node]) -> str:
    """The labels that tell nodes apart, with how many nodes carry each."""
    counts = Counter(
        f"{key}: {value}" for node in nodes for key, value in node.labels.items() if key != "ray.io/node-id"
    )
    labels = ", ".join(f"{label} ({count})" for label, count in sorted(counts.items()))
    return f"the {len(nodes)} nodes carry {labels or 'none but their ids'}"
