"""The `ray_data` backend of the feed: requests -> minibatches through Ray Data, in segments of a few hundred.

One row = one request in, one minibatch out = one block, order preserved. The execution of the next segment starts
before the current one ends, so no step waits for it.
"""

import pickle
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import ray.data

from polyvit.config import RunConfig
from polyvit.data.minibatch import Decoder, Minibatch, Request
from polyvit.read_ahead import ReadAhead


def decode_row(batch: dict[str, np.ndarray], decoder: Decoder) -> dict[str, np.ndarray]:
    """One row in (a pickled `Request`), one row out: tokens [1, n, N, P], labels [1, n, K], the rest pickled."""
    minibatch = decoder.decode(pickle.loads(batch["request"][0]), careful=tried_before())
    rest = pickle.dumps(
        (
            minibatch.step,
            minibatch.task,
            minibatch.keys,
            minibatch.first_slot,
            minibatch.global_batch,
            minibatch.bad,
            minibatch.undecodable,
        )
    )
    return {
        "tokens": minibatch.tokens[None],
        "labels": minibatch.labels[None],
        "rest": np.array([rest], dtype=object),
    }


def decoded(
    requests: Sequence[Request], decoder: Decoder, num_cpus: float, labels: Mapping[str, str] | None = None
) -> "ray.data.Dataset":
    """A dataset of one row and one block a request, in the order given; decoded on nodes with these labels."""
    rows = [{"request": pickle.dumps(request)} for request in requests]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        decode_row,  # type: ignore[arg-type]
        batch_size=1,
        batch_format="numpy",
        fn_args=(decoder,),
        num_cpus=num_cpus,
        label_selector=dict(labels) if labels else None,
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.execution_no_progress_timeout_s = -1
    dataset.context.enable_progress_bars = False
    dataset.context.max_errored_blocks = 0  # a lost block would shift the ranks apart
    return dataset


def to_minibatch(row: dict[str, Any]) -> Minibatch:
    """A delivered row back to a `Minibatch`; arrays are views of the object store, read-only."""
    step, task, *rest = pickle.loads(row["rest"][0])
    return Minibatch(step, task, row["tokens"][0], row["labels"][0], *rest)


def tried_before() -> bool:
    """Whether Ray runs this task (or actor method) again, because the process that ran it died or was lost."""
    worker = ray._private.worker.global_worker
    return worker.core_worker.get_current_task_attempt_number() > 0  # type: ignore[attr-defined]


def ray_data_minibatches(
    requests: Iterable[Request], decoder: Decoder, config: RunConfig
) -> Generator[Minibatch, None, None]:
    """The minibatch of each request, in their order."""
    remaining, length = iter(requests), config.feed.segment_steps

    def segment() -> ReadAhead[Minibatch]:
        return ReadAhead(_rows(islice(remaining, length), decoder, config), config.feed.prefetch)

    current, following = segment(), None
    try:
        while True:
            count = 0
            for count, minibatch in enumerate(current, start=1):
                if count == length - length // 4:
                    following = segment()
                yield minibatch
            if following is None:
                return
            current, following = following, None
    finally:
        current.close()
        if following is not None:
            following.close()


def _rows(requests: Iterable[Request], decoder: Decoder, config: RunConfig) -> Iterator[Minibatch]:
    if listed := list(requests):
        data = config.data
        rows = decoded(listed, decoder, data.decode_cpus, data.decode_labels).iter_batches(
            batch_size=None, batch_format="numpy", prefetch_batches=1
        )
        yield from map(to_minibatch, rows)
