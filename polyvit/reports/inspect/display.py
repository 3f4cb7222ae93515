"""What `polyvit inspect` knows of a modality: the functions of the module that its input section names.

Legend: N tokens, P patch_dim.
"""

import importlib
from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np

from polyvit.config import InputSection
from polyvit.data.loading import Media

Panel = tuple[str, np.ndarray, Sequence[float], bool]
"""A distribution: title, numbers, where to draw a dashed line, whether they are whole numbers."""


class Display(Protocol):
    """What such a module has. segment_s: (start, end) seconds of the file, end < 0 is its end."""

    TRAINING_VIEWS: int
    """Training views of an example on a contact sheet: as many as a reader can tell apart side by side."""
    LEGEND: str
    """What to add to the legend of the distributions."""

    def examine(
        self, media: Media, task: Any, spec: Any, segment_s: tuple[float, float], known: dict[str, Any]
    ) -> None:
        """Fill `known`, fields of a `MediaInfo`, as far as header and decoder come. Raises BadMedia."""

    def stored(self, media: Media, task: Any, spec: Any, segment_s: tuple[float, float]) -> np.ndarray:
        """The media before anything is done to them: image_HWC, video_THWC or spectrogram_TF. Raises BadMedia."""

    def model_view(self, arrays: Any, spec: Any) -> np.ndarray:
        """An array like `stored`'s, put together from the tokens_NP of one view; patches must not overlap.

        arrays: the tokens; of a modality that has other arrays, all of them by name.
        """

    def sheet_title(self, name: str, task: Any, spec: Any) -> str:
        """What a contact sheet shows, in a sentence."""

    def size_words(self, stored: np.ndarray, spec: Any) -> str:
        """Size or length of what `stored` gave."""

    def fit(self, report: Any) -> list[Any]:
        """`Finding`s about media that do not fit the model's input. report: a `TaskReport`."""

    def panels(self, report: Any) -> list[Panel]:
        """Distributions to draw. report: a `TaskReport`."""


def display_of(spec: InputSection) -> Display | None:
    """The module that shows examples of an input section; None where the modality has none."""
    return None if spec.display is None else cast(Display, importlib.import_module(spec.display))
