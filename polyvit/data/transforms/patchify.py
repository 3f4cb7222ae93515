"""Arrays to tokens and back.

In: image_HWC, video_THWC or spectrogram_TF. Out: tokens_NP, same dtype; N tokens, P numbers in one.
Tokens are row-major: image (h, w), video (t, h, w), audio (time, frequency); within a token (h, w, c),
(t, h, w, c), (t, f). So `tokens_NP @ kernel.reshape(P, D)` is the strided convolution of the patch
embedding with a kernel of shape (h, w, c, D), (t, h, w, c, D) or (t, f, D).
"""

import math

import numpy as np


def patchify_image(
    image_HWC: np.ndarray, patch_size: tuple[int, int], stride: tuple[int, int] | None = None
) -> np.ndarray:
    """[H, W, C] to [N, h * w * C]. Raises ValueError where a side is shorter than a patch, or where patches that
    do not overlap do not cover it exactly; overlapping ones leave a rest, as a VALID convolution does."""
    return _patchify(image_HWC, patch_size, stride)


def patchify_video(
    video_THWC: np.ndarray, tubelet_size: tuple[int, int, int], stride: tuple[int, int, int] | None = None
) -> np.ndarray:
    """[T, H, W, C] to [N, t * h * w * C]. Raises ValueError as `patchify_image`."""
    return _patchify(video_THWC, tubelet_size, stride)


def patchify_audio(
    spectrogram_TF: np.ndarray, patch_size: tuple[int, int], stride: tuple[int, int] | None = None
) -> np.ndarray:
    """[T, F] to [N, t * f], patch_size = (time, frequency). Raises ValueError as `patchify_image`."""
    return _patchify(spectrogram_TF[..., None], patch_size, stride)


def unpatchify_image(tokens_NP: np.ndarray, size: tuple[int, int], patch_size: tuple[int, int]) -> np.ndarray:
    """The image_HWC of `size` (H, W) that `patchify_image` without overlap made tokens of."""
    return _unpatchify(tokens_NP, size, patch_size)


def unpatchify_video(
    tokens_NP: np.ndarray, size: tuple[int, int, int], tubelet_size: tuple[int, int, int]
) -> np.ndarray:
    """The video_THWC of `size` (T, H, W) that `patchify_video` without overlap made tokens of."""
    return _unpatchify(tokens_NP, size, tubelet_size)


def unpatchify_audio(tokens_NP: np.ndarray, size: tuple[int, int], patch_size: tuple[int, int]) -> np.ndarray:
    """The spectrogram_TF of `size` (T, F) that `patchify_audio` without overlap made tokens of."""
    return _unpatchify(tokens_NP, size, patch_size)[..., 0]


def _patchify(array: np.ndarray, patch: tuple[int, ...], stride: tuple[int, ...] | None) -> np.ndarray:
    """[*sides, C] to [N, P], for any number of sides."""
    sides, dims = array.shape[:-1], len(patch)
    step = stride or patch
    for side, p, d in zip(sides, patch, step, strict=True):
        if side < p or (d >= p and (side - p) % d):
            raise ValueError(f"sides {sides} are not covered by patches {patch} at stride {step}")
    token_dim = math.prod(patch) * array.shape[-1]
    if step == patch:
        split = [n for side, p in zip(sides, patch, strict=True) for n in (side // p, p)]
        blocks = array.reshape(*split, array.shape[-1])
        order = [*range(0, 2 * dims, 2), *range(1, 2 * dims, 2), 2 * dims]
        return blocks.transpose(order).reshape(-1, token_dim)
    windows = np.lib.stride_tricks.sliding_window_view(array, patch, axis=tuple(range(dims)))
    windows = windows[tuple(slice(None, None, d) for d in step)]
    return np.moveaxis(windows, dims, -1).reshape(-1, token_dim)


def _unpatchify(tokens_NP: np.ndarray, size: tuple[int, ...], patch: tuple[int, ...]) -> np.ndarray:
    grid = [side // p for side, p in zip(size, patch, strict=True)]
    blocks = tokens_NP.reshape(*grid, *patch, -1)
    dims = len(patch)
    order = [axis for i in range(dims) for axis in (i, dims + i)]
    return blocks.transpose([*order, 2 * dims]).reshape(*size, -1)
