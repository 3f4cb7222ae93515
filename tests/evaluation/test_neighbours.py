"""Nearest clips: by picture, by sound, and across; never of the same sequence."""

import numpy as np
import pytest
import torch
from avbert_small import contrastive, minibatch

from polyvit.errors import UserError
from polyvit.evaluation import ClipSpaces, clip_spaces
from polyvit.model import build_model

pytestmark = pytest.mark.usefixtures("one_thread")


def test_nearest_by_hand() -> None:
    """Three sequences of one clip; the sound of the first calls for the picture of the third."""
    pictures = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    queries = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    spaces = ClipSpaces(
        {"visual": pictures, "audio": pictures}, {"visual": queries, "audio": queries},
        np.zeros((3, 2, 2, 3), np.uint8), np.zeros((3, 2, 2)), np.arange(3), ("a", "b", "c"),
    )  # fmt: skip
    assert spaces.nearest(0, "visual", 1) == [1]
    assert spaces.nearest(0, "sound_to_picture", 5) == [2, 1]
    assert spaces.hit_rate("visual", 2, seed=0) == pytest.approx(1 / 3)


def test_clips_of_a_model() -> None:
    config = contrastive()
    spaces = clip_spaces(build_model(config, seed=1), "one", [minibatch(config, "one", step) for step in (1, 2)])
    assert len(spaces.sequences) == len(spaces.frames) == len(spaces.spectrograms) == 24
    assert spaces.queries["audio"].shape == spaces.embeddings["visual"].shape == (24, 16)
    assert all(spaces.sequences[n] != spaces.sequences[4] for n in spaces.nearest(4, "audio", 24))


def test_late_fusion_has_nothing_to_look_across_with() -> None:
    config = contrastive(fusion="late")
    with pytest.raises(UserError, match="no multimodal transformer"):
        clip_spaces(build_model(config, seed=1), "one", [minibatch(config, "one", 1)])
