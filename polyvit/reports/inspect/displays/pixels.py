"""What pictures and clips share."""

import numpy as np

from polyvit.reports.inspect.display import Panel
from polyvit.reports.inspect.task_report import TaskReport


def contrast(pixels: np.ndarray) -> int:
    """Largest range of one colour, over all pixels of all frames. pixels: [..., 3]."""
    axes = tuple(range(pixels.ndim - 1))
    return int(np.max(np.ptp(pixels, axis=axes)))


def side_panels(report: TaskReport, size: tuple[int, int]) -> list[Panel]:
    """Smaller sides and shapes, beside those of the model's input `size` = (height, width)."""
    width, height = report.values("width"), report.values("height")
    return [
        ("smaller side, pixels", np.minimum(width, height), [min(size)], True),
        ("width / height", width / np.maximum(1, height), [size[1] / size[0]], False),
    ]


def by(size: tuple[int, int]) -> str:
    """(height, width) as people say it: width x height."""
    return f"{size[1]} x {size[0]}"


def size_words(stored: np.ndarray) -> str:
    """Width and height of image_HWC or video_THWC."""
    return f"{stored.shape[-2]} x {stored.shape[-3]} pixels"
