"""A config that wants a package which this machine does not have gets one message before anything starts."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.cli import main
from pipelines.training import RunDir, resumed_config
from polyvit.config import load_config, validate_config
from polyvit.data.decode.video import read_clip
from polyvit.errors import UserError
from polyvit.synthetic.media import encode_mp4

WITH_DECORD = "tasks.kinetics400.augment.reader=decord"


@pytest.fixture
def no_decord(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an ARM machine: decord is neither found nor importable."""
    find_spec = importlib.util.find_spec

    def without_decord(name: str, package: str | None = None) -> Any:
        return None if name == "decord" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_decord)
    monkeypatch.setitem(sys.modules, "decord", None)


@pytest.mark.usefixtures("no_decord")
def test_decord_where_it_is_not_installed_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    load_config("tiny-nine")
    with pytest.raises(UserError, match="decord is not installed here") as error:
        load_config("tiny-nine", [WITH_DECORD])
    assert error.value.problems == (WITH_DECORD,)
    assert main(["plan", "tiny-nine", WITH_DECORD]) == 2
    message = capsys.readouterr().err
    assert message.count("decord is not installed here") == 1
    assert "pyav" in message


@pytest.mark.usefixtures("no_decord")
def test_a_run_that_began_elsewhere_is_refused_when_it_is_resumed_here(tmp_path: Path) -> None:
    document = load_config("tiny-nine").model_dump(mode="json")
    document["tasks"]["kinetics400"]["augment"]["reader"] = "decord"
    place = RunDir(tmp_path)
    place.write("config.json", document)
    with pytest.raises(UserError, match="decord is not installed here"):
        resumed_config(place, [])
    validate_config(document)  # as a checkpoint's config is read, to predict: allowed


@pytest.mark.usefixtures("no_decord")
def test_a_model_that_was_trained_with_decord_reads_the_same_frames_without_it() -> None:
    clip_THWC = np.random.default_rng(0).integers(0, 256, (12, 32, 48, 3), dtype=np.uint8)
    data = encode_mp4(clip_THWC, 25, None, 16_000)
    assert np.array_equal(read_clip(data, 4, 2, reader="decord"), read_clip(data, 4, 2, reader="pyav"))
