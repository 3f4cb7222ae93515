"""Recording bytes to a waveform, to a log-mel spectrogram, to the model's window.

In: the bytes of a sound file, or of a video file with sound. Out: waveform_S, float32 mono in about [-1, 1];
spectrogram_TF, float32 (T frames, F mel bins). The only file that imports soundfile and soxr. It does not import
torch: a decoding process is there two seconds earlier without it, and SciPy's transforms are faster besides.

The official release does not contain its extraction. Ours: power spectra of `window_ms` Hann windows every
`hop_ms`, HTK mel filters from 20 Hz to half the sample rate, log(mel + 1e-6). Frame t covers the samples from
t * hop to t * hop + window, zeros past the end; a recording of S samples has ceil(S / hop) frames, so
8 s at a hop of 10 ms are 800. No frame looks left of its start, hence cutting the waveform first and then
taking spectra gives the same frames: `train_waveform` and `eval_waveform` transform only what they keep.
"""

import io
import math
from functools import lru_cache

import av
import numpy as np
import scipy.fft
import soundfile
import soxr
from av.container import InputContainer

from polyvit.config import AudioAugment, AudioInput
from polyvit.data.decode.containers import bad_media, moving_pictures, open_container
from polyvit.data.transforms import View, spec_augment, window_indices, window_start
from polyvit.errors import BadMedia

MAX_SECONDS = 3600.0
"""Longer recordings, or segments of them, are refused."""
MAX_SAMPLES = 2**28
"""Of one channel, an hour at 74 kHz; of all channels together 8 times as many. Silence packs a thousandfold."""
LOUDEST = 2.0**32
"""Above any scale of whole numbers that was not divided out; the powers of far larger ones are infinite."""
MAX_RATE = 768_000
"""Hz; twice the fastest of real recorders."""
LOG_OFFSET = 1e-6
"""Added before the log: digital silence is -13.8, and the noise of 16-bit rounding stays below it."""
LOWEST_HZ = 20.0
"""Lower end of the mel filters, as Kaldi's default."""
ESTIMATED = ("MP3", "OGG")
"""Formats of libsndfile where joined files, or a variable bit rate without its header, end too early."""
CODEC_DELAY = 4608
"""Samples by which all packets may last longer than libsndfile says: an encoder's delay and padding."""
GAP_S = 0.05
"""Seconds between time stamps that are a hole; less is rounding."""
UNKNOWN_LENGTH = 2**62
"""What libsndfile says of a FLAC that was written to a pipe. Of a WAV whose recorder was switched off it says 0.
FFmpeg reads both to their end."""
_BLOCK = 1 << 18
"""Samples read at a time."""
_FRAMES, _BINS = 100, 8
"""Frames and mel bins of one block of `log_mel`: it stays in the cache, and OpenBLAS starts no threads for it."""


def decode_waveform(data: bytes, sample_rate: int, start_s: float = 0.0, end_s: float = -1.0) -> np.ndarray:
    """The recording from `start_s` to `end_s` seconds (end_s < 0: its end) as waveform_S, float32 mono.

    soundfile reads WAV, FLAC, MP3 and Ogg, PyAV the sound of MP4, M4A, WebM and the rest, by content.
    Channels are averaged, then resampled to `sample_rate` Hz.
    A segment is cut by the file's time stamps, as the picture is: its seconds count from the first picture, or
    from the first sound where there is none; holes are silence. Without a segment the holes are left out.
    What a header says of the length is not believed: a WAV, FLAC, MP3 or Ogg cut short is used as far as it
    goes. Raises BadMedia: no sound, no sample, a decoding error (MP4 and the rest), NaN or infinite
    samples or such beyond any scale, more than an hour.
    """
    if not data:
        raise BadMedia("audio: the file is empty")
    with bad_media("audio"):
        return checked_waveform(*_read(data, start_s, end_s), sample_rate)


