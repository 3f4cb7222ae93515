"""The `ray_data` backend of the feed: requests -> minibatches through Ray Data, in segments of a thousand.

One row = one block = one piece (`data/loading/chunks.py`), order preserved. The execution of the next segment
starts before the current one ends, so no step waits for it.
"""

import pickle
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import ray
import ray.data
from ray.data.block import Block, BlockAccessor

from polyvit.config import RunConfig
from polyvit.data.loading import Decoder, Minibatch, Piece, ReadAhead, Request, decode_piece, pieces, whole

ROW_BYTES, ROW_MINIBATCHES = 256 * 2**20, 32
"""Most of a row. Ray Data looks for ended tasks and starts others every 0.1 s: rows of less than a second of
decoding leave CPUs idle."""
ALIGNED = 64
"""Bytes: where an array begins in a row."""


def decode_row(batch: dict[str, np.ndarray], decoder: Decoder) -> dict[str, np.ndarray]:
    """One row in (a pickled `Piece`), one row out: its minibatches, pickled, their arrays apart as bytes [1, B].

    Ray Data would copy tokens of other shapes in each block into arrays of objects; a run of bytes stays in place.
    """
    made = decode_piece(decoder, pickle.loads(batch["piece"][0]), careful=tried_before())
    arrays: list[np.ndarray] = []

    def apart(buffer: pickle.PickleBuffer) -> None:
        array = np.frombuffer(buffer.raw(), np.uint8)
        arrays.append(np.pad(array, (0, -len(array) % ALIGNED)) if len(array) % ALIGNED else array)
        lengths.append(len(array))

    lengths: list[int] = []
    head = pickle.dumps(made, protocol=5, buffer_callback=apart)
    return {
        "bytes": np.concatenate(arrays)[None],
        "head": np.array([pickle.dumps((lengths, head))], dtype=object),
    }


def to_minibatches(block: Block) -> list[Minibatch]:
    """What `decode_row` packed; arrays are views of the object store, read-only."""
    row = BlockAccessor.for_block(block).to_numpy()
    (data,), (lengths, head) = row["bytes"], pickle.loads(row["head"][0])
    starts = np.cumsum([0, *(length + -length % ALIGNED for length in lengths)])
    views = [data[start : start + length] for start, length in zip(starts, lengths, strict=False)]
    return pickle.loads(head, buffers=views)


def decoded(listed: Sequence[Piece], decoder: Decoder, config: RunConfig) -> "ray.data.Dataset":
    """A dataset of one row and one block a piece, in the order given."""
    rows = [{"piece": pickle.dumps(piece)} for piece in listed]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        decode_row,  # type: ignore[arg-type]
        batch_size=1,
        batch_format="numpy",
        fn_args=(decoder,),
        num_cpus=config.data.decode_cpus,
        label_selector=dict(config.data.decode_labels) or None,
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.execution_no_progress_timeout_s = -1
    dataset.context.enable_progress_bars = False
    dataset.context.max_errored_blocks = 0  # a lost block would shift the ranks apart
    return dataset


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
        return ReadAhead(_minibatches(islice(remaining, length), decoder, config), config.feed.prefetch)

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


def _minibatches(requests: Iterable[Request], decoder: Decoder, config: RunConfig) -> Iterator[Minibatch]:
    # One decoder: nothing is cut, for rows may be as long as the longest minibatch.
    if listed := list(pieces(requests, decoder, 1, ROW_BYTES, ROW_MINIBATCHES)):
        bundles = decoded(listed, decoder, config).iter_internal_ref_bundles()
        references = (reference for bundle in bundles for reference in bundle.block_refs)
        yield from whole(zip(listed, map(to_minibatches, map(ray.get, references)), strict=True))
