"""Recording bytes to a waveform, to a log-mel spectrogram, to the model's window.

In: the bytes of a sound file, or of a video file with sound. Out: waveform_S, float32 mono in about [-1, 1];
spectrogram_TF, float32 (T frames, F mel bins). The only file that imports torchaudio and soundfile.

The official release does not contain its extraction. Ours: power spectra of `window_ms` Hann windows every
`hop_ms`, HTK mel filters from 20 Hz to half the sample rate, log(mel + 1e-6). Frame t covers the samples from
t * hop to t * hop + window, zeros past the end; a recording of S samples has ceil(S / hop) frames, so
8 s at a hop of 10 ms are 800. No frame looks left of its start, hence cutting the waveform first and then
taking spectra gives the same frames: `train_waveform` and `eval_waveform` transform only what they keep.
"""

import io
import math
import warnings
from functools import lru_cache

import av
import numpy as np
import soundfile
import torch
import torchaudio

from polyvit.config import AudioInput
from polyvit.data.augment import View, spec_augment, window_indices, window_start
from polyvit.data.decoding import bad_media
from polyvit.errors import BadMedia
from polyvit.task_config import AudioAugment

MAX_SECONDS = 3600.0
"""Longer recordings, or segments of them, are refused."""
LOG_OFFSET = 1e-6
"""Added before the log: digital silence is -13.8, and the noise of 16-bit rounding stays below it."""
LOWEST_HZ = 20.0
"""Lower end of the mel filters, as Kaldi's default."""
_BLOCK = 1 << 18


def decode_waveform(data: bytes, sample_rate: int, start_s: float = 0.0, end_s: float = -1.0) -> np.ndarray:
    """The recording from `start_s` to `end_s` seconds (end_s < 0: its end) as waveform_S, float32 mono.

    soundfile reads WAV, FLAC, MP3 and Ogg, PyAV the sound of MP4, M4A, WebM and the rest, by content.
    Channels are averaged, then resampled to `sample_rate` Hz.
    What a header says of the length is not believed: a WAV, FLAC, MP3 or Ogg cut short is used as far as it
    goes. Raises BadMedia: no sound, no sample, a decoding error (MP4 and the rest), NaN or infinite
    samples, more than an hour.
    """
    if not data:
        raise BadMedia("audio: the file is empty")
    with bad_media("audio"):
        try:
            source = soundfile.SoundFile(io.BytesIO(data))
        except soundfile.LibsndfileError:
            waveform_S, rate = _read_with_pyav(data, start_s, end_s)
        else:
            with source:
                waveform_S, rate = _read_with_soundfile(source, start_s, end_s), source.samplerate
        if not waveform_S.size:
            raise BadMedia("audio: no samples")
        if not np.isfinite(waveform_S).all():
            raise BadMedia("audio: NaN or infinite samples")
        return _resample(waveform_S, rate, sample_rate)


def _read_with_soundfile(source: soundfile.SoundFile, start_s: float, end_s: float) -> np.ndarray:
    rate = source.samplerate
    first = round(start_s * rate)
    # Block by block, for `source.frames` may promise gigabytes that are not there.
    left = (round(end_s * rate) if end_s >= 0 else source.frames) - first
    if first:
        if first >= source.frames:
            raise BadMedia(f"audio: nothing from {start_s:g} s on; it lasts {source.frames / rate:.1f} s")
        source.seek(first)
    blocks, total = [], 0
    while left > 0:
        block_SC = source.read(min(left, _BLOCK), dtype="float32", always_2d=True)
        if not len(block_SC):
            break
        blocks.append(block_SC[:, 0] if block_SC.shape[1] == 1 else block_SC.mean(axis=1))
        left, total = left - len(block_SC), total + len(block_SC)
        _check_length(total, rate)
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _read_with_pyav(data: bytes, start_s: float, end_s: float) -> tuple[np.ndarray, int]:
    with av.open(io.BytesIO(data), "r") as container:
        if not container.streams.audio:
            raise BadMedia("audio: no sound track")
        stream = container.streams.audio[0]
        stream.codec_context.thread_count = 1
        rate = int(stream.rate)
        # Planar floats: one row a channel, whatever the codec gives.
        planar = av.AudioResampler(format="fltp")
        last = round(end_s * rate) if end_s >= 0 else None
        blocks, total = [], 0
        for frame in container.decode(stream):
            blocks += [part.to_ndarray().mean(axis=0, dtype=np.float32) for part in planar.resample(frame)]
            total += frame.samples
            if last is not None and total >= last:
                break
            _check_length(total, rate)
    waveform_S = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    return waveform_S[round(start_s * rate) : last], rate


def _check_length(samples: int, rate: int) -> None:
    if samples > MAX_SECONDS * rate:
        raise BadMedia(f"audio: longer than {MAX_SECONDS:g} s")


