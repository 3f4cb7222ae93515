"""A picture of what a model looked at: attention rollout over a picture, a row of frames, or a spectrogram.

In: a file's tokens and a weight for each patch. Out: a PNG. Legend: N patches, P patch_dim; H height, W width.
"""

import textwrap
from pathlib import Path

import numpy as np

from polyvit.config import InputSection
from polyvit.errors import UserError
from polyvit.reports.inspect.display import display_of

MOST_FRAMES = 8
"""Frames of a clip that are shown, evenly spread."""
VISIBLE = 0.6
"""Opacity of the heat over what was given."""


def check_explainable(spec: InputSection, modality: str) -> None:
    """Raises UserError for inputs whose patches overlap, or that are no picture, clip or spectrogram."""
    if modality not in ("image", "video", "audio"):
        raise UserError(f"--explain draws over pictures, clips and spectrograms, not over inputs of {modality}")
    if tuple(spec.strides) != tuple(spec.patch):
        raise UserError(
            f"--explain: patches of model.{modality} overlap (stride {spec.strides}, patches {spec.patch});"
            " it draws where they do not"
        )


def draw_explanation(
    tokens_NP: np.ndarray, weights_N: np.ndarray, spec: InputSection, modality: str, title: str, path: Path
) -> None:
    """Write the PNG: what was given above, the same under its heat below.

    tokens_NP: of one view, uint8 pixels or log-mel. weights_N: of the patches, none negative; red is the largest.
    """
    import matplotlib  # start-up: matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # start-up: matplotlib

    panels = _panels(tokens_NP, spec, modality)
    grid = tuple(side // patch for side, patch in zip(spec.media_size, spec.patch, strict=True))
    heat = weights_N.reshape(grid) / weights_N.max()
    rows, columns = 2, len(panels)
    size = (max(4.0, 2.2 * columns), 4.8) if modality != "audio" else (8.0, 4.8)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for i, (panel, place) in enumerate(panels):
        over = heat[place] if modality == "video" else heat
        if modality == "audio":  # time to the right, low frequencies below
            panel, over = panel.T, over.T
        sides = {"origin": "lower", "aspect": "auto"} if modality == "audio" else {}
        height, width = panel.shape[:2]
        for axis in axes[:, i]:
            axis.imshow(panel, cmap="gray", **sides)
            axis.set_xticks([])
            axis.set_yticks([])
        extent = (-0.5, width - 0.5, -0.5, height - 0.5) if sides else (-0.5, width - 0.5, height - 0.5, -0.5)
        axes[1, i].imshow(
            over, cmap="inferno", alpha=VISIBLE, vmin=0, vmax=1, extent=extent, interpolation="bilinear", **sides
        )
    if modality == "audio":
        axes[1, 0].set_xlabel("time")
        axes[1, 0].set_ylabel("frequency")
    figure.suptitle(textwrap.fill(title, int(15 * size[0])), fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _panels(tokens_NP: np.ndarray, spec: InputSection, modality: str) -> list[tuple[np.ndarray, int]]:
    """(picture to draw, first index of its heat) of what was given."""
    display = display_of(spec)
    assert display is not None  # `check_explainable` has let the modality through
    view = display.model_view(tokens_NP, spec)
    if modality != "video":
        return [(view.astype(np.float32) if modality == "audio" else view, 0)]
    frames = len(view)
    chosen = np.unique(np.linspace(0, frames - 1, min(MOST_FRAMES, frames)).round().astype(int))
    return [(view[t], int(t) // spec.patch[0]) for t in chosen]
