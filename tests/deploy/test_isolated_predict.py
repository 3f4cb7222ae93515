"""The decoding process: the same tokens, and no file that takes this process down with it."""

import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from use_kit import media, trained

from polyvit.data.isolation.worker import Child
from polyvit.deploy.isolated_predict import DecoderDied, IsolatedDecoder, Limits, OverLimit
from polyvit.deploy.predict import prepare
from polyvit.errors import BadMedia


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in media(tmp_path_factory.mktemp("media")).items()}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IsolatedDecoder]:
    _, _, config = trained(tmp_path_factory.mktemp("model"), "tasks.word.eval_clips=2")
    process = IsolatedDecoder(config, Limits(pixels=2000, seconds=5.0, decode_seconds=60.0))
    yield process
    process.close()


def test_tokens_are_those_of_this_process(decoder: IsolatedDecoder, files: dict[str, bytes]) -> None:
    for name in ("image", "clip", "song", "sound"):
        here, there = prepare(files[name], decoder.config), decoder.prepare(files[name])
        assert here.modality == there.modality
        assert [group.tasks for group in here.groups] == [group.tasks for group in there.groups]
        for one, other in zip(here.groups, there.groups, strict=True):
            assert one.arrays["tokens"].dtype == other.arrays["tokens"].dtype
            assert np.array_equal(one.arrays["tokens"], other.arrays["tokens"])
    assert decoder.prepare(files["clip"], ["word"]).modality == "audio"


def test_reasons_come_through(decoder: IsolatedDecoder, files: dict[str, bytes]) -> None:
    for data, reason in [
        (files["page"], "not a known picture"),
        (b"", "is empty"),
        (files["photo"][:200], "image: "),
    ]:
        with pytest.raises(BadMedia, match=reason) as caught:
            decoder.prepare(data)
        assert type(caught.value) is BadMedia


def test_limits_are_judged_by_the_header(decoder: IsolatedDecoder, files: dict[str, bytes]) -> None:
    for side, reason in [(50, "50 x 50 pixels; at most 2000"), (30000, "900000000 pixels. exceeds")]:
        bomb = io.BytesIO()
        Image.new("1", (side, side)).save(bomb, "PNG")  # the second: 900 million pixels in 110 kB
        with pytest.raises(OverLimit, match=reason):
            decoder.prepare(bomb.getvalue())
    long = io.BytesIO()
    soundfile.write(long, np.zeros(16000 * 6), 16000, format="FLAC")
    with pytest.raises(OverLimit, match=r"6\.0 s long; at most 5 s"):
        decoder.prepare(long.getvalue())


def test_a_crash_and_a_hang_end_the_child_only(decoder: IsolatedDecoder, files: dict[str, bytes]) -> None:
    decoder.prepare(files["image"])
    before = decoder.deaths
    os.kill(decoder.pid, signal.SIGSEGV)
    with pytest.raises(DecoderDied, match=r"the decoder died on it .SIGSEGV"):
        decoder.prepare(files["image"])
    assert decoder.prepare(files["image"]).modality == "image"
    os.kill(decoder.pid, signal.SIGSTOP)
    patient, decoder.limits = decoder.limits, Limits(pixels=2000, seconds=5.0, decode_seconds=0.5)
    with pytest.raises(DecoderDied, match=r"longer than 0\.5 s"):
        decoder.prepare(files["image"])
    decoder.limits = patient
    assert decoder.prepare(files["image"]).modality == "image"
    assert decoder.deaths == before + 2


def test_a_child_that_dies_while_it_starts_is_started_again() -> None:
    child = Child("polyvit.no_such_module", {})
    try:
        for deaths in (1, 2):
            before = child.pid
            with pytest.raises(RuntimeError, match=r"did not start: .*, 1$"):
                child.wait_ready()
            assert (child.deaths, child.pid != before) == (deaths, True)
    finally:
        child.close()


def test_too_little_memory_is_an_answer(tmp_path: Path) -> None:
    _, _, config = trained(tmp_path)
    decoder = IsolatedDecoder(config, Limits(memory=60 * 2**20))
    try:
        large = io.BytesIO()
        Image.effect_noise((6000, 6000), 60).save(large, "JPEG", quality=20)
        with pytest.raises(DecoderDied):
            decoder.prepare(large.getvalue())
        small = io.BytesIO()
        Image.new("RGB", (20, 20)).save(small, "PNG")
        assert decoder.prepare(small.getvalue()).modality == "image"
    finally:
        decoder.close()
