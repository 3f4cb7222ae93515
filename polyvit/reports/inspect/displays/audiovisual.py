"""Videos with their sound in `polyvit inspect`; each function is one of `Display`.

A view is a picture: of each of a few clips its middle frame, and under it the spectrogram of the same seconds, low
frequencies at the bottom. All spectrograms have the same colours, from digital silence (black) to `LOUD`.
Legend: S clips, T frames, H height, W width, C = 3 RGB, F mel bins.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from polyvit.config import AudiovisualTask, SequenceInput
from polyvit.data.decode import (
    SequencePlan,
    audio_header,
    clip_log_mel,
    container_size,
    read_sequence,
    video_header,
)
from polyvit.data.loading import Media
from polyvit.reports.inspect.display import Panel
from polyvit.reports.inspect.displays import pixels
from polyvit.reports.inspect.examine import FLAT, SILENT_DB, ZERO_DB
from polyvit.reports.inspect.finding import Finding, note_if_many
from polyvit.reports.inspect.task_report import TaskReport

TRAINING_VIEWS = 1
LEGEND = ", and where silence begins"
CLIPS = 6
"""Clips of a view, spread over the sequence."""
CELL, GAP = 96, 3
"""Pixels: height of a frame and of a spectrogram in a view; white between them."""
SILENCE, LOUD = math.log(1e-6), 6.0
"""Log-mel of black and of the brightest colour."""
STILL = 1e-3
"""Share of a video's pixels that differ from its first frame, below which nothing moves."""


def examine(
    media: Media, task: AudiovisualTask, spec: SequenceInput, segment_s: tuple[float, float], known: dict[str, Any]
) -> None:
    """form, width, height, seconds (of the segment), fps, frames, sample_rate, channels, level_db, contrast,
    brightest, still: those of the streams that the task reads."""
    data = _bytes(media)
    if task.loaded_streams != "audio":
        with contextlib.suppress(Exception):
            known.update(video_header(data))
    if task.loaded_streams != "visual":
        with contextlib.suppress(Exception):
            sound = audio_header(data)
            known.update(form=known.get("form", sound["form"]))
            known.update(sample_rate=sound["sample_rate"], channels=sound["channels"])
    if "seconds" not in known:
        with contextlib.suppress(Exception):
            known["seconds"] = container_size(data)[2]
    if known.get("seconds"):
        start_s, end_s = segment_s
        known["seconds"] = max(0.0, (min(end_s, known["seconds"]) if end_s >= 0 else known["seconds"]) - start_s)
    frames_STHWC, sound_SN = _read(data, task, spec, segment_s, _whole_frame)
    if sound_SN is not None:
        power = float(np.mean(np.square(sound_SN, dtype=np.float64)))
        known["level_db"] = 10 * math.log10(power) if power > 10 ** (ZERO_DB / 10) else ZERO_DB
    if frames_STHWC is not None:
        flat_THWC = frames_STHWC.reshape(-1, *frames_STHWC.shape[2:])
        differs = np.abs(flat_THWC.astype(np.int16) - flat_THWC[0]) > FLAT
        moving = float(differs.mean(axis=(1, 2, 3)).max())
        known.update(contrast=pixels.contrast(flat_THWC), brightest=int(flat_THWC.max()))
        known["still"] = known.get("frames", 0) > 1 and moving < STILL


def stored(media: Media, task: AudiovisualTask, spec: SequenceInput, segment_s: tuple[float, float]) -> np.ndarray:
    """A view, uint8 [H, W, 3], of whole frames and their sound, with the times of an evaluation."""
    frames_STHWC, sound_SN = _read(_bytes(media), task, spec, segment_s, _whole_frame)
    if frames_STHWC is None:
        frames_STHWC = np.zeros((spec.clips, 1, CELL, CELL, 3), np.uint8)
    spectrograms_STF = np.full(spec.arrays["spectrograms"].shape, SILENCE, np.float32)
    if sound_SN is not None:
        spectrograms_STF = clip_log_mel(
            sound_SN, spec.sample_rate, spec.spectrogram_frames, spec.mel_bins, task.augment.fill
        )
    return _view(frames_STHWC, spectrograms_STF)


def model_view(arrays: Mapping[str, np.ndarray], spec: SequenceInput) -> np.ndarray:
    """A view, uint8 [H, W, 3], of `clips` [S, T, H, W, 3] and `spectrograms` [S, time, F]."""
    return _view(arrays["clips"], arrays["spectrograms"].astype(np.float32))


