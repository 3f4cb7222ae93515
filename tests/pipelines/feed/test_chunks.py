"""What one decoding process is given at a time; no Ray."""

from dataclasses import replace
from pathlib import Path

import pytest
from pipelines_kit import pair_config, planned, scanned, signature

from pipelines.feed.worker_feed import make_decoder
from pipelines.index import Indexes
from polyvit.config import RunConfig
from polyvit.data.loading import chunks
from polyvit.data.loading.minibatch import Request
from polyvit.data.loading.requests import Requests


@pytest.fixture(scope="module")
def config(pair_root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return pair_config(pair_root, tmp_path_factory.mktemp("chunks"), "schedule.steps=9", "tasks.sounds.steps=20")


@pytest.fixture(scope="module")
def indexes(config: RunConfig) -> Indexes:
    return scanned(config)


def test_parts_of_a_request_make_the_whole(config: RunConfig, indexes: Indexes) -> None:
    decoder = make_decoder(config, indexes)
    (request,) = Requests.of(config, planned(config, indexes), indexes.scans, 0, 1).at(1)
    assert request.task == "shapes"
    whole = decoder.decode(request)
    for number in (1, 3, 8):
        cut = chunks.cut(request, number)
        assert [len(part.examples) for part in cut] == {1: [8], 3: [2, 3, 3], 8: [1] * 8}[number]
        # A broken example of a part takes the spare of its slot in the whole minibatch.
        assert [part.first_slot for part in cut] == {1: [0], 3: [0, 2, 5], 8: [*range(8)]}[number]
        joined = chunks.join([decoder.decode(part) for part in cut])
        assert signature([joined]) == signature([whole])
        assert replace(joined, inputs={"tokens": whole.inputs["tokens"]}, labels=whole.labels) == whole


def test_large_minibatches_are_cut_among_the_decoders(config: RunConfig, indexes: Indexes) -> None:
    """A picture of 768 bytes of tokens, 8 a minibatch."""
    (request,) = Requests.of(config, planned(config, indexes), indexes.scans, 0, 1).at(1)
    assert chunks.number_of_parts(request, 6144, 16, 2**20) == 1
    assert [chunks.number_of_parts(request, 48 * 2**20, n, 8 * 2**20) for n in (1, 4, 16)] == [1, 4, 6]
    assert chunks.number_of_parts(request, 2**40, 16, 2**20) == 8  # no part without an example


def test_the_first_minibatch_is_cut_and_small_ones_are_put_together(config: RunConfig, indexes: Indexes) -> None:
    decoder, plan = make_decoder(config, indexes), planned(config, indexes)
    (small,) = Requests.of(config, plan, indexes.scans, 0, 1).at(1)  # 6 kB of tokens
    large = replace(small, examples=small.examples * 8192, epochs=small.epochs * 8192)  # 48 MB
    huge = replace(small, examples=small.examples * 65536, epochs=small.epochs * 65536)  # 384 MB

    def sizes(requests: list[Request], decoders: int, *limits: int) -> list[tuple[int, int]]:
        return [
            (len(piece.requests), piece.of)
            for piece in chunks.chunk_requests(requests, decoder, decoders, *limits)
        ]

    assert sizes([small] * 22, 1) == [(1, 1), (2, 1), (4, 1), (8, 1), (7, 1)]
    assert sizes([small] * 5, 2) == [(1, 1), (1, 1), (2, 1), (1, 1)]
    assert sizes([small] * 22, 1, 3 * 6144) == [(1, 1), (2, 1), *[(3, 1)] * 6, (1, 1)]
    assert sizes([large] * 3, 4) == [*[(1, 4)] * 4, (1, 1), (1, 1)]
    assert sizes([small, small, large, small, small], 2) == [(1, 1), (1, 1), (1, 1), (2, 1)]
    assert sizes([small, huge], 1) == [(1, 1), (1, 1)]
    assert sizes([small, small, small, huge], 4) == [(1, 1), (1, 1), (1, 1), *[(1, 4)] * 4]
    assert sizes([*[small] * 3, huge], 2) == [(1, 1), (1, 1), (1, 1), *[(1, 2)] * 2]
    assert sizes([], 2) == []
    mixed = [replace(huge if i % 3 == 1 else small, step=i) for i in range(12)]
    steps = [r.step for piece in chunks.chunk_requests(mixed, decoder, 3) for r in piece.requests]
    assert steps == sorted(step for step in range(12) for _ in range(3 if step % 3 == 1 else 1))
