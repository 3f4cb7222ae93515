"""Tokens: exact order, inverse, overlap, and equality with a strided convolution."""

import numpy as np
import pytest
import torch

from polyvit.data.patchify import (
    patchify_audio,
    patchify_image,
    patchify_video,
    unpatchify_audio,
    unpatchify_image,
    unpatchify_video,
)


def test_image_tokens_are_row_major_and_hold_h_w_c() -> None:
    image_HWC = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    tokens_NP = patchify_image(image_HWC, (2, 2))
    assert tokens_NP.dtype == np.uint8
    assert tokens_NP[1].tolist() == [*range(6, 12), *range(18, 24)]
    assert tokens_NP[2, :6].tolist() == [*range(24, 30)]


def test_video_tokens_are_time_major() -> None:
    video_THWC = np.arange(4 * 2 * 4 * 3).reshape(4, 2, 4, 3)
    tokens_NP = patchify_video(video_THWC, (2, 2, 2))
    assert tokens_NP.shape == (4, 24)
    assert (tokens_NP[2] == video_THWC[2:, :, :2].reshape(-1)).all()


def test_audio_tokens_are_time_major() -> None:
    spectrogram_TF = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert patchify_audio(spectrogram_TF, (2, 3))[1].tolist() == [3, 4, 5, 9, 10, 11]


def test_unpatchify_is_the_inverse(rng: np.random.Generator) -> None:
    image_HWC = rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)
    video_THWC = rng.integers(0, 256, (6, 8, 12, 3), dtype=np.uint8)
    spectrogram_TF = rng.standard_normal((10, 8), dtype=np.float32)
    assert np.array_equal(unpatchify_image(patchify_image(image_HWC, (4, 5)), (12, 20), (4, 5)), image_HWC)
    tokens_NP = patchify_video(video_THWC, (2, 4, 3))
    assert np.array_equal(unpatchify_video(tokens_NP, (6, 8, 12), (2, 4, 3)), video_THWC)
    tokens_NP = patchify_audio(spectrogram_TF, (5, 4))
    assert np.array_equal(unpatchify_audio(tokens_NP, (10, 8), (5, 4)), spectrogram_TF)


@pytest.mark.parametrize("stride", [(4, 4, 4), (2, 3, 2)])
def test_a_linear_map_of_tokens_is_the_strided_convolution(
    stride: tuple[int, int, int], rng: np.random.Generator
) -> None:
    video_THWC = rng.standard_normal((8, 16, 12, 3))
    kernel_DCTHW = rng.standard_normal((5, 3, 4, 4, 4))
    expected = torch.nn.functional.conv3d(
        torch.from_numpy(video_THWC.transpose(3, 0, 1, 2)[None]), torch.from_numpy(kernel_DCTHW), stride=stride
    )
    tokens_NP = patchify_video(video_THWC, (4, 4, 4), stride)
    found = tokens_NP @ kernel_DCTHW.transpose(2, 3, 4, 1, 0).reshape(-1, 5)
    assert np.allclose(found.T, expected[0].flatten(1).numpy(), atol=1e-10)


def test_sides_that_patches_do_not_cover_are_refused() -> None:
    with pytest.raises(ValueError, match="not covered"):
        patchify_image(np.zeros((5, 4, 3)), (2, 2))
    with pytest.raises(ValueError, match="not covered"):
        patchify_audio(np.zeros((2, 4)), (4, 4))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
