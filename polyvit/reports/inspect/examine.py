"""What one example is: what its header and its decoded media tell, and what is wrong with it.

In: an example's media, as `data.source.load` gives them, and its task. Out: `MediaInfo`. Called in
a child process (`examine_worker.py`), because media may be hostile; it decodes with the functions of training.
Which examples are looked at: `sample_positions`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from polyvit.config import MODALITIES, InputSection, TaskConfig
from polyvit.data.loading import Media, example_arrays
from polyvit.data.transforms import example_rng
from polyvit.errors import BadMedia
from polyvit.reports.inspect.display import display_of

SILENT_DB = -60.0
"""A recording whose RMS is below this is silent: a thousandth of full scale, under a quiet room's noise."""
ZERO_DB = -200.0
"""Stands for the level of digital zero."""
FLAT = 8
"""A picture shows nothing where each colour channel spans no more levels than this: JPEG and H.264 turn one
colour into a few neighbouring ones."""
BLACK = 16
"""No pixel of a black picture or video is as bright as this; video black is 16 in limited range."""
_PAGE = (b"<!doctype html", b"<html", b"<?xml")  # what a failed download leaves under a media file's name


@dataclass(frozen=True)
class MediaInfo:
    """One example; None where it has no such thing or it is not known.

    form: file format or codec. seconds: of the example's own segment. fps: frames a second; frames: of the whole
    file. sample_rate: Hz. level_db: RMS in dBFS, ZERO_DB for digital zero. contrast: largest difference within a
    colour, of 255. brightest: of 255. still: every frame of the video is the same. reason: why it cannot be
    used; "" where it can.
    """

    bytes: int | None = None
    form: str | None = None
    width: int | None = None
    height: int | None = None
    seconds: float | None = None
    fps: float | None = None
    frames: int | None = None
    sample_rate: int | None = None
    channels: int | None = None
    level_db: float | None = None
    contrast: int | None = None
    brightest: int | None = None
    still: bool | None = None
    reason: str = ""

    @property
    def silent(self) -> bool:
        """Of a recording: nothing is to be heard."""
        return self.level_db is not None and self.level_db < SILENT_DB

    @property
    def flat(self) -> bool:
        """Of a picture or video: one colour, or black."""
        return self.contrast is not None and (self.contrast <= FLAT or (self.brightest or 0) < BLACK)

    def document(self) -> dict[str, Any]:
        """What is known, as data."""
        return {key: value for key, value in asdict(self).items() if value is not None and value != ""}


def examine(
    media: Media, task: TaskConfig, spec: InputSection, start_s: float = 0.0, end_s: float = -1.0
) -> MediaInfo:
    """What is known of one example. Never raises for what is in the media.

    media: encoded bytes, or an image's pixels uint8 [H, W, 3]. task, spec: its task, and the model's input for it.
    start_s, end_s: the example's segment in seconds; end_s < 0: to the end (see `example_arrays`).

    Raises TypeError where task, spec and media are of different modalities.
    """
    known: dict[str, Any] = {}
    entry = MODALITIES.get(task.modality)
    if entry and not isinstance(spec, entry.input):
        raise TypeError(f"a task of modality {task.modality} cannot take a {type(spec).__name__}")
    try:
        display = display_of(spec)
        if display is None:
            example_arrays(media, task, spec, None, start_s, end_s)
        else:
            display.examine(media, task, spec, (start_s, end_s), known)
    except BadMedia as error:
        page = isinstance(media, bytes) and media[:64].lstrip().lower().startswith(_PAGE)
        known["reason"] = error.reason + (" (it is a web page)" if page else "")
    except MemoryError:
        known["reason"] = "decoding needs too much memory"
    return MediaInfo(bytes=len(media) if isinstance(media, bytes) else None, **known)


def sample_positions(sizes: dict[str, int], most: int | None, seed: int, name: str) -> dict[str, Sequence[int]]:
    """Which examples of each split are decoded: ascending positions, at most `most` over all splits; None: all.

    Splits share alike, and what a small one leaves goes to the others. The same for the same seed and task.
    """
    if most is None or sum(sizes.values()) <= most:
        return {split: range(size) for split, size in sizes.items()}
    shares: dict[str, int] = {}
    left = most
    for i, split in enumerate(sorted(sizes, key=lambda split: sizes[split])):
        shares[split] = min(sizes[split], left // (len(sizes) - i))
        left -= shares[split]
    drawn = {}
    for split, size in sizes.items():
        rng = example_rng(seed, name, 0, f"inspect {split}")
        drawn[split] = np.sort(rng.choice(size, shares[split], replace=False)).tolist()
    return drawn
