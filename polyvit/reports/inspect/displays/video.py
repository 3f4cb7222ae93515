"""Clips in `polyvit inspect`; each function is one of `Display`.

Legend: T frames, H height, W width, C = 3 RGB, N tokens, P patch_dim.
"""

import contextlib
from typing import Any

import numpy as np

from polyvit.config import VideoInput, VideoTask
from polyvit.data.decode import read_clip, video_header
from polyvit.data.loading import Media
from polyvit.data.transforms import unpatchify_video
from polyvit.reports.inspect.display import Panel
from polyvit.reports.inspect.displays import pixels
from polyvit.reports.inspect.examine import FLAT
from polyvit.reports.inspect.finding import Finding, note_if_many
from polyvit.reports.inspect.task_report import TaskReport

TRAINING_VIEWS = 2
LEGEND = ""
CLIP_FRAMES = 16
"""Frames of a video, spread over its length, that are decoded."""
STILL = 1e-3
"""Share of a clip's pixels that differ from its first frame, below which nothing moves: 13 x 13 of 420 x 420."""


def examine(
    media: Media, task: VideoTask, spec: VideoInput, segment_s: tuple[float, float], known: dict[str, Any]
) -> None:
    """form, width, height, seconds (of the segment), fps, frames, contrast, brightest, still."""
    data = _bytes(media)
    with contextlib.suppress(Exception):
        header = video_header(data)
        if "seconds" in header:
            header["seconds"] = _length(header["seconds"], segment_s)
        known.update(header)
    count, stride = min(CLIP_FRAMES, spec.frames), task.augment.frame_stride
    if known.get("seconds") and known.get("fps"):
        stride = max(1, int(known["seconds"] * known["fps"]) // count)
    clip_THWC = read_clip(data, count, stride, None, *segment_s)
    known.update(contrast=pixels.contrast(clip_THWC), brightest=int(clip_THWC.max()))
    known["still"] = known.get("frames", 0) > 1 and _moving(clip_THWC) < STILL


def stored(media: Media, task: VideoTask, spec: VideoInput, segment_s: tuple[float, float]) -> np.ndarray:
    """video_THWC, uint8: the frames of the middle clip as they are in the file."""
    return read_clip(_bytes(media), spec.frames, task.augment.frame_stride, None, *segment_s)


def model_view(tokens_NP: np.ndarray, spec: VideoInput) -> np.ndarray:
    """video_THWC, uint8."""
    return unpatchify_video(tokens_NP, (spec.frames, *spec.size), spec.tubelet_size)


def sheet_title(name: str, task: VideoTask, spec: VideoInput) -> str:
    """Which frames, and the size that the model sees."""
    return (
        f"{name}: first, middle and last of {spec.frames} frames at stride {task.augment.frame_stride}, as "
        f"stored, and as the model sees them at {pixels.by(spec.size)} pixels"
    )


def size_words(stored: np.ndarray, spec: VideoInput) -> str:
    """Width x height."""
    return pixels.size_words(stored)


def fit(report: TaskReport) -> list[Finding]:
    """Clips shorter than the model's."""
    task, spec = report.task, report.spec
    assert isinstance(task, VideoTask)
    assert isinstance(spec, VideoInput)
    stride = task.augment.frame_stride
    span = (spec.frames - 1) * stride + 1
    words = f"clips shorter than {span} frames ({spec.frames} at stride {stride})"
    do = "They start again at their end; a smaller augment.frame_stride repeats less."
    return note_if_many(report.name, "short", _clip_frames(report) + 0.5 < span, words, do)


def panels(report: TaskReport) -> list[Panel]:
    """Sizes, shapes, lengths and frame rates."""
    assert isinstance(report.spec, VideoInput)
    sizes = pixels.side_panels(report, report.spec.size)
    lengths: Panel = ("seconds", report.values("seconds"), [], False)
    return [*sizes, lengths, ("frames a second", report.values("fps"), [], False)]


def _bytes(media: Media) -> bytes:
    if isinstance(media, np.ndarray):
        raise TypeError("pixels without a file are for image tasks; this one is video")
    return media


def _length(seconds: float, segment_s: tuple[float, float]) -> float:
    """Of a segment of something that lasts `seconds`."""
    start_s, end_s = segment_s
    return max(0.0, (min(end_s, seconds) if end_s >= 0 else seconds) - start_s)


def _moving(clip_THWC: np.ndarray) -> float:
    """The largest share of pixels that differ from the first frame, by more than coding makes them differ."""
    first_HWC = clip_THWC[0].astype(np.int16)
    return max(float(np.mean(np.abs(frame_HWC - first_HWC) > FLAT)) for frame_HWC in clip_THWC)


def _clip_frames(report: TaskReport) -> np.ndarray:
    """float [n]: frames of each clip's segment where headers give length and rate, else of its file."""
    seconds, fps = report.values("seconds"), report.values("fps")
    return seconds * fps if len(seconds) == len(fps) > 0 else report.values("frames")
