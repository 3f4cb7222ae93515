"""Videos with sound in `polyvit inspect`: what is known of them, the sheet, what does not suit the model."""

import io
from typing import Any

import numpy as np
import pytest
from kit import task
from PIL import Image

from polyvit.config import SequenceInput
from polyvit.errors import BadMedia
from polyvit.reports.inspect.contact_sheet import Sample, draw_sheet, model_views
from polyvit.reports.inspect.displays import audiovisual
from polyvit.reports.inspect.examine import examine
from polyvit.synthetic import encode_sound, encode_video, song

SPEC = SequenceInput(clips=3, frames=4, size=(16, 16), mel_bins=12, spectrogram_frames=16, sample_rate=8000)
CLIP, WAVE = song(np.random.default_rng(1), 2, (32, 48), 8, 4.0, 8000)
VIDEO, SILENT = encode_video(CLIP, 8, WAVE, 8000), encode_video(CLIP, 8, 0 * WAVE, 8000)
AUGMENT = {"spacing": "contiguous", "clip_seconds": 1}


def av(**keys: Any) -> Any:
    return task("kinetics", 3, "audiovisual", augment=AUGMENT, **keys)


def test_both_streams_are_examined() -> None:
    info = examine(VIDEO, av(), SPEC)
    assert (info.width, info.height, info.fps, info.sample_rate, info.form) == (48, 32, 8.0, 8000, "h264")
    assert info.seconds == pytest.approx(4.0, abs=0.2)
    assert not info.silent
    assert not info.flat
    assert not info.still
    assert examine(SILENT, av(), SPEC).silent
    assert examine(VIDEO, av(), SPEC, 1.0, 3.0).seconds == pytest.approx(2.0)
    assert examine(encode_video(CLIP, 8, None, 8000), av(), SPEC).reason == "audio: no sound track"


def test_a_recording_is_examined_where_only_sound_is_read() -> None:
    info = examine(encode_sound(WAVE, 8000, "WAV"), av(streams="audio"), SPEC)
    assert (info.width, info.sample_rate, info.channels, info.reason) == (None, 8000, 1, "")
    assert info.seconds == pytest.approx(4.0)


def test_a_view_has_the_spectrogram_of_the_same_seconds_under_each_frame() -> None:
    views = model_views("t", Sample("a", "a", VIDEO), av(), SPEC, 0)
    assert len(views) == 1 + audiovisual.TRAINING_VIEWS
    cell, gap = audiovisual.CELL, audiovisual.GAP
    for view in views:
        assert view.dtype == np.uint8
        assert view.shape == (2 * cell + gap, 3 * cell + 2 * gap, 3)
        assert (view[cell : cell + gap] == 255).all()
    top, bottom = views[0][:cell], views[0][cell + gap :]
    assert np.ptp(top) > 40
    assert np.ptp(bottom) > 100


def test_the_sheet_is_a_picture(tmp_path: Any) -> None:
    target = io.BytesIO()
    says = draw_sheet("t", [Sample("a", "a", VIDEO), Sample("b", "b", b"broken")], av(), SPEC, target, 0)
    assert says.startswith("t: 3 clips of 1 s (contiguous)")
    assert min(Image.open(target).size) > 150
    sound = encode_sound(WAVE, 8000, "WAV")
    draw_sheet("t", [Sample("a", "a", sound)], av(streams="audio"), SPEC, io.BytesIO(), 0)
    with pytest.raises(BadMedia, match="none of the examples"):
        draw_sheet("t", [Sample("b", "b", b"broken")], av(), SPEC, io.BytesIO(), 0)
