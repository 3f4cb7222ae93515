"""Log-mel spectrograms of clips, as the released fine-tuning of AVBert takes them.

In: sound_SN, float32 mono. Out: spectrogram_STF, float32 (S clips, T frames, F mel bins). Source: avbert's audio
loader. The FFT's length follows from the clip's: n_fft = 2 * (N // T + 1), every n_fft / 2 samples, periodic Hann
windows around each frame's middle, reflected at both ends; power; HTK mel filters from 0 to half the sample rate
without area normalisation; ln(1e-6 + x); cut, or padded with `fill`, to T frames. Where the FFT is short, a mel
filter may lie between two frequencies: its bin is always ln(1e-6), as in the release.
"""

from functools import lru_cache

import numpy as np
import scipy.fft

from polyvit.data.decode.audio import LOG_OFFSET, mel_filters, periodic_hann

_BINS = 8
"""Mel bins of one product: with all frames of a clip it is too small for OpenBLAS to start threads."""


def clip_log_mel(sound_SN: np.ndarray, sample_rate: int, frames: int, bins: int, fill: float = 0.0) -> np.ndarray:
    """spectrogram_STF [S, frames, bins], float32."""
    size = fft_size(sound_SN.shape[1], frames)
    padded_SN = np.pad(sound_SN, ((0, 0), (size // 2, size // 2)), mode="reflect")
    hann_N, spectrogram_STF = periodic_hann(size), np.full((len(sound_SN), frames, bins), fill, np.float32)
    for padded_N, spectrogram_TF in zip(padded_SN, spectrogram_STF, strict=True):
        windows_TN = np.lib.stride_tricks.sliding_window_view(padded_N, size)[:: size // 2][:frames]
        spectrum_TR = scipy.fft.rfft(windows_TN * hann_N)
        power_TR = np.square(spectrum_TR.real) + np.square(spectrum_TR.imag)
        for low, some, weights_RF in _bands(size, sample_rate, bins):
            mel_TF = power_TR[:, low : low + len(weights_RF)] @ weights_RF
            spectrogram_TF[: len(power_TR), some] = np.log(mel_TF + np.float32(LOG_OFFSET))
    return spectrogram_STF


def fft_size(samples: int, frames: int) -> int:
    """n_fft of clips of so many samples and spectrograms of so many frames."""
    return 2 * (samples // frames + 1)


@lru_cache(maxsize=8)
def _bands(size: int, sample_rate: int, bins: int) -> list[tuple[int, slice, np.ndarray]]:
    """First frequency, mel bins, weights_RF: the part of the mel matrix that some neighbouring bins need."""
    mel_RF, bands = mel_filters(size, 0.0, sample_rate, bins), []
    for first in range(0, bins, _BINS):
        some = slice(first, min(first + _BINS, bins))
        reached = np.flatnonzero(mel_RF[:, some].any(axis=1))
        low, high = (int(reached[0]), int(reached[-1]) + 1) if len(reached) else (0, 1)
        bands.append((low, some, np.ascontiguousarray(mel_RF[low:high, some])))
    return bands
