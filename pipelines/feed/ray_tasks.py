"""The `ray_core` backend of the feed: requests -> minibatches through plain Ray tasks, in order, decoded ahead of
use.

Tasks and not actors: a task holds its CPU only while it decodes. So an idle feed holds none; two feeds of one
worker (training and an evaluation), or many workers, share the CPUs and cannot block each other; and a node that
joins is used at once. Ray keeps the processes from one task to the next.

When a feed is closed, what its tasks decode at that moment is wasted, some seconds of work. Ray could cancel
them, but by a KeyboardInterrupt: a process that gets it during an import can never import that module again.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    WorkerCrashedError,
)

from pipelines.feed.ray_data import name_of
from polyvit.config import RunConfig
from polyvit.data.loading import (
    DecodeChunk,
    Decoder,
    Minibatch,
    Request,
    chunk_requests,
    decode_chunk,
    whole_minibatches,
)

ATTEMPTS = 10
"""How often a chunk is tried before the feed fails, where its process is killed, its node is lost or memory runs
out. From the second try on it is decoded in a sandbox."""
_LOST = (WorkerCrashedError, OutOfMemoryError, NodeDiedError, LocalRayletDiedError, ObjectLostError)


def ray_core_minibatches(
    requests: Iterable[Request], decoder: Decoder, config: RunConfig, decoders: int
) -> Generator[Minibatch, None, None]:
    """The minibatch of each request, in their order; their arrays are read-only views of the object store.

    At least `feed.prefetch` minibatches, and two chunks for each of `decoders` processes, are being decoded or are
    ready at any time. Raises what a decoding process raises.
    """
    data, shared = config.data, ray.put(decoder)
    task = ray.remote(  # type: ignore[call-overload]
        num_cpus=data.decode_cpus,
        label_selector=dict(data.decode_node_labels) or None,
        max_retries=0,
        scheduling_strategy="DEFAULT",  # else it would wait for room in the placement group of a sweep's trial
    )(decode_chunk)
    waiting: deque[tuple[DecodeChunk, Any]] = deque()  # with an ObjectRef[list[Minibatch]]

    def received() -> Iterator[tuple[DecodeChunk, list[Minibatch]]]:
        for chunk in chunk_requests(requests, decoder, decoders):
            waiting.append((chunk, task.options(name=name_of([chunk])).remote(shared, chunk, False)))
            while len(waiting) > 2 * decoders and sum(p.minibatches for p, _ in waiting) > config.feed.prefetch:
                yield _first_of(waiting, task, shared)
        while waiting:
            yield _first_of(waiting, task, shared)

    yield from whole_minibatches(received())


def _first_of(
    waiting: deque[tuple[DecodeChunk, Any]], task: Any, shared: Any
) -> tuple[DecodeChunk, list[Minibatch]]:
    """The first chunk and its minibatches. Where its process dies, the chunk is given to another one."""
    for attempt in range(1, ATTEMPTS + 1):
        chunk, reference = waiting[0]
        try:
            decoded = ray.get(reference)
        except _LOST:
            if attempt == ATTEMPTS:
                raise
            again = task.options(name=f"{name_of([chunk])}, again")
            waiting[0] = (chunk, again.remote(shared, chunk, True))
        else:
            waiting.popleft()
            return chunk, decoded
    raise AssertionError("unreachable")
