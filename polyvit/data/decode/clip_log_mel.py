"""Log-mel spectrograms of clips, as the released fine-tuning of AVBert takes them. NumPy alone.

In: sound_SN, float32 mono. Out: spectrogram_STF, float32 (S clips, T frames, F mel bins). Source: avbert's audio
loader. The FFT's length follows from the clip's: n_fft = 2 * (N // T + 1), every n_fft / 2 samples, periodic Hann
windows around each frame's middle, reflected at both ends; power; HTK mel filters from 0 to half the sample rate
without area normalisation; ln(1e-6 + x); cut, or padded with `fill`, to T frames.
"""

from functools import lru_cache

import numpy as np

LOG_OFFSET = 1e-6
"""Added before the log; source: the release. Silence is -13.8."""


def clip_log_mel(sound_SN: np.ndarray, sample_rate: int, frames: int, bins: int, fill: float = 0.0) -> np.ndarray:
    """spectrogram_STF [S, frames, bins], float32."""
    samples = sound_SN.shape[1]
    size = fft_size(samples, frames)
    padded_SN = np.pad(sound_SN, ((0, 0), (size // 2, size // 2)), mode="reflect")
    windows_STN = np.lib.stride_tricks.sliding_window_view(padded_SN, size, axis=1)[:, :: size // 2][:, :frames]
    spectrum_STR = np.fft.rfft(windows_STN * _hann(size))
    power_STR = np.square(spectrum_STR.real) + np.square(spectrum_STR.imag)
    mel_STF = power_STR @ mel_filters(size // 2 + 1, sample_rate, bins)
    spectrogram_STF = np.full((len(sound_SN), frames, bins), fill, np.float32)
    spectrogram_STF[:, : mel_STF.shape[1]] = np.log(mel_STF + np.float32(LOG_OFFSET))
    return spectrogram_STF


def fft_size(samples: int, frames: int) -> int:
    """n_fft of clips of so many samples and spectrograms of so many frames."""
    return 2 * (samples // frames + 1)


@lru_cache(maxsize=8)
def _hann(size: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)


@lru_cache(maxsize=8)
def mel_filters(frequencies: int, sample_rate: int, bins: int) -> np.ndarray:
    """weights_RF [frequencies, bins], float32: triangles whose peak is 1, on HTK's mel scale.

    Where the FFT is short, a filter may lie between two frequencies: its bin is always ln(1e-6), as in the
    release.
    """
    hertz_R = np.linspace(0, sample_rate // 2, frequencies)
    highest = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, highest, bins + 2) / 2595) - 1)
    rising = (hertz_R[:, None] - edges[None, :-2]) / np.diff(edges)[None, :-1]
    falling = (edges[None, 2:] - hertz_R[:, None]) / np.diff(edges)[None, 1:]
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
