"""What `predict --explain` draws: heat lies over the patch that has the weight; what cannot be drawn is said."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyvit.config import AudioInput, ImageInput, InputSection, VideoInput
from polyvit.errors import UserError
from polyvit.reports import check_explainable, draw_explanation

IMAGE = ImageInput(size=(16, 16), patch_size=(8, 8))
VIDEO = VideoInput(frames=4, size=(16, 16), tubelet_size=(2, 8, 8))
AUDIO = AudioInput(frames=32, mel_bins=16, patch_size=(16, 8))


def heat(spec: InputSection, modality: str, patch: int, path: Path) -> np.ndarray:
    """Brightness [H, W] of the lower half, the heat over a black example whose whole weight is one patch's."""
    weights = np.zeros(spec.num_tokens)
    weights[patch] = 1.0
    draw_explanation(np.zeros((spec.num_tokens, spec.patch_dim), np.uint8), weights, spec, modality, "a: b", path)
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(float)
    pixels = pixels[len(pixels) // 2 :]
    coloured = np.abs(pixels[..., 0] - pixels[..., 2]) > 10  # the page and its words are grey
    return np.where(coloured, pixels[..., 1], 0)


def brightest(grey: np.ndarray) -> tuple[float, float]:
    """(row, column) of the centre of what is bright, as shares of the sides."""
    rows, columns = np.nonzero(grey > 0.8 * grey.max())
    return float(rows.mean()) / grey.shape[0], float(columns.mean()) / grey.shape[1]


def test_pictures(tmp_path: Path) -> None:
    row, column = brightest(heat(IMAGE, "image", 1, tmp_path / "a.png"))  # above, right
    assert row < 0.5 < column
    row, column = brightest(heat(IMAGE, "image", 2, tmp_path / "b.png"))  # below, left
    assert column < 0.5 < row


def test_clips_are_a_row_of_frames(tmp_path: Path) -> None:
    grey = heat(VIDEO, "video", 4, tmp_path / "a.png")  # the second pair of four frames, above, left
    _, column = brightest(grey)
    assert 0.5 < column < 0.9


def test_spectrograms_have_time_to_the_right_and_low_frequencies_below(tmp_path: Path) -> None:
    row, column = brightest(heat(AUDIO, "audio", 2, tmp_path / "a.png"))  # late, low
    assert min(row, column) > 0.5
    row, column = brightest(heat(AUDIO, "audio", 1, tmp_path / "b.png"))  # early, high
    assert max(row, column) < 0.5


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(UserError, match=r"patches of model\.audio overlap"):
        check_explainable(AudioInput(frames=32, mel_bins=16, patch_size=(16, 8), stride=(8, 8)), "audio")
    with pytest.raises(UserError, match="not over inputs of sensor"):
        check_explainable(IMAGE, "sensor")
    check_explainable(VIDEO, "video")
