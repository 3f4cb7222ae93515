"""Contact sheets are written, show something, and show the very numbers that the model gets."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from arrays_kit import example_tokens
from kit import task
from PIL import Image

from polyvit.config import AudioInput, ImageInput, InputSection, TaskConfig, VideoInput
from polyvit.data.loading.example import Media
from polyvit.data.transforms.augment import example_rng
from polyvit.data.transforms.patchify import patchify_image
from polyvit.errors import BadMedia
from polyvit.reports.inspect import contact_sheet
from polyvit.reports.inspect.display import display_of
from polyvit.synthetic.media import encode_mp4

RNG = np.random.Generator(np.random.Philox(3))


def drawn(path: Path, config: TaskConfig, spec: InputSection, *media: Media) -> np.ndarray:
    """The PNG's pixels, after a check that it is no blank."""
    samples = [contact_sheet.Sample(f"class {i}", f"key{i}", each) for i, each in enumerate(media)]
    assert (
        "as the model sees them" in contact_sheet.draw_sheet("t", samples, config, spec, path, 1)
        or config.modality == "audio"
    )
    pixels_HWC = np.asarray(Image.open(path).convert("RGB"))
    assert len(np.unique(pixels_HWC.reshape(-1, 3), axis=0)) > 50
    assert pixels_HWC.std() > 20
    return pixels_HWC.astype(int)


def test_an_image_sheet_is_upright_in_its_colours(tmp_path: Path) -> None:
    red_over_blue_HWC = np.zeros((40, 40, 3), np.uint8)
    red_over_blue_HWC[:20, :, 0] = np.linspace(150, 255, 40)
    red_over_blue_HWC[20:, :, 2] = np.linspace(150, 255, 40)
    pixels_HWC = drawn(tmp_path / "i.png", task("imagefolder"), ImageInput(size=(16, 16)), red_over_blue_HWC)
    red = np.argwhere((pixels_HWC[..., 0] > 120) & (pixels_HWC[..., 2] < 30))
    blue = np.argwhere((pixels_HWC[..., 2] > 120) & (pixels_HWC[..., 0] < 30))
    assert len(red) > 1000
    assert len(blue) > 1000
    assert red[:, 0].mean() < blue[:, 0].mean()


def test_a_clip_sheet(tmp_path: Path) -> None:
    clip_THWC = RNG.integers(0, 256, (12, 4, 6, 3), dtype=np.uint8).repeat(16, axis=1).repeat(16, axis=2)
    spec = VideoInput(frames=4, size=(32, 32), tubelet_size=(2, 8, 8))
    clip = encode_mp4(clip_THWC, 10, None, 16000)
    pixels_HWC = drawn(tmp_path / "c.png", task("kinetics", modality="video"), spec, clip, clip)
    assert pixels_HWC.shape[1] > 1000
    # Two rows of pictures, white between.
    coloured = (pixels_HWC.max(axis=2) - pixels_HWC.min(axis=2) > 60).sum(axis=1) > 200
    assert np.count_nonzero(np.diff(coloured.astype(int)) == 1) == 2


def test_a_spectrogram_has_low_frequencies_at_the_bottom(tmp_path: Path) -> None:
    sound = io.BytesIO()
    soundfile.write(sound, np.sin(2 * np.pi * 200 * np.arange(16000) / 16000), 16000, format="WAV")
    config = task("audioset", modality="audio", augment={"freq_mask_count": 0})
    pixels_HWC = drawn(tmp_path / "s.png", config, AudioInput(frames=64, mel_bins=32), sound.getvalue())
    tone = np.argwhere((pixels_HWC[..., 0] > 240) & (pixels_HWC[..., 2] < 200) & (pixels_HWC[..., 1] > 150))
    dark = np.argwhere((pixels_HWC.sum(axis=2) < 100) & (np.arange(pixels_HWC.shape[0])[:, None] > 70))
    assert len(tone) > 100
    assert tone[:, 0].mean() > dark[:, 0].mean() + 20


def test_views_are_the_tokens_of_evaluation_and_of_the_epochs_of_training() -> None:
    image_HWC = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    config, spec = task("imagefolder"), ImageInput(size=(16, 24), patch_size=(8, 8))
    views = contact_sheet.model_views("t", contact_sheet.Sample("a", "key", image_HWC), config, spec, 5)
    assert [view.shape for view in views] == [(16, 24, 3)] * (1 + display_of(spec).TRAINING_VIEWS)
    assert np.array_equal(patchify_image(views[0], (8, 8)), example_tokens(image_HWC, config, spec, None))
    rng = example_rng(5, "t", 1, "key")
    assert np.array_equal(patchify_image(views[2], (8, 8)), example_tokens(image_HWC, config, spec, rng))
    assert len({view.tobytes() for view in views}) == len(views)


def test_overlapping_patches_show_the_same_picture() -> None:
    image_HWC = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    config, sample = task("imagefolder"), contact_sheet.Sample("a", "key", image_HWC)
    plain = contact_sheet.model_views("t", sample, config, ImageInput(size=(16, 16), patch_size=(8, 8)), 5)
    overlapping = ImageInput(size=(16, 16), patch_size=(8, 8), stride=(4, 4))
    for here, there in zip(plain, contact_sheet.model_views("t", sample, config, overlapping, 5), strict=True):
        assert np.array_equal(here, there)


def test_what_cannot_be_decoded_is_left_out(tmp_path: Path) -> None:
    image_HWC = RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    config, spec = task("imagefolder"), ImageInput(size=(16, 16))
    both = drawn(tmp_path / "both.png", config, spec, image_HWC, b"no picture")
    alone = drawn(tmp_path / "alone.png", config, spec, image_HWC)
    assert np.array_equal(both, alone)
    with pytest.raises(BadMedia, match="none of the examples can be decoded"):
        contact_sheet.draw_sheet(
            "t", [contact_sheet.Sample("a", "k", b"no picture")], config, spec, tmp_path / "none.png", 1
        )
