"""Contact sheets are written, show something, and each view once."""

import io
from pathlib import Path

import numpy as np
import soundfile
from kit import task
from PIL import Image

from polyvit.config import AudioInput, ImageInput, VideoInput
from polyvit.data import sheets
from polyvit.data.augment import example_rng
from polyvit.data.example import example_tokens
from polyvit.data.synthetic_media import encode_mp4

RNG = np.random.Generator(np.random.Philox(3))


def drawn(path: Path) -> np.ndarray:
    """The PNG's pixels, after a check that it is no blank."""
    pixels_HWC = np.asarray(Image.open(path).convert("RGB"))
    assert len(np.unique(pixels_HWC.reshape(-1, 3), axis=0)) > 50
    assert pixels_HWC.std() > 20
    return pixels_HWC


def samples(*media: sheets.Media) -> list[sheets.Sample]:
    return [sheets.Sample(f"class {i}", f"key{i}", each) for i, each in enumerate(media)]


def test_image_sheet_is_upright_in_its_colours(tmp_path: Path) -> None:
    red_over_blue_HWC = np.zeros((40, 40, 3), np.uint8)
    red_over_blue_HWC[:20, :, 0] = np.linspace(150, 255, 40)
    red_over_blue_HWC[20:, :, 2] = np.linspace(150, 255, 40)
    path = tmp_path / "image.png"
    sheets.image_sheet("t", samples(red_over_blue_HWC), task("imagefolder"), ImageInput(size=(16, 16)), path, 1)
    pixels_HWC = drawn(path).astype(int)
    red = np.argwhere((pixels_HWC[..., 0] > 120) & (pixels_HWC[..., 2] < 30))
    blue = np.argwhere((pixels_HWC[..., 2] > 120) & (pixels_HWC[..., 0] < 30))
    assert len(red) > 1000
    assert len(blue) > 1000
    assert red[:, 0].mean() < blue[:, 0].mean()


def test_clip_sheet(tmp_path: Path) -> None:
    clip_THWC = RNG.integers(0, 256, (12, 4, 6, 3), dtype=np.uint8).repeat(16, axis=1).repeat(16, axis=2)
    path = tmp_path / "clip.png"
    spec = VideoInput(frames=4, size=(32, 32), tubelet_size=(2, 8, 8))
    sheets.clip_sheet(
        "t", samples(encode_mp4(clip_THWC, 10, None, 16000)), task("kinetics", modality="video"), spec, path, 1
    )
    assert drawn(path).shape[1] > 1000


def test_spectrogram_sheet_has_low_frequencies_at_the_bottom(tmp_path: Path) -> None:
    sound = io.BytesIO()
    soundfile.write(sound, np.sin(2 * np.pi * 200 * np.arange(16000) / 16000), 16000, format="WAV")
    path = tmp_path / "sound.png"
    spec = AudioInput(frames=64, mel_bins=32)
    plain = {"freq_mask_count": 0}
    listed = samples(sound.getvalue())
    sheets.spectrogram_sheet("t", listed, task("audioset", modality="audio", augment=plain), spec, path, 1)
    pixels_HWC = drawn(path).astype(int)
    tone = np.argwhere((pixels_HWC[..., 0] > 240) & (pixels_HWC[..., 2] < 200) & (pixels_HWC[..., 1] > 150))
    dark = np.argwhere(pixels_HWC.sum(axis=2) < 100)
    assert len(tone) > 100
    assert tone[:, 0].mean() > dark[:, 0].mean() + 20


def test_views_are_the_evaluation_and_the_epochs_that_training_draws() -> None:
    image_HWC = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    made, whole = task("imagefolder"), ImageInput(size=(16, 16), patch_size=(16, 16))
    [views] = sheets._views("t", samples(image_HWC), made, whole, (16, 16, 3), 5)
    assert len(views) == 1 + sheets.VIEWS
    assert np.array_equal(views[0].reshape(1, -1), example_tokens(image_HWC, made, whole, None))
    rng = example_rng(5, "t", 1, "key0")
    assert np.array_equal(views[2].reshape(1, -1), example_tokens(image_HWC, made, whole, rng))
    assert len({view.tobytes() for view in views}) == len(views)


def test_command(tmp_path: Path, capsys) -> None:
    for name in ("one", "two"):
        (tmp_path / "data" / "pictures" / name).mkdir(parents=True)
        for i in range(4):
            pixels_HWC = RNG.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels_HWC).save(tmp_path / "data" / "pictures" / name / f"{i}.png")
    config = tmp_path / "c.yaml"
    config.write_text(
        "model: {image: {size: 16, patch_size: 8}}\n"
        "tasks: {pictures: {modality: image, layout: imagefolder, num_classes: 2, steps: 1, batch: 1}}\n"
    )
    assert sheets.main([str(config), str(tmp_path / "out"), f"data.root={tmp_path / 'data'}"]) == 0
    drawn(tmp_path / "out" / "pictures.png")
    assert capsys.readouterr().out.split() == [str(tmp_path / "out" / "pictures.png")]


def test_command_without_data_says_what_to_give(tmp_path: Path, capsys) -> None:
    assert sheets.main(["tiny-nine", str(tmp_path), f"data.root={tmp_path}", "--only", "pets"]) == 2
    assert "no data for pets; give data.root=DIR, or tasks.pets.root=DIR" in capsys.readouterr().err