def checked_waveform(waveform_S: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """waveform_S, float32 mono at `rate` Hz, at `sample_rate` Hz. Raises BadMedia as `decode_waveform`."""
    if not waveform_S.size:
        raise BadMedia("audio: no samples")
    _check_length(waveform_S.size, rate)
    loudest = max(float(waveform_S.max()), -float(waveform_S.min()))
    if not math.isfinite(loudest):
        raise BadMedia("audio: NaN or infinite samples")
    if loudest > LOUDEST:
        raise BadMedia(f"audio: samples of {loudest:.0e}, where full scale is 1")
    return _resample(waveform_S, rate, sample_rate)


def _read(data: bytes, start_s: float, end_s: float) -> tuple[np.ndarray, int]:
    """waveform_S and its rate in Hz."""
    if data[4:8] != b"ftyp":  # MP4, M4A: libsndfile would only find out that it cannot
        try:
            source = soundfile.SoundFile(io.BytesIO(data))
        except soundfile.LibsndfileError:
            pass
        else:
            with source:
                cut = source.format in ESTIMATED and not _whole_length(data, source.frames, source.samplerate)
                if cut or not 0 < source.frames < UNKNOWN_LENGTH:
                    return _read_with_pyav(data, start_s, end_s)
                return _read_with_soundfile(source, start_s, end_s), source.samplerate
    return _read_with_pyav(data, start_s, end_s)


def _whole_length(data: bytes, frames: int, rate: int) -> bool:
    """Whether the packets of a recording last no longer than libsndfile says; walking them is quick."""
    try:
        with open_container(data) as container:
            stream = container.streams.audio[0]
            ticks = sum(packet.duration or 0 for packet in container.demux(stream))
            return float(ticks * (stream.time_base or 0)) * rate < frames + CODEC_DELAY
    except (av.error.FFmpegError, IndexError):
        return True


def _read_with_soundfile(source: soundfile.SoundFile, start_s: float, end_s: float) -> np.ndarray:
    rate, channels = source.samplerate, source.channels
    first = round(start_s * rate)
    # Block by block, for `source.frames` may promise gigabytes that are not there.
    left = (round(end_s * rate) if end_s >= 0 else source.frames) - first
    if first:
        if first >= source.frames:
            raise BadMedia(f"audio: nothing from {start_s:g} s on; it lasts {source.frames / rate:.1f} s")
        source.seek(first)
    blocks, total = [], 0
    while left > 0:
        block_SC = source.read(min(left, max(1, _BLOCK // channels)), dtype="float32", always_2d=True)
        if not len(block_SC):
            break
        blocks.append(block_SC[:, 0] if block_SC.shape[1] == 1 else block_SC.mean(axis=1))
        left, total = left - len(block_SC), total + len(block_SC)
        _check_length(total, rate)
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _read_with_pyav(data: bytes, start_s: float, end_s: float) -> tuple[np.ndarray, int]:
    with open_container(data) as container:
        if not container.streams.audio:
            raise BadMedia("audio: no sound track")
        stream = container.streams.audio[0]
        stream.codec_context.thread_count = 1
        rate = int(stream.rate)
        # Planar floats, one row a channel: AAC's own layout, other codecs are converted.
        planar = av.AudioResampler(format="fltp")
        last = round(end_s * rate) if end_s >= 0 else None
        zero_s = _zero(container) if start_s > 0 or end_s >= 0 else None
        blocks: list[np.ndarray] = []
        fifo, alike, total, before = av.AudioFifo(), ("", 0), 0, 0
        for frame in container.decode(stream):
            if zero_s is not None and frame.time is not None:
                hole = round((frame.time - zero_s) * rate) - total
                if not total and hole < 0:
                    before, total = -hole, hole  # sound before the first picture
                elif hole > (GAP_S * rate if total else 0):
                    _check_length(total + hole, rate, frame.layout.nb_channels)
                    blocks += [_mono(fifo), np.zeros(hole, np.float32)]
                    fifo, total = av.AudioFifo(), total + hole
            total += frame.samples
            for part in [frame] if frame.format.name == "fltp" else planar.resample(frame):
                now = (part.layout.name, part.rate)
                if now != alike:  # FFmpeg's queue would read past a frame of fewer channels
                    blocks += [_mono(fifo)] if alike[1] else []
                    fifo, alike = av.AudioFifo(), now
                part.pts = None
                fifo.write(part)
            if last is not None and total >= last:
                break
            _check_length(total, rate, frame.layout.nb_channels)
    waveform_S = np.concatenate([*blocks, _mono(fifo)]) if blocks else _mono(fifo)
    return waveform_S[before + round(start_s * rate) : None if last is None else before + last], rate


def _zero(container: InputContainer) -> float:
    """The time stamp that a segment's seconds count from: of the first picture, else of the first sound."""
    for stream in (*moving_pictures(container), *container.streams.audio):
        if stream.start_time is not None and stream.time_base is not None:
            return float(stream.start_time * stream.time_base)
    return 0.0


def _mono(fifo: av.AudioFifo) -> np.ndarray:
    whole = fifo.read()
    if whole is None:
        return np.zeros(0, np.float32)
    waveform_CS = whole.to_ndarray()
    return waveform_CS[0] if len(waveform_CS) == 1 else waveform_CS.mean(axis=0, dtype=np.float32)


def _check_length(samples: int, rate: int, channels: int = 1) -> None:
    if samples > MAX_SECONDS * rate:
        raise BadMedia(f"audio: longer than {MAX_SECONDS:g} s")
    if samples > MAX_SAMPLES or samples * channels > 8 * MAX_SAMPLES:
        raise BadMedia(f"audio: more than {MAX_SAMPLES} samples")
    if not 0 < rate <= MAX_RATE:
        raise BadMedia(f"audio: {rate} samples a second; at most {MAX_RATE} are read")


def _resample(waveform_S: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    # soxr's "HQ": the speed of torchaudio's default, with aliases 100 dB down instead of 10 (speed notes 3).
    return waveform_S if rate == sample_rate else soxr.resample(waveform_S, rate, sample_rate, quality="HQ")


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
    hann_S, bands, fft_size = _mel_parts(spec.sample_rate, window, spec.mel_bins)
    windows_TS = np.lib.stride_tricks.sliding_window_view(padded_S, window)[::hop]
    mel_TF = np.empty((frames, spec.mel_bins), np.float32)
    for first in range(0, frames, _FRAMES):
        block = slice(first, first + _FRAMES)
        spectrum_TR = scipy.fft.rfft(windows_TS[block] * hann_S, fft_size)
        squares_TR = spectrum_TR.view(np.float32)
        np.square(squares_TR, out=squares_TR)
        for low, bins, weights_RF in bands:
            mel_TF[block, bins] = squares_TR[:, low : low + len(weights_RF)] @ weights_RF
    mel_TF += np.float32(LOG_OFFSET)
    return np.log(mel_TF, out=mel_TF)


def transform_sizes(spec: AudioInput) -> tuple[int, int, int]:
    """(FFT size, window, hop) of `log_mel`, in samples."""
    window = _window_samples(spec)
    return _mel_parts(spec.sample_rate, window, spec.mel_bins)[2], window, _hop(spec)


def _hop(spec: AudioInput) -> int:
    return max(1, round(spec.sample_rate * spec.hop_ms / 1000))


def _window_samples(spec: AudioInput) -> int:
    return max(1, round(spec.sample_rate * spec.window_ms / 1000))


_Band = tuple[int, slice, np.ndarray]
"""First column of the squares, mel bins, weights: the part of the mel matrix that some neighbouring bins need."""


@lru_cache(maxsize=8)
def _mel_parts(sample_rate: int, window: int, mel_bins: int) -> tuple[np.ndarray, list[_Band], int]:
    """Hann window, mel matrix in bands, FFT size.

    Each frequency is in two filters at most, so 98 % of the matrix are zeros: 8 bins at a time are multiplied
    with the frequencies that they reach. A frequency has two rows, for its real and its imaginary part squared.
    The FFT is the smallest power of two that holds the window and leaves no mel filter without a frequency,
    four windows at most: 512 for 64 bins at 16 kHz, 1024 for 128 (at 512 some low filters are empty).
    """
    fft_size = 1 << (window - 1).bit_length()
    while True:
        mel_RF = mel_filters(fft_size, LOWEST_HZ, sample_rate, mel_bins)
        if bool(mel_RF.any(axis=0).all()) or fft_size > 4 * window:
            break
        fft_size *= 2
    mel_RF = mel_RF.repeat(2, axis=0)
    bands = []
    for first in range(0, mel_bins, _BINS):
        bins = slice(first, min(first + _BINS, mel_bins))
        reached = np.flatnonzero(mel_RF[:, bins].any(axis=1))
        low, high = (int(reached[0]), int(reached[-1]) + 1) if len(reached) else (0, 1)
        bands.append((low, bins, np.ascontiguousarray(mel_RF[low:high, bins])))
    return periodic_hann(window), bands, fft_size


def mel_filters(fft_size: int, lowest_hz: float, sample_rate: int, mel_bins: int) -> np.ndarray:
    """mel_RF float32, [fft_size // 2 + 1, mel_bins]: triangles from `lowest_hz` to half the sample rate, equally
    wide on the HTK mel scale, each of height 1.

    Source: HTK; equal to torchaudio's `melscale_fbanks(norm=None, mel_scale="htk")`.
    """
    first_mel, last_mel = (2595.0 * math.log10(1.0 + hz / 700.0) for hz in (lowest_hz, sample_rate / 2))
    corners_hz = 700.0 * (10.0 ** (np.linspace(first_mel, last_mel, mel_bins + 2) / 2595.0) - 1.0)
    widths_hz, bins_hz = np.diff(corners_hz), np.linspace(0.0, sample_rate / 2, fft_size // 2 + 1)[:, None]
    rising, falling = (bins_hz - corners_hz[:-2]) / widths_hz[:-1], (corners_hz[2:] - bins_hz) / widths_hz[1:]
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def periodic_hann(window: int) -> np.ndarray:
    """[window] float32, as torch's `hann_window`: its period is the window."""
    if window == 1:
        return np.ones(1, np.float32)
    return (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(window) / window)).astype(np.float32)


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
