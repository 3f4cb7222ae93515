"""The `ray_data` backend of the feed: requests -> minibatches through Ray Data, in segments of a thousand.

One chunk (`data/loading/chunks.py`) is one row and one block, and their order is kept. The next segment starts
before the current one ends, so that no step waits for it.
"""

import math
import pickle
import re
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import pyarrow as pa
import ray
import ray.data

from pipelines.runtime import tried_before
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

ROW_BYTES, ROW_MINIBATCHES = 128 * 2**20, 16
"""Most bytes and minibatches that are put together in a row: tenths of a second to decode, where Ray Data's
executor takes a hundredth."""
LEAD = 32
"""Minibatches before the end of a segment at which the next one starts."""
STORE_SHARE = 0.5
"""Of the object store that all feeds together may fill with what is decoded ahead."""
IN_BAND = 2**12
"""Arrays of fewer bytes are pickled with the rest, such as labels."""


def decode_row(batch: pa.Table, decoder: Decoder) -> pa.Table:
    """Row in: a pickled `DecodeChunk`. Rows out: its minibatches, pickled in the first row's `head`, and their
    arrays, one in each row's `array`.

    Arrays are neither copied nor joined here: Ray Data would copy tokens whose shapes differ between blocks into
    arrays of objects.
    """
    minibatches = decode_chunk(decoder, pickle.loads(batch["chunk"][0].as_py()), careful=tried_before())
    arrays: list[pa.Array] = []

    def take_out(buffer: pickle.PickleBuffer) -> bool:
        small = buffer.raw().nbytes < IN_BAND
        if not small:
            arrays.append(_as_binary(buffer.raw()))
        return small

    head = pickle.dumps(minibatches, protocol=5, buffer_callback=take_out)
    arrays = arrays or [_as_binary(b"")]
    heads = pa.array([head, *(b"" for _ in arrays[1:])], pa.binary())
    return pa.table({"head": heads, "array": pa.chunked_array(arrays)})


def _as_binary(data: memoryview | bytes) -> pa.Array:
    """One value of bytes, not copied."""
    ends = pa.py_buffer(np.array([0, len(data)], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(data)])


def to_minibatches(table: pa.Table) -> list[Minibatch]:
    """The minibatches that `decode_row` packed; their arrays are read-only views of the object store."""
    arrays = [value.as_buffer() for chunk in table["array"].chunks for value in chunk]
    return pickle.loads(table["head"][0].as_py(), buffers=arrays)


def decode_dataset(
    chunks: Sequence[DecodeChunk], decoder: Decoder, config: RunConfig, decoders: int
) -> "ray.data.Dataset":
    """A dataset with one block for each chunk, in their order, by one task more than `decoders` processes.

    Ray Data hands out work every 0.1 s only (ray#42377): the task more has work when another one ends. Together
    they hold the CPUs of `decoders`, so workers, evaluations and trials leave each other theirs.
    """
    rows = [{"chunk": pickle.dumps(chunk)} for chunk in chunks]

    def decode(batch: pa.Table, decoder: Decoder) -> pa.Table:
        return decode_row(batch, decoder)

    decode.__name__ = name = name_of(chunks)  # what the dashboard and the statistics show
    cpus = config.data.decode_cpus * decoders / (decoders + 1)
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        decode,  # type: ignore[arg-type]
        batch_size=None,
        batch_format="pyarrow",
        fn_args=(decoder,),
        num_cpus=math.floor(cpus * 1000) / 1000,
        compute=ray.data.TaskPoolStrategy(size=min(decoders + 1, len(rows))),
        label_selector=dict(config.data.decode_node_labels) or None,
    )
    dataset.set_name(re.sub(r"\W+", "_", name))
    with warnings.catch_warnings():  # deprecated, and in Ray 2.60 nothing takes its place
        warnings.simplefilter("ignore")
        dataset.context.scheduling_strategy = "DEFAULT"  # near the train worker where there is room, not spread
    dataset.context.execution_options.preserve_order = True
    dataset.context.execution_options.resource_limits = _limits(config, decoders)
    dataset.context.execution_no_progress_timeout_s = -1
    dataset.context.enable_progress_bars = False
    dataset.context.max_errored_blocks = 0  # a lost block would shift the ranks apart
    dataset.context.target_max_block_size = None  # a chunk is a block, whatever its size
    return dataset


def name_of(chunks: Sequence[DecodeChunk]) -> str:
    """The task, or how many there are, and what is done: decoding, and augmentation in training."""
    requests = [request for chunk in chunks for request in chunk.requests]
    tasks = {request.task for request in requests}
    what = "decode+augment" if requests[0].epochs else "decode"
    return f"{min(tasks) if len(tasks) == 1 else f'{len(tasks)} tasks'}: {what}"


def _limits(config: RunConfig, decoders: int) -> ray.data.ExecutionResources:
    """The CPUs of so many decoding processes, and their share of the object store."""
    cluster, cpus = ray.cluster_resources(), decoders * config.data.decode_cpus
    share = min(1.0, cpus / cluster.get("CPU", cpus))
    return ray.data.ExecutionResources(
        cpu=cpus, object_store_memory=STORE_SHARE * share * cluster.get("object_store_memory", math.inf)
    )


def ray_data_minibatches(
    requests: Iterable[Request], decoder: Decoder, config: RunConfig, decoders: int,
    report: Callable[[str], None] = lambda statistics: None,
) -> Generator[Minibatch, None, None]:  # fmt: skip
    """The minibatch of each request, in their order, by `decoders` processes.

    report: called with Ray Data's statistics of each segment that came to its end.
    """
    remaining, length = iter(requests), config.feed.segment_steps

    def segment() -> PrefetchIterator[Minibatch]:
        return PrefetchIterator(
            _minibatches(islice(remaining, length), decoder, config, decoders, report), config.feed.prefetch
        )

    current, following = segment(), None
    try:
        while True:
            count = 0
            for count, minibatch in enumerate(current, start=1):
                if count == length - min(length // 4, LEAD):
                    following = segment()
                yield minibatch
            if following is None:
                return
            current, following = following, None
    finally:
        current.close()
        if following is not None:
            following.close()


def _minibatches(
    requests: Iterable[Request], decoder: Decoder, config: RunConfig, decoders: int,
    report: Callable[[str], None],
) -> Iterator[Minibatch]:  # fmt: skip
    if chunks := list(chunk_requests(requests, decoder, decoders, ROW_BYTES, ROW_MINIBATCHES)):
        dataset = decode_dataset(chunks, decoder, config, decoders)
        blocks = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        yield from whole_minibatches(zip(chunks, map(to_minibatches, blocks), strict=True))
        report(dataset.stats())