def _resample(waveform_S: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    if rate == sample_rate:
        return waveform_S
    with torch.inference_mode():
        return _resampler(rate, sample_rate)(torch.from_numpy(waveform_S)).numpy()


@lru_cache(maxsize=16)
def _resampler(rate: int, sample_rate: int) -> torchaudio.transforms.Resample:
    # librosa's kaiser_fast (numbers from torchaudio's tutorial): aliases 60 dB down where the default
    # window leaves 10, at about the default's cost once the kernel is kept.
    return torchaudio.transforms.Resample(
        rate,
        sample_rate,
        resampling_method="sinc_interp_kaiser",
        lowpass_filter_width=16,
        rolloff=0.85,
        beta=8.555504641634386,
    )


def num_mel_frames(num_samples: int, spec: AudioInput) -> int:
    """Frames of a recording: ceil(samples / hop), at least 1."""
    return max(1, math.ceil(num_samples / _hop(spec)))


def log_mel(waveform_S: np.ndarray, spec: AudioInput, start: int = 0, frames: int | None = None) -> np.ndarray:
    """spectrogram_TF, float32: natural log of mel power, of `frames` frames from frame `start` (null: all).

    Finite for any finite waveform: silence is log(1e-6). Not yet normalised by `spec.mean` and `spec.std`.
    """
    hop, window = _hop(spec), _window_samples(spec)
    frames = num_mel_frames(len(waveform_S), spec) - start if frames is None else frames
    piece_S = waveform_S[start * hop : (start + frames - 1) * hop + window]
    padded_S = np.zeros((frames - 1) * hop + window, np.float32)
    padded_S[: len(piece_S)] = piece_S
    hann_S, mel_RF, fft_size = _mel_parts(spec.sample_rate, window, spec.mel_bins)
    with torch.inference_mode():
        # torch's FFT (MKL) takes a quarter of the time of NumPy's.
        windows_TS = torch.from_numpy(padded_S).unfold(0, window, hop) * hann_S
        spectrum_TR = torch.view_as_real(torch.fft.rfft(windows_TS, fft_size))
        mel_TF = spectrum_TR.square().sum(-1) @ mel_RF
        return mel_TF.add_(LOG_OFFSET).log_().numpy()


def _hop(spec: AudioInput) -> int:
    return max(1, round(spec.sample_rate * spec.hop_ms / 1000))


def _window_samples(spec: AudioInput) -> int:
    return max(1, round(spec.sample_rate * spec.window_ms / 1000))


@lru_cache(maxsize=8)
def _mel_parts(sample_rate: int, window: int, mel_bins: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Hann window, mel matrix (frequencies R, mel bins F), FFT size.

    The FFT is the smallest power of two that holds the window and leaves no mel filter without a frequency,
    four windows at most: 512 for 64 bins at 16 kHz, 1024 for 128 (at 512 some low filters are empty).
    """
    hann_S = torch.hann_window(window)
    fft_size = 1 << (window - 1).bit_length()
    while True:
        with warnings.catch_warnings():
            # It warns of empty filters, which is what is asked here.
            warnings.simplefilter("ignore")
            mel_RF = torchaudio.functional.melscale_fbanks(
                fft_size // 2 + 1, LOWEST_HZ, sample_rate / 2, mel_bins, sample_rate, norm=None, mel_scale="htk"
            )
        if bool(mel_RF.any(dim=0).all()) or fft_size > 4 * window:
            return hann_S, mel_RF, fft_size
        fft_size *= 2


def train_audio(
    spectrogram_TF: np.ndarray, spec: AudioInput, augment: AudioAugment, rng: np.random.Generator
) -> np.ndarray:
    """A random window of `spec.frames` frames (the middle with `time_shift` off), normalised, SpecAugment.

    A recording shorter than the window starts again. float32.
    """
    start = _train_start(len(spectrogram_TF), spec, augment, rng)
    return spec_augment(_window(spectrogram_TF, spec, start), augment, rng)


def eval_audio(spectrogram_TF: np.ndarray, spec: AudioInput, view: View | None = None) -> np.ndarray:
    """The middle window of `spec.frames` frames, or the i-th of n by `view` (i, n); normalised. float32."""
    return _window(spectrogram_TF, spec, window_start(len(spectrogram_TF), spec.frames, 1, view=view))


def train_waveform(
    waveform_S: np.ndarray, spec: AudioInput, augment: AudioAugment, rng: np.random.Generator
) -> np.ndarray:
    """`train_audio(log_mel(waveform_S))` for the same draws, without the frames that are not kept."""
    start = _train_start(num_mel_frames(len(waveform_S), spec), spec, augment, rng)
    return spec_augment(_window(*_kept_mel(waveform_S, spec, start)), augment, rng)


def eval_waveform(waveform_S: np.ndarray, spec: AudioInput, view: View | None = None) -> np.ndarray:
    """`eval_audio(log_mel(waveform_S))`, without the frames that are not kept."""
    start = window_start(num_mel_frames(len(waveform_S), spec), spec.frames, 1, view=view)
    return _window(*_kept_mel(waveform_S, spec, start))


def _train_start(length: int, spec: AudioInput, augment: AudioAugment, rng: np.random.Generator) -> int:
    return window_start(length, spec.frames, 1, rng if augment.time_shift else None)


def _kept_mel(waveform_S: np.ndarray, spec: AudioInput, start: int) -> tuple[np.ndarray, AudioInput, int]:
    """The frames from `start` on that one window keeps, and where the window starts in them."""
    if num_mel_frames(len(waveform_S), spec) <= spec.frames:
        return log_mel(waveform_S, spec), spec, start
    return log_mel(waveform_S, spec, start, spec.frames), spec, 0


def _window(spectrogram_TF: np.ndarray, spec: AudioInput, start: int) -> np.ndarray:
    window_TF = spectrogram_TF[window_indices(len(spectrogram_TF), spec.frames, 1, start)]
    window_TF -= np.float32(spec.mean)
    window_TF /= np.float32(spec.std)
    return window_TF
