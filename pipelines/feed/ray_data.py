"""The `ray_data` backend of the feed: requests -> minibatches through Ray Data, in segments of a thousand.

One chunk (`data/loading/chunks.py`) is one row and one block, and their order is kept. The next segment starts
before the current one ends, so that no step waits for it.
"""

import pickle
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import ray
import ray.data
from ray.data.block import Block, BlockAccessor

from polyvit.config import RunConfig
from polyvit.data.loading import (
    DecodeChunk,
    Decoder,
    Minibatch,
    PrefetchIterator,
    Request,
    chunk_requests,
    decode_chunk,
    whole_minibatches,
)

ROW_BYTES, ROW_MINIBATCHES = 256 * 2**20, 32
"""Most bytes and minibatches of a row. Ray Data starts tasks every 0.1 s only, so rows that take less than a
second to decode would leave CPUs idle."""
ALIGNED = 64
"""Arrays in a row begin at multiples of this many bytes."""


def decode_row(batch: dict[str, np.ndarray], decoder: Decoder) -> dict[str, np.ndarray]:
    """Row in: a pickled `DecodeChunk`. Row out: its minibatches, pickled, with their arrays apart as uint8 [1,
    B].

    Ray Data would copy tokens whose shapes differ between blocks into arrays of objects; bytes are not copied.
    """
    minibatches = decode_chunk(decoder, pickle.loads(batch["chunk"][0]), careful=tried_before())
    arrays: list[np.ndarray] = []

    def take_out(buffer: pickle.PickleBuffer) -> None:
        array = np.frombuffer(buffer.raw(), np.uint8)
        arrays.append(np.pad(array, (0, -len(array) % ALIGNED)) if len(array) % ALIGNED else array)
        lengths.append(len(array))

    lengths: list[int] = []
    head = pickle.dumps(minibatches, protocol=5, buffer_callback=take_out)
    return {
        "bytes": np.concatenate(arrays)[None],
        "head": np.array([pickle.dumps((lengths, head))], dtype=object),
    }


def to_minibatches(block: Block) -> list[Minibatch]:
    """The minibatches that `decode_row` packed; their arrays are read-only views of the object store."""
    row = BlockAccessor.for_block(block).to_numpy()
    (data,), (lengths, head) = row["bytes"], pickle.loads(row["head"][0])
    starts = np.cumsum([0, *(length + -length % ALIGNED for length in lengths)])
    views = [data[start : start + length] for start, length in zip(starts, lengths, strict=False)]
    return pickle.loads(head, buffers=views)


def decode_dataset(chunks: Sequence[DecodeChunk], decoder: Decoder, config: RunConfig) -> "ray.data.Dataset":
    """A dataset with one row and one block for each chunk, in their order."""
    rows = [{"chunk": pickle.dumps(chunk)} for chunk in chunks]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        decode_row,  # type: ignore[arg-type]
        batch_size=1,
        batch_format="numpy",
        fn_args=(decoder,),
        num_cpus=config.data.decode_cpus,
        label_selector=dict(config.data.decode_node_labels) or None,
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.execution_no_progress_timeout_s = -1
    dataset.context.enable_progress_bars = False
    dataset.context.max_errored_blocks = 0  # a lost block would shift the ranks apart
    return dataset


def tried_before() -> bool:
    """Whether Ray runs this task again because the process that ran it before died or was lost."""
    worker = ray._private.worker.global_worker
    return worker.core_worker.get_current_task_attempt_number() > 0  # type: ignore[attr-defined]


def ray_data_minibatches(
    requests: Iterable[Request], decoder: Decoder, config: RunConfig
) -> Generator[Minibatch, None, None]:
    """The minibatch of each request, in their order."""
    remaining, length = iter(requests), config.feed.segment_steps

    def segment() -> PrefetchIterator[Minibatch]:
        return PrefetchIterator(_minibatches(islice(remaining, length), decoder, config), config.feed.prefetch)

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
    # For one decoder nothing is cut: a row may be as long as the longest minibatch.
    if chunks := list(chunk_requests(requests, decoder, 1, ROW_BYTES, ROW_MINIBATCHES)):
        bundles = decode_dataset(chunks, decoder, config).iter_internal_ref_bundles()
        references = (reference for bundle in bundles for reference in bundle.block_refs)
        yield from whole_minibatches(zip(chunks, map(to_minibatches, map(ray.get, references)), strict=True))
