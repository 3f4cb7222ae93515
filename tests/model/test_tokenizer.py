"""The tokenizer: linear patch embedding against convolutions, positions, what it refuses."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from polyvit.config import AudioInput, ImageInput, InputSection, ModelConfig, VideoInput
from polyvit.data.transforms.patchify import patchify_audio, patchify_image, patchify_video
from polyvit.model.tokenizer import Tokenizer, normalise

WIDTH = 8
IMAGES = [
    ImageInput(size=(12, 20), patch_size=(4, 5)),
    ImageInput(size=(11, 17), patch_size=(5, 3), stride=(3, 2)),
]
VIDEOS = [
    VideoInput(frames=6, size=(8, 12), tubelet_size=(3, 4, 2)),
    VideoInput(frames=5, size=(7, 9), tubelet_size=(3, 3, 5), stride=(2, 2, 4)),
]
AUDIOS = [
    AudioInput(frames=20, mel_bins=6, patch_size=(5, 2)),
    AudioInput(frames=17, mel_bins=12, patch_size=(5, 4), stride=(3, 2)),
]


def build(spec: InputSection) -> Tokenizer:
    """A tokenizer with random parameters, so that nothing is hidden by zeros."""
    count = int(np.prod(spec.grid))
    assert spec.num_tokens == count
    tokenizer = Tokenizer(spec, WIDTH)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.normal_(generator=generator)
    return tokenizer


def draw(*shape: int) -> np.ndarray:
    """Random float32 array."""
    return np.random.Generator(np.random.Philox(0)).standard_normal(shape).astype(np.float32)


def expected(tokenizer: Tokenizer, embedded_BND: Tensor) -> Tensor:
    """Class token, then the embedded patches, plus positions."""
    cls_B1D = tokenizer.cls_token.expand(len(embedded_BND), -1, -1)
    return torch.cat([cls_B1D, embedded_BND], dim=1) + tokenizer.pos_embed


@pytest.mark.parametrize("spec", IMAGES)
def test_image_embedding_is_conv2d(spec: ImageInput) -> None:
    """Equal to the strided convolution, also with overlap. 1e-5: sums of up to 45 products in float32."""
    images_BHWC = draw(2, *spec.size, 3)
    tokens = torch.from_numpy(np.stack([patchify_image(x, spec.patch_size, spec.stride) for x in images_BHWC]))
    tokenizer = build(spec)
    kernel_DChw = tokenizer.patch_embed.weight.view(WIDTH, *spec.patch_size, 3).permute(0, 3, 1, 2)
    x_BCHW = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2)
    conv = F.conv2d(x_BCHW, kernel_DChw, tokenizer.patch_embed.bias, stride=spec.stride or spec.patch_size)
    assert conv.shape[2:] == spec.grid
    torch.testing.assert_close(
        tokenizer(tokens), expected(tokenizer, conv.flatten(2).transpose(1, 2)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("spec", VIDEOS)
def test_tubelet_embedding_is_conv3d(spec: VideoInput) -> None:
    """Equal to ViViT's Conv3d over (t, h, w). 1e-5: sums of up to 135 products in float32."""
    clips_BTHWC = draw(2, spec.frames, *spec.size, 3)
    tokens = torch.from_numpy(np.stack([patchify_video(x, spec.tubelet_size, spec.stride) for x in clips_BTHWC]))
    tokenizer = build(spec)
    kernel_DCthw = tokenizer.patch_embed.weight.view(WIDTH, *spec.tubelet_size, 3).permute(0, 4, 1, 2, 3)
    x_BCTHW = torch.from_numpy(clips_BTHWC).permute(0, 4, 1, 2, 3)
    conv = F.conv3d(x_BCTHW, kernel_DCthw, tokenizer.patch_embed.bias, stride=spec.stride or spec.tubelet_size)
    assert conv.shape[2:] == spec.grid
    torch.testing.assert_close(
        tokenizer(tokens), expected(tokenizer, conv.flatten(2).transpose(1, 2)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("spec", AUDIOS)
@pytest.mark.parametrize("channels", [1, 3])
def test_spectrogram_embedding_is_conv2d_of_the_repeated_plane(spec: AudioInput, channels: int) -> None:
    """With 3 channels the plane is seen 3 times, as the RGB kernel of the official release sees it."""
    spec = spec.model_copy(update={"channels": channels})
    planes_BTF = draw(2, spec.frames, spec.mel_bins)
    tokens = torch.from_numpy(np.stack([patchify_audio(x, spec.patch_size, spec.stride) for x in planes_BTF]))
    tokenizer = build(spec)
    kernel_DCtf = tokenizer.patch_embed.weight.view(WIDTH, *spec.patch_size, channels).permute(0, 3, 1, 2)
    x_BCTF = torch.from_numpy(planes_BTF)[:, None].repeat(1, channels, 1, 1)
    conv = F.conv2d(x_BCTF, kernel_DCtf, tokenizer.patch_embed.bias, stride=spec.stride or spec.patch_size)
    assert conv.shape[2:] == spec.grid
    torch.testing.assert_close(
        tokenizer(tokens), expected(tokenizer, conv.flatten(2).transpose(1, 2)), rtol=1e-5, atol=1e-5
    )


def test_wrong_token_shape_is_refused() -> None:
    """The message holds both shapes."""
    config = ModelConfig(width=WIDTH, image=IMAGES[0])
    tokenizer = build(config.image)
    with pytest.raises(ValueError, match=r"\(13, 60\).*\(12, 60\)"):
        tokenizer(torch.zeros(1, 13, 60))


def test_normalise() -> None:
    """Pixels to [-1, 1]; spectrograms keep their values."""
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    torch.testing.assert_close(normalise(pixels), torch.tensor([-1.0, -0.6, 1.0]))
    mels = torch.tensor([-4.5, 2.0], dtype=torch.float16)
    assert torch.equal(normalise(mels), torch.tensor([-4.5, 2.0]))
