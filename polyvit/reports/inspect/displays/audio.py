"""Recordings in `polyvit inspect`; each function is one of `Display`.

Legend: S samples, T frames, F mel bins, N tokens, P patch_dim.
"""

import contextlib
import math
from typing import Any

import numpy as np

from polyvit.config import AudioInput, AudioTask
from polyvit.data.decode import audio_header, decode_waveform, log_mel
from polyvit.data.loading import Media
from polyvit.data.transforms import unpatchify_audio
from polyvit.reports.inspect.display import Panel
from polyvit.reports.inspect.examine import SILENT_DB, ZERO_DB
from polyvit.reports.inspect.finding import Finding, note_if_many
from polyvit.reports.inspect.task_report import TaskReport

TRAINING_VIEWS = 3
LEGEND = ", and where silence begins"


def examine(
    media: Media, task: AudioTask, spec: AudioInput, segment_s: tuple[float, float], known: dict[str, Any]
) -> None:
    """form, sample_rate, channels, seconds (of the segment), level_db."""
    data = _bytes(media)
    with contextlib.suppress(Exception):
        known.update(audio_header(data))
    waveform_S = decode_waveform(data, spec.sample_rate, *segment_s)
    power = float(np.mean(np.square(waveform_S, dtype=np.float64)))
    level_db = 10 * math.log10(power) if power > 10 ** (ZERO_DB / 10) else ZERO_DB
    known.update(seconds=len(waveform_S) / spec.sample_rate, level_db=level_db)


def stored(media: Media, task: AudioTask, spec: AudioInput, segment_s: tuple[float, float]) -> np.ndarray:
    """spectrogram_TF, float32, of the whole recording, normalised."""
    waveform_S = decode_waveform(_bytes(media), spec.sample_rate, *segment_s)
    return (log_mel(waveform_S, spec) - spec.mean) / spec.std


def model_view(tokens_NP: np.ndarray, spec: AudioInput) -> np.ndarray:
    """spectrogram_TF, float16."""
    return unpatchify_audio(tokens_NP, (spec.frames, spec.mel_bins), spec.patch_size)


def sheet_title(name: str, task: AudioTask, spec: AudioInput) -> str:
    """The length of the model's window."""
    return (
        f"{name}: whole recordings, and the {spec.frames * spec.hop_ms / 1000:g} s windows that the model sees; "
        f"{spec.mel_bins} mel bins, low ones at the bottom"
    )


def size_words(stored: np.ndarray, spec: AudioInput) -> str:
    """Seconds."""
    return f"{len(stored) * spec.hop_ms / 1000:.1f} s"


def fit(report: TaskReport) -> list[Finding]:
    """Recordings shorter than the model's window, or of a lower rate."""
    spec, name = report.spec, report.name
    assert isinstance(spec, AudioInput)
    window_s = spec.frames * spec.hop_ms / 1000
    findings = note_if_many(name, "short", report.values("seconds") < 0.5 * window_s,
                            f"recordings shorter than half the model's window ({window_s:g} s)",
                            "They start again at their end; model.audio.frames could be smaller.")  # fmt: skip
    return findings + note_if_many(
        name, "low rate", report.values("sample_rate") < spec.sample_rate,
        f"recordings below the model's {spec.sample_rate} Hz",
        "They have no high frequencies: the model may tell classes by the device.",
    )  # fmt: skip


def panels(report: TaskReport) -> list[Panel]:
    """Lengths, rates, channels, levels."""
    spec, values = report.spec, report.values
    assert isinstance(spec, AudioInput)
    return [
        ("seconds", values("seconds"), [spec.frames * spec.hop_ms / 1000], False),
        ("sample rate, kHz", values("sample_rate") / 1000, [spec.sample_rate / 1000], False),
        ("channels", values("channels"), [], True),
        ("level, dBFS", np.maximum(values("level_db"), ZERO_DB / 2), [SILENT_DB], False),
    ]


def _bytes(media: Media) -> bytes:
    if isinstance(media, np.ndarray):
        raise TypeError("pixels without a file are for image tasks; this one is audio")
    return media
