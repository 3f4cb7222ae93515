"""What one decoding process is given at a time: some small minibatches, or a part of a huge one.

Put together again, parts have the bytes of whole minibatches. That is a copy of every byte, so minibatches are cut
only at the beginning, when all processes work for the first one, and where they are far too large for a process.

What a decoding process runs is here, and not beside what sends it there, as each process imports this module:
without Ray's libraries it is there a second or two earlier.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from polyvit.data.loading.example import concatenated, example_bytes
from polyvit.data.loading.minibatch import Decoder, Minibatch, Request

CHUNK_BYTES = 8 * 2**20
"""Bytes of minibatches that are put together: some 40 recordings; tens of milliseconds, where a task costs two."""
CHUNK_MINIBATCHES = 8
"""Minibatches in one chunk: tiny pictures cost more time than their bytes say."""
FIRST_BYTES = 2**20
"""Of the parts of the first minibatches: a few pictures."""
PART_BYTES = 128 * 2**20
"""Of the parts of any other one."""


@dataclass(frozen=True)
class DecodeChunk:
    """What one process decodes in one go: `requests`, or one part of a request that was cut in `of` parts."""

    requests: tuple[Request, ...]
    of: int = 1

    @property
    def minibatches(self) -> float:
        """How many minibatches it comes to."""
        return len(self.requests) / self.of


def decode_chunk(decoder: Decoder, chunk: DecodeChunk, careful: bool) -> list[Minibatch]:
    """What a decoding process does: the minibatch of each request of the chunk."""
    return [decoder.decode(request, careful=careful) for request in chunk.requests]


def chunk_requests(
    requests: Iterable[Request],
    decoder: Decoder,
    decoders: int,
    chunk_bytes: int = CHUNK_BYTES,
    chunk_minibatches: int = CHUNK_MINIBATCHES,
) -> Iterator[DecodeChunk]:
    """The work in its order, for `decoders` processes.

    The first is cut among them and few are put together at the beginning: the first minibatch is not kept waiting.
    """
    together: list[Request] = []
    held, chunks_given = 0, 0
    for request in requests:
        size = _array_bytes(request, decoder)
        first = chunks_given + bool(together) < decoders
        parts = number_of_parts(request, size, decoders, FIRST_BYTES if first else PART_BYTES)
        most = min(chunk_minibatches, 2 ** min(chunks_given // decoders, 10))
        if together and (parts > 1 or held + size > chunk_bytes or len(together) >= most):
            yield DecodeChunk(tuple(together))
            together, held, chunks_given = [], 0, chunks_given + 1
        if parts > 1:
            yield from (DecodeChunk((part,), parts) for part in cut(request, parts))
            chunks_given += parts
        else:
            together.append(request)
            held += size
    if together:
        yield DecodeChunk(tuple(together))


def whole_minibatches(decoded: Iterable[tuple[DecodeChunk, Sequence[Minibatch]]]) -> Iterator[Minibatch]:
    """The minibatches of what `chunk_requests` gave, in its order: parts of a request are joined."""
    parts: list[Minibatch] = []
    for chunk, minibatches in decoded:
        if chunk.of == 1:
            yield from minibatches
            continue
        parts += minibatches
        if len(parts) == chunk.of:
            yield join(parts)
            parts = []


def number_of_parts(request: Request, size: int, decoders: int, part_bytes: int) -> int:
    """As many as there are processes to decode them, none much smaller than `part_bytes`.

    size: bytes of the request's arrays.
    """
    return max(1, min(decoders, len(request.examples), size // part_bytes))


def _array_bytes(request: Request, decoder: Decoder) -> int:
    task = decoder.tasks[request.task]
    views = 1 if request.epochs else task.eval_views
    return len(request.examples) * views * example_bytes(decoder.inputs[request.task])


def cut(request: Request, number: int) -> list[Request]:
    """Requests for parts of a minibatch: what `join` makes of them has the bytes of the whole."""
    bounds = [len(request.examples) * i // number for i in range(number + 1)]
    return [
        replace(
            request,
            examples=request.examples[a:b],
            epochs=request.epochs[a:b],
            first_slot=request.first_slot + a,
        )
        for a, b in pairwise(bounds)
    ]


def join(parts: Sequence[Minibatch]) -> Minibatch:
    """One minibatch of the parts of one."""
    return replace(
        parts[0],
        inputs=concatenated([part.inputs for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        keys=tuple(key for part in parts for key in part.keys),
        bad=tuple(entry for part in parts for entry in part.bad),
        undecodable=sum(part.undecodable for part in parts),
    )