def sheet_title(name: str, task: AudiovisualTask, spec: SequenceInput) -> str:
    """Which clips, and what is shown of them."""
    shown = f"{min(CLIPS, spec.clips)} of " if spec.clips > CLIPS else ""
    return (
        f"{name}: {shown}{spec.clips} clips of {task.augment.clip_seconds:.3g} s ({task.augment.spacing}): the"
        f" middle frame of each, and under it {spec.mel_bins} mel bins of the same seconds, low ones at the bottom"
    )


def size_words(stored: np.ndarray, spec: SequenceInput) -> str:
    """Clips and frames."""
    return f"{spec.clips} clips of {spec.frames} frames"


def fit(report: TaskReport) -> list[Finding]:
    """Videos shorter than the sequence, or than one clip; sound of a lower rate."""
    task, spec, seconds = report.task, report.spec, report.values("seconds")
    assert isinstance(task, AudiovisualTask)
    assert isinstance(spec, SequenceInput)
    clip_s, findings = task.augment.clip_seconds, []
    if task.augment.spacing == "contiguous":
        findings += note_if_many(
            report.name, "short", seconds + 0.05 < spec.clips * clip_s,
            f"videos shorter than {spec.clips} clips of {clip_s:.3g} s",
            "Their clips overlap evenly; fewer model.audiovisual.clips overlap less.",
        )  # fmt: skip
    findings += note_if_many(
        report.name, "shorter than a clip", seconds + 0.05 < clip_s,
        f"videos shorter than one clip ({clip_s:.3g} s)",
        "All their clips are the same: the last frame stands, then silence. Leave them out, or lower"
        f" tasks.{report.name}.augment.clip_seconds.",
    )  # fmt: skip
    return findings + note_if_many(
        report.name, "low rate", report.values("sample_rate") < spec.sample_rate,
        f"sound below the model's {spec.sample_rate} Hz",
        "It has no high frequencies: the model may tell classes by the device.",
    )  # fmt: skip


def panels(report: TaskReport) -> list[Panel]:
    """Sizes, lengths, frame rates, sample rates, levels."""
    task, spec, values = report.task, report.spec, report.values
    assert isinstance(task, AudiovisualTask)
    assert isinstance(spec, SequenceInput)
    return [
        *pixels.side_panels(report, spec.size),
        ("seconds", values("seconds"), [spec.clips * task.augment.clip_seconds], False),
        ("frames a second", values("fps"), [], False),
        ("sample rate, kHz", values("sample_rate") / 1000, [spec.sample_rate / 1000], False),
        ("level, dBFS", np.maximum(values("level_db"), ZERO_DB / 2), [SILENT_DB], False),
    ]


def _read(
    data: bytes,
    task: AudiovisualTask,
    spec: SequenceInput,
    segment_s: tuple[float, float],
    cutter: Callable[[int, int], Callable[[np.ndarray], np.ndarray]],
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Four frames of each clip, the third its middle, and its sound, at the times of an evaluation."""
    augment = task.augment
    plan = SequencePlan(
        spec.clips, 4, augment.clip_seconds, augment.spacing, spec.sample_rate, task.loaded_streams
    )
    return read_sequence(data, plan, cutter, None, segment_s)


def _whole_frame(height: int, width: int) -> Callable[[np.ndarray], np.ndarray]:
    """Frames of the height of a cell, at most three times as wide."""
    size = (max(1, min(3 * CELL, CELL * width // height)), CELL)
    return lambda frame_HWC: cv2.resize(np.ascontiguousarray(frame_HWC), size, interpolation=cv2.INTER_AREA)


def _view(frames_STHWC: np.ndarray, spectrograms_STF: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: frames in a row, spectrograms under them, as wide as they."""
    from matplotlib import colormaps

    chosen = np.linspace(0, len(frames_STHWC) - 1, min(CLIPS, len(frames_STHWC))).astype(int)
    height, width = frames_STHWC.shape[2:4]
    wide = max(1, CELL * width // height)
    columns = []
    for clip in chosen:
        frame_HWC = cv2.resize(frames_STHWC[clip, frames_STHWC.shape[1] // 2], (wide, CELL))
        level_FT = (spectrograms_STF[clip].T[::-1] - SILENCE) / (LOUD - SILENCE)
        colours = (colormaps["magma"](np.clip(level_FT, 0, 1))[..., :3] * 255).astype(np.uint8)
        sound_HWC = cv2.resize(colours, (wide, CELL), interpolation=cv2.INTER_NEAREST)
        across, down = (np.full((*shape, 3), 255, np.uint8) for shape in ((GAP, wide), (2 * CELL + GAP, GAP)))
        columns += [np.concatenate([frame_HWC, across, sound_HWC]), down]
    return np.concatenate(columns[:-1], axis=1)


def _bytes(media: Media) -> bytes:
    if isinstance(media, np.ndarray):
        raise TypeError("pixels without a file are for image tasks; this one is audiovisual")
    return media
