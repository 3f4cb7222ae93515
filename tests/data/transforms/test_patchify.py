"""Tokens: exact order, inverse, overlap, and equality with a strided convolution."""

import numpy as np
import pytest
import torch
from arrays_kit import token_shape

from polyvit.config import AudioInput, ImageInput, VideoInput
from polyvit.data.transforms.patchify import (
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


# AST: 1024 frames leave 8, 128 mel bins leave 2; the other cases leave a rest on one side, on none, on all.
AUDIO_SIDES = [(1024, 128, (16, 16), (10, 10)), (37, 16, (16, 8), (7, 8)), (26, 16, (16, 16), (10, 5))]


@pytest.mark.parametrize(("frames", "mel_bins", "patch", "stride"), AUDIO_SIDES)
def test_overlapping_patches_of_a_recording_may_leave_a_rest(
    frames: int, mel_bins: int, patch: tuple[int, int], stride: tuple[int, int], rng: np.random.Generator
) -> None:
    spec = AudioInput(frames=frames, mel_bins=mel_bins, patch_size=patch, stride=stride)
    spectrogram_TF = rng.standard_normal((frames, mel_bins))
    kernel_DTF = rng.standard_normal((3, *patch))
    tokens_NP = patchify_audio(spectrogram_TF, patch, stride)
    assert tokens_NP.shape == token_shape(spec)
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(spectrogram_TF[None, None]), torch.from_numpy(kernel_DTF[:, None]), stride=stride
    )
    assert tuple(expected.shape[2:]) == spec.grid
    assert np.allclose((tokens_NP @ kernel_DTF.reshape(3, -1).T).T, expected[0].flatten(1).numpy(), atol=1e-10)


def test_overlapping_patches_of_pictures_and_clips_cut_as_many_as_the_grid_says(rng: np.random.Generator) -> None:
    image = ImageInput(size=(30, 33), patch_size=(8, 16), stride=(5, 6))
    video = VideoInput(frames=7, size=(20, 21), tubelet_size=(2, 8, 8), stride=(1, 5, 7))
    assert (image.grid, video.grid) == ((5, 3), (6, 3, 2))
    image_HWC = rng.integers(0, 256, (*image.size, 3), dtype=np.uint8)
    tokens_NP = patchify_image(image_HWC, image.patch_size, image.stride)
    assert tokens_NP.shape == token_shape(image)
    assert np.array_equal(tokens_NP[-1], image_HWC[20:28, 12:28].reshape(-1))
    video_THWC = rng.integers(0, 256, (video.frames, *video.size, 3), dtype=np.uint8)
    tokens_NP = patchify_video(video_THWC, video.tubelet_size, video.stride)
    assert tokens_NP.shape == token_shape(video)
    assert np.array_equal(tokens_NP[-1], video_THWC[5:7, 10:18, 7:15].reshape(-1))


@pytest.mark.parametrize("stride", [None, (4, 4), (3, 4), (4, 5)])
def test_a_side_without_overlap_must_be_covered(stride: tuple[int, int] | None) -> None:
    """Also where the other side overlaps, and where patches leave gaps between them."""
    with pytest.raises(ValueError, match="not covered"):
        patchify_audio(np.zeros((10, 10)), (4, 4), stride)


def test_sides_that_patches_do_not_cover_are_refused() -> None:
    with pytest.raises(ValueError, match="not covered"):
        patchify_image(np.zeros((5, 4, 3)), (2, 2))
    with pytest.raises(ValueError, match="not covered"):
        patchify_audio(np.zeros((2, 4)), (4, 4))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
