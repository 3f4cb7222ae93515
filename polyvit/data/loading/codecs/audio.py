"""Recordings to tokens. See `polyvit/data/loading/example.py` for the two functions.

Legend: S samples, T time frames, F mel bins, V views (windows), N tokens, P patch_dim.
"""

from collections.abc import Sequence

import numpy as np

from polyvit.config import AudioInput, AudioTask
from polyvit.data.decode import audio
from polyvit.data.loading.codecs.views import bytes_only, view_times
from polyvit.data.loading.example import AnyMedia, Waveform
from polyvit.data.transforms import View, patchify_audio


def training_arrays(
    media: AnyMedia,
    task: AudioTask,
    spec: AudioInput,
    rng: np.random.Generator,
    segment_s: tuple[float, float] = (0.0, -1.0),
) -> dict[str, np.ndarray]:
    """tokens [1, N, P] float16 of one augmented window of the normalised log-mel."""
    waveform_S = audio.decode_waveform(bytes_only(media, task), spec.sample_rate, *segment_s)
    spectrogram_TF = audio.train_waveform(waveform_S, spec, task.augment, rng)
    return {"tokens": patchify_audio(spectrogram_TF.astype(np.float16), spec.patch_size, spec.stride)[None]}


def evaluation_arrays(
    media: AnyMedia, task: AudioTask, spec: AudioInput, segment_s: tuple[float, float] = (0.0, -1.0)
) -> dict[str, np.ndarray]:
    """tokens [V, N, P] float16 of every evaluation window; the recording is decoded once."""
    return {"tokens": window_tokens(media, spec, segment_s, view_times(task.eval_clips))}


def window_tokens(
    media: AnyMedia, spec: AudioInput, segment_s: tuple[float, float], views: Sequence[View | None]
) -> np.ndarray:
    """tokens [views, N, P] float16 of windows of one recording, without augmentation.

    segment_s and each of views: as `codecs.video.clip_tokens`; a recording that needs no decoding counts whole.
    """
    if isinstance(media, bytes):
        waveform_S = audio.decode_waveform(media, spec.sample_rate, *segment_s)
    elif isinstance(media, Waveform):
        waveform_S = audio.checked_waveform(media.samples, media.rate, spec.sample_rate)
    else:
        raise TypeError(f"pixels {media.dtype}{list(media.shape)} are no recording; this task is audio")
    windows = [audio.eval_waveform(waveform_S, spec, view).astype(np.float16) for view in views]
    return np.stack([patchify_audio(window_TF, spec.patch_size, spec.stride) for window_TF in windows])


def preparation(task: AudioTask, spec: AudioInput) -> str:
    """Rate, log-mel and window of an evaluation, in words."""
    return (
        f"mono at {spec.sample_rate} Hz; Hann windows of {spec.window_ms:g} ms every {spec.hop_ms:g} ms, "
        f"power spectrum, {spec.mel_bins} HTK mel filters from 20 Hz, log(mel + 1e-6); the middle "
        f"{spec.frames} frames, a short recording starts again. Mean and deviation are taken inside"
    )
