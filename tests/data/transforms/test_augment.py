"""Augmentation: exact values of the small maths, ranges of the random ones."""

import colorsys

import numpy as np
import pytest

from polyvit.config import AudioAugment
from polyvit.data.transforms.augment import (
    ColourJitter,
    centre_cut,
    draw_colour_jitter,
    drop_colours,
    example_rng,
    inception_box,
    jitter_colours,
    jittered_box,
    spec_augment,
    window_indices,
    window_start,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_the_example_generator_is_a_function_of_its_four_fields() -> None:
    first = example_rng(1, "pets", 2, "a.jpg").integers(0, 2**63, 4)
    assert (first == example_rng(1, "pets", 2, "a.jpg").integers(0, 2**63, 4)).all()
    others = [(2, "pets", 2, "a.jpg"), (1, "pet", 2, "a.jpg"), (1, "pets", 3, "a.jpg"), (1, "pets", 2, "b.jpg")]
    assert all((first != example_rng(*fields).integers(0, 2**63, 4)).any() for fields in others)
    # Golden: a change here changes every augmented pixel of every run.
    assert example_rng(0, "imagenet", 0, "x").integers(0, 1000, 4).tolist() == [128, 269, 398, 202]
    assert example_rng(7, "pets", 3, "a").integers(0, 1000, 4).tolist() == [247, 940, 158, 292]


def test_windows_follow_the_reference(rng: np.random.Generator) -> None:
    assert window_start(100, 32, 2) == 18
    assert window_start(50, 32, 2) == 0
    assert [window_start(100, 32, 2, view=(i, 4)) for i in range(4)] == [0, 12, 24, 36]
    starts = {window_start(40, 4, 10, rng) for _ in range(400)}
    assert starts == set(range(10))
    assert window_start(5, 32, 2, rng) == 0
    assert window_indices(3, 5, 2, 0).tolist() == [0, 2, 1, 0, 2]
    with pytest.raises(ValueError, match="from 0 to 3"):
        window_start(100, 4, 1, view=(4, 4))


@pytest.mark.parametrize(("height", "width"), [(200, 300), (31, 17), (1, 1), (6, 700), (600, 5)])
def test_inception_boxes_keep_their_area_ratio_and_place(
    height: int, width: int, rng: np.random.Generator
) -> None:
    boxes = [inception_box(height, width, (0.05, 1.0), (0.75, 4 / 3), rng) for _ in range(500)]
    for top, left, crop_h, crop_w in boxes:
        assert 0 <= top <= height - crop_h
        assert 0 <= left <= width - crop_w
        share = crop_h * crop_w / (height * width)
        assert 0.05 <= share <= 1
        if share < 1:
            assert abs(crop_w - crop_h * np.clip(crop_w / crop_h, 0.75, 4 / 3)) <= 1
    if height == 200:
        shares = [h * w / 60_000 for _, _, h, w in boxes]
        assert min(shares) < 0.1
        assert max(shares) > 0.6


def test_an_impossible_crop_is_the_whole_picture(rng: np.random.Generator) -> None:
    assert inception_box(6, 700, (0.9, 1.0), (0.75, 4 / 3), rng) == (0, 0, 6, 700)


def test_jittered_boxes_lie_inside_and_have_the_scaled_size(rng: np.random.Generator) -> None:
    for _ in range(300):
        scale = (rng.uniform(0.9, 1.33), rng.uniform(0.9, 1.33))
        top, left, crop_h, crop_w = jittered_box(256, 340, (224, 224), scale, rng)
        assert 0 <= top <= 256 - crop_h
        assert 0 <= left <= 340 - crop_w
        assert abs(crop_h - 224 / scale[0]) <= 2
        assert abs(crop_w - 224 / scale[1]) <= 2
    assert jittered_box(1, 3, (64, 64), (64.0, 64.0), rng).height == 1


def test_centre_cut_bounds_the_longer_side_and_keeps_the_centre() -> None:
    image_HWC = np.arange(700, dtype=np.float32)[None, :, None].repeat(6, 0).repeat(3, 2)
    cut_HWC = centre_cut(image_HWC, 4)
    assert cut_HWC.shape == (6, 24, 3)
    assert cut_HWC.mean() == image_HWC.mean()
    assert centre_cut(image_HWC[:, :20], 4).shape == (6, 20, 3)


def test_colour_jitter_equals_the_reference_arithmetic(rng: np.random.Generator) -> None:
    video_THWC = rng.integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
    for jitter in [draw_colour_jitter(rng) for _ in range(5)]:
        found = jitter_colours(video_THWC, jitter)
        expected = np.stack([_reference_jitter(frame_HWC / 255, jitter) for frame_HWC in video_THWC])
        # Half a level of rounding, and float32 HSV.
        assert np.abs(found - expected * 255).max() < 0.52


def _reference_jitter(frame_HWC: np.ndarray, jitter: ColourJitter) -> np.ndarray:
    """tf.image's adjust_brightness, _saturation, _contrast, _hue with colorsys, one pixel at a time."""
    frame_HWC = np.maximum(frame_HWC + jitter.brightness / 255, 0)
    out = np.empty_like(frame_HWC)
    for at in np.ndindex(frame_HWC.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*frame_HWC[at])
        out[at] = colorsys.hsv_to_rgb(h, min(1, s * jitter.saturation), v)
    mean_C = out.mean((0, 1))
    out = np.maximum((out - mean_C) * jitter.contrast + mean_C, 0)
    for at in np.ndindex(out.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*out[at])
        out[at] = colorsys.hsv_to_rgb((h + jitter.hue) % 1, s, v)
    return np.clip(out, 0, 1)


def test_no_jitter_changes_no_pixel(rng: np.random.Generator) -> None:
    video_THWC = rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    assert np.array_equal(jitter_colours(video_THWC, ColourJitter(0, 1, 1, 0)), video_THWC)


def test_dropped_colours_are_three_equal_weighted_channels() -> None:
    video_THWC = np.array([[[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]], np.uint8)
    assert drop_colours(video_THWC).tolist() == [[[[76] * 3, [150] * 3, [29] * 3]]]


def test_spec_augment_zeroes_one_band_and_nothing_else(rng: np.random.Generator) -> None:
    spectrogram_TF = np.ones((50, 128), np.float32)
    widths = []
    for _ in range(200):
        masked_TF = spec_augment(spectrogram_TF, AudioAugment(), rng)
        zero = np.flatnonzero(masked_TF[0] == 0)
        widths.append(len(zero))
        assert (masked_TF == masked_TF[0]).all()
        assert len(zero) == 0 or np.ptp(zero) == len(zero) - 1
    assert spectrogram_TF.all()
    assert min(widths) < 5
    assert 40 < max(widths) <= 47


def test_time_masks_and_narrow_spectrograms(rng: np.random.Generator) -> None:
    augment = AudioAugment(freq_mask_bins=1000, time_mask_count=2, time_mask_frames=10)
    masked_TF = spec_augment(np.ones((20, 8), np.float32), augment, rng)
    assert masked_TF.shape == (20, 8)
    assert (masked_TF == 0).any()
