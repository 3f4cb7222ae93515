"""A large minibatch in parts, which several processes decode at once; together they have the bytes of the whole.

What a decoding process runs is here, and not beside what sends it there, as each process imports this module:
without Ray's libraries it is there a second or two earlier.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from polyvit.data.example import token_dtype, token_shape
from polyvit.data.minibatch import Decoder, Minibatch, Request

PART_BYTES = 8 * 2**20
"""Tokens of a part: some 20 images of 384 x 384, 2 clips or 40 recordings; tens of milliseconds of decoding or
more, where a task costs one or two."""


def decode_part(decoder: Decoder, request: Request, careful: bool) -> Minibatch:
    """What a decoding process does."""
    return decoder.decode(request, careful=careful)


def number_of_parts(request: Request, decoder: Decoder, decoders: int) -> int:
    """As many as there are processes to decode them, none much smaller than PART_BYTES."""
    task = decoder.tasks[request.task]
    views = 1 if request.epochs else task.eval_views
    example = math.prod(token_shape(decoder.inputs[request.task])) * token_dtype(task.modality).itemsize
    whole = len(request.examples) * views * example
    return max(1, min(decoders, len(request.examples), whole // PART_BYTES))


def cut(request: Request, number: int) -> list[Request]:
    """Requests for parts of a minibatch: what `join` makes of them has the bytes of the whole."""
    if number == 1:
        return [request]
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
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        tokens=np.concatenate([part.tokens for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        keys=tuple(key for part in parts for key in part.keys),
        bad=tuple(entry for part in parts for entry in part.bad),
        undecodable=sum(part.undecodable for part in parts),
    )
