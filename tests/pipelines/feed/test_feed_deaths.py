"""Files that kill the feed's decoding processes, through a real Ray: every other byte is as planned."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hostile_kit import CRASH, HANG, FragileDecoder
from pipelines_kit import pair_config, planned, scanned

from pipelines.feed.worker_feed import RayFeed, make_decoder
from polyvit.data.loading.minibatch import Decoder
from polyvit.data.loading.requests import InlineFeed
from polyvit.synthetic.write import write_example_pair

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.mark.parametrize("backend", [pytest.param("ray_core", marks=pytest.mark.slow), "ray_data"])
def test_a_crash_and_a_hang_cost_their_own_example_only(tmp_path: Path, backend: str) -> None:
    root = tmp_path / "data"
    write_example_pair(root)
    config = pair_config(
        root, tmp_path, "schedule.steps=6", "feed.segment_steps=6", "data.decode_timeout_s=5",
        "data.max_bad_fraction=1", f"feed.backend={backend}",
    )  # fmt: skip
    indexes = scanned(config)
    feed = RayFeed(config, planned(config, indexes), indexes, 0, 1)
    assert feed.decoder.decode_timeout_s == 5
    requests = [request for step in range(1, 7) for request in feed.requests.at(step)]
    met = [e.path for request in requests if request.task == "shapes" for e in request.examples]
    crash, hang = [path for path in met if met.count(path) == 1][:2]
    fatal = {crash: CRASH, hang: HANG}
    for path, content in fatal.items():
        (root / "shapes" / path).write_bytes(content)
    plain = make_decoder(config, indexes)
    feed.decoder = FragileDecoder(*(getattr(plain, name) for name in Decoder.__dataclass_fields__))
    expected = list(InlineFeed(feed.requests, plain).train(1))  # to it the two files are merely broken
    made = list(feed.train(1))
    assert [m.step for (m,) in made] == list(range(1, 7))
    reasons = {q.path: q.reason for (m,) in made for q in m.bad}
    assert reasons == {
        crash: "the decoder died on it (SIGSEGV)", hang: "decoding took longer than 5 s"
    }  # fmt: skip
    for (one,), (other,) in zip(made, expected, strict=True):
        assert np.array_equal(one.inputs["tokens"], other.inputs["tokens"])
        assert np.array_equal(one.labels, other.labels)
        assert [q.path for q in one.bad] == [q.path for q in other.bad]
        assert replace(one, inputs={"tokens": 0}, labels=0, bad=()) == replace(
            other, inputs={"tokens": 0}, labels=0, bad=()
        )
    assert sum(m.undecodable for (m,) in made) == 2
    # What was learnt travels with later requests, to which the files are dead already.
    keys = {q.path: q.key for (m,) in made for q in m.bad}
    assert feed.requests.fatal == {"shapes": {keys[path]: reason for path, reason in reasons.items()}}
    again = [feed.decoder.decode(request) for step in range(1, 7) for request in feed.requests.at(step)]
    assert [(m.keys, m.bad) for m in again] == [(m.keys, m.bad) for (m,) in made]
