"""What one decoding process is given at a time: some small minibatches, or a part of a large one.

Both come to some 8 MB of tokens, tens to hundreds of milliseconds of decoding, where a task of Ray's costs one or
two and a block of Ray Data's twenty. Put together again they have the bytes of whole minibatches.

What a decoding process runs is here, and not beside what sends it there, as each process imports this module:
without Ray's libraries it is there a second or two earlier.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from polyvit.data.loading.example import token_dtype, token_shape
from polyvit.data.loading.minibatch import Decoder, Minibatch, Request

PIECE_BYTES = 8 * 2**20
"""Tokens of a piece: some 20 images of 384 x 384, 2 clips or 40 recordings."""
PIECE_MINIBATCHES = 8
"""Minibatches in one piece: tiny pictures cost more time than their bytes say."""


@dataclass(frozen=True)
class Piece:
    """What one process decodes in one go: `requests`, or one part of a request that was cut in `of` parts."""

    requests: tuple[Request, ...]
    of: int = 1

    @property
    def minibatches(self) -> float:
        """How many minibatches it comes to."""
        return len(self.requests) / self.of


def decode_piece(decoder: Decoder, piece: Piece, careful: bool) -> list[Minibatch]:
    """What a decoding process does: the minibatch of each request of the piece."""
    return [decoder.decode(request, careful=careful) for request in piece.requests]


def pieces(
    requests: Iterable[Request],
    decoder: Decoder,
    decoders: int,
    piece_bytes: int = PIECE_BYTES,
    piece_minibatches: int = PIECE_MINIBATCHES,
) -> Iterator[Piece]:
    """The work in its order. Large requests are cut, so that `decoders` processes share them.

    Small ones are put together, few at the beginning: the first minibatch is not kept waiting for others.
    """
    together: list[Request] = []
    held, made = 0, 0
    for request in requests:
        size, number = _token_bytes(request, decoder), number_of_parts(request, decoder, decoders)
        most = min(piece_minibatches, 2 ** min(made // decoders, 10))
        if together and (number > 1 or held + size > piece_bytes or len(together) >= most):
            yield Piece(tuple(together))
            together, held, made = [], 0, made + 1
        if number > 1:
            yield from (Piece((part,), number) for part in cut(request, number))
            made += number
        else:
            together.append(request)
            held += size
    if together:
        yield Piece(tuple(together))


def whole(decoded: Iterable[tuple[Piece, Sequence[Minibatch]]]) -> Iterator[Minibatch]:
    """The minibatches of what `pieces` gave, in its order: parts of a request are joined."""
    parts: list[Minibatch] = []
    for piece, minibatches in decoded:
        if piece.of == 1:
            yield from minibatches
            continue
        parts += minibatches
        if len(parts) == piece.of:
            yield join(parts)
            parts = []


def number_of_parts(request: Request, decoder: Decoder, decoders: int) -> int:
    """As many as there are processes to decode them, none much smaller than PIECE_BYTES."""
    return max(1, min(decoders, len(request.examples), _token_bytes(request, decoder) // PIECE_BYTES))


def _token_bytes(request: Request, decoder: Decoder) -> int:
    task = decoder.tasks[request.task]
    views = 1 if request.epochs else task.eval_views
    example = math.prod(token_shape(decoder.inputs[request.task])) * token_dtype(task.modality).itemsize
    return len(request.examples) * views * example


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
        tokens=np.concatenate([part.tokens for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        keys=tuple(key for part in parts for key in part.keys),
        bad=tuple(entry for part in parts for entry in part.bad),
        undecodable=sum(part.undecodable for part in parts),
    )
