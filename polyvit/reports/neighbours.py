"""A picture of clips and what lies near them: by picture, by sound, and across the two.

In: a `ClipSpaces` of P clips. Out: a PNG: a row for each of a few clips, its frame over its spectrogram, then its
nearest clips of other sequences in each space.
"""

from pathlib import Path
from typing import Any

import numpy as np

from polyvit.evaluation import ClipSpaces
from polyvit.reports.style import FAINT, INK, picture

COLUMNS = {
    "visual": "alike to look at",
    "audio": "alike to hear",
    "sound_to_picture": "what its sound calls for",
    "picture_to_sound": "what its picture calls for",
}
"""How neighbours are found, and what the picture calls it."""


def draw_neighbours(spaces: ClipSpaces, clips: list[int], count: int, path: Path, about: str = "") -> None:
    """PNG: a row for each of `clips` (places in `spaces`), with its `count` nearest clips in each space."""
    wide = 1 + len(COLUMNS) * count
    with picture(
        path, 0.3 + 0.95 * wide, 0.9 + 1.75 * len(clips), "Nearest clips of other videos", about
    ) as figure:
        gaps = [1.0, *([0.12, *([1.0] * count)] * len(COLUMNS))]
        grid = figure.add_gridspec(2 * len(clips), len(gaps), width_ratios=gaps, wspace=0.04, hspace=0.06)
        for row, clip in enumerate(clips):
            _clip(figure, grid, spaces, clip, row, 0, "the clip" if not row else "", INK)
            for c, (how, words) in enumerate(COLUMNS.items()):
                for n, other in enumerate(spaces.nearest(clip, how, count)):
                    column = 1 + c * (count + 1) + 1 + n
                    _clip(figure, grid, spaces, other, row, column, words if not (row or n) else "", FAINT)


def _clip(
    figure: Any, grid: Any, spaces: ClipSpaces, clip: int, row: int, column: int, words: str, colour: str
) -> None:
    """One clip: its middle frame, and its spectrogram with low sounds below."""
    frame = figure.add_subplot(grid[2 * row, column])
    frame.imshow(spaces.frames[clip], interpolation="nearest")
    sound = figure.add_subplot(grid[2 * row + 1, column])
    sound.imshow(np.asarray(spaces.spectrograms[clip]).T, origin="lower", aspect="auto", cmap="magma")
    if words:
        frame.set_title(words, fontsize=8, color=INK, loc="left")
    for axes in (frame, sound):
        axes.set_xticks([])
        axes.set_yticks([])
        for side in axes.spines.values():
            side.set_visible(True)
            side.set_color(colour)
