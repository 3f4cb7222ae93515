"""One example as a picture: what the model saw of it, put together from its tokens.

In: the arrays of one evaluation view. Out: uint8 [H, W, 3], or a spectrogram, float [T, F].
Legend: H height, W width, T time, F mel bins.
"""

from collections.abc import Mapping

import numpy as np

from polyvit.config import InputSection
from polyvit.reports.inspect.display import display_of


def drawn_input(spec: InputSection, decoded_before: bool) -> InputSection | None:
    """The input to decode for, so that `panel` can draw it; None where nothing can be drawn.

    Overlapping patches cannot be joined, so they are decoded as one patch, which media that were decoded before
    (layout `tokens`) do not allow. A modality of the user's own may have no display.
    """
    if display_of(spec) is None:
        return None
    if spec.strides == spec.patch:
        return spec
    return None if decoded_before else spec.as_one_patch()


def panel(arrays: Mapping[str, np.ndarray], spec: InputSection) -> np.ndarray:
    """The picture of one view: of a clip its middle frame, of a sound its spectrogram.

    arrays: the view's, by name. spec: what `drawn_input` gave.
    """
    display = display_of(spec)
    if display is None:
        raise TypeError(f"{type(spec).__name__} has no display: its examples cannot be drawn")
    view = display.model_view(arrays["tokens"] if set(arrays) == {"tokens"} else arrays, spec)
    return view[len(view) // 2] if view.ndim == 4 else view
