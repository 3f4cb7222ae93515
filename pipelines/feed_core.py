"""The `ray_core` backend of the feed: requests -> minibatches through plain Ray tasks, in order, some way ahead.

A minibatch of many bytes is decoded in parts, at once by several processes: the first one is there soon, and what
the decoding processes hold stays small. Tasks, not actors: a task takes its CPU for as long as it decodes, so that
an idle feed holds none, two feeds of one worker (training and an evaluation) or many workers share what there is
and cannot lock each other out, and a node that joins is used at once. Ray keeps the processes from task to task.
"""

from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    WorkerCrashedError,
)

from pipelines.cluster import living_nodes
from polyvit.config import RunConfig
from polyvit.data.minibatch import Decoder, Minibatch, Request
from polyvit.data.parts import cut, decode_part, join, number_of_parts

ATTEMPTS = 10
"""Processes that a part may lose (killed, their node lost, out of memory) before the feed fails; from the second
on it is decoded in a sandbox."""
_LOST = (WorkerCrashedError, OutOfMemoryError, NodeDiedError, LocalRayletDiedError, ObjectLostError)


@dataclass
class _Part:
    request: Request
    minibatch: Any  # ObjectRef[Minibatch]
    attempt: int = 0


def ray_core_minibatches(
    requests: Iterable[Request], decoder: Decoder, config: RunConfig, world_size: int = 1
) -> Generator[Minibatch, None, None]:
    """The minibatch of each request, in their order; arrays are views of the object store, read-only.

    At least `feed.prefetch` minibatches, and two parts for each of this worker's decoding processes, are under way
    or ready at any time. Raises what a decoding process raises.
    """
    data, decoders = config.data, decoders_of_a_worker(config, world_size)
    task = ray.remote(decode_part).options(
        num_cpus=data.decode_cpus,
        label_selector=dict(data.decode_labels) or None,
        max_retries=0,
        scheduling_strategy="DEFAULT",  # else it waits for room in the placement group of a sweep's trial
    )
    shared = ray.put(decoder)
    waiting: deque[list[_Part]] = deque()
    try:
        for request in requests:
            parts = cut(request, number_of_parts(request, decoder, decoders))
            waiting.append([_Part(part, task.remote(shared, part, False)) for part in parts])
            while len(waiting) > config.feed.prefetch and sum(map(len, waiting)) > 2 * decoders:
                yield join([_received(part, task, shared) for part in waiting.popleft()])
        while waiting:
            yield join([_received(part, task, shared) for part in waiting.popleft()])
    finally:
        for part in (part for parts in waiting for part in parts):
            ray.cancel(part.minibatch)


def _received(part: _Part, task: Any, shared: Any) -> Minibatch:
    """The part; given to another process for as long as processes die over it."""
    while True:
        try:
            return ray.get(part.minibatch)
        except _LOST:
            part.attempt += 1
            if part.attempt == ATTEMPTS:
                raise
            part.minibatch = task.remote(shared, part.request, True)


def decoders_of_a_worker(config: RunConfig, world_size: int) -> int:
    """`feed.decoders`; else a train worker's share of the decoding processes that the cluster has room for."""
    if config.feed.decoders:
        return config.feed.decoders
    data, train = config.data, config.train
    nodes = [node for node in living_nodes() if node.carries(data.decode_labels)]
    cpus = sum(node.resources.get("CPU", 0) for node in nodes)
    if any(node.carries(train.worker_labels) for node in nodes):
        cpus -= world_size * train.cpus_per_worker
    return max(1, int(cpus / data.decode_cpus / world_size))
