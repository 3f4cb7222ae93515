"""CutMix beside mixup: boxes and labels by hand, the switch, and ranks that mix alike."""

import numpy as np
import pytest
import torch
from small import small_config

from polyvit.data.transforms import patchify_image
from polyvit.training.mixing import cutmix_box, mixed, mixup_weight

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_minibatch_by_hand() -> None:
    """Pictures of one number each: a token's pixels are the partner's inside of the box; labels by its area."""
    config = small_config("tasks.picture.cutmix_alpha=1")
    step = next(n for n in range(1, 50) if 0.3 < cutmix_box(16, 16, 1.0, config.seed, n, "picture")[2] < 0.8)
    rows, columns, weight = cutmix_box(16, 16, 1.0, config.seed, step, "picture")
    pictures = [np.full((16, 16, 3), n, np.float32) for n in (1, 2, 3)]
    tokens = torch.tensor(np.stack([patchify_image(p, (8, 8)) for p in pictures]))
    labels = torch.eye(3, 5)
    result, mixed_labels = mixed({"tokens": tokens}, labels, config, step, "picture")
    for i, partner in enumerate((1, 0, 2)):  # an odd last one mixes with itself
        expected = pictures[i].copy()
        expected[rows, columns] = pictures[partner][rows, columns]
        assert (result["tokens"][i].numpy() == patchify_image(expected, (8, 8))).all()
        torch.testing.assert_close(mixed_labels[i], weight * labels[i] + (1 - weight) * labels[partner])
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    assert weight == pytest.approx(1 - area / 256)
    assert mixed_labels.sum(1) == pytest.approx([1, 1, 1])


def test_boxes_lie_inside_and_weights_follow() -> None:
    boxes = [cutmix_box(20, 30, 1.0, 0, step, "a") for step in range(2000)]
    for rows, columns, weight in boxes:
        assert 0 <= rows.start <= rows.stop <= 20
        assert 0 <= columns.start <= columns.stop <= 30
        assert weight == 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / 600
    assert np.mean([weight for *_, weight in boxes]) > 0.55  # boxes are cut off at the edges
    assert boxes[3] == cutmix_box(20, 30, 1.0, 0, 3, "a") != cutmix_box(20, 30, 1.0, 0, 3, "b")


def test_the_switch_chooses_one_of_both() -> None:
    keys = ("tasks.picture.mixup_alpha=0.4", "tasks.picture.cutmix_alpha=1", "tasks.picture.cutmix_switch=0.25")
    config, labels = small_config(*keys), torch.eye(2, 5)
    tokens = torch.stack([torch.zeros(4, 192), torch.ones(4, 192)])
    mixups = 0
    for step in range(1, 201):
        _, mixed_labels = mixed({"tokens": tokens}, labels, config, step, "picture")
        mixups += float(mixed_labels[0, 0]) == pytest.approx(mixup_weight(0.4, config.seed, step, "picture"))
    assert 130 < mixups < 170  # of 150


def test_parts_of_a_minibatch_mix_as_the_whole() -> None:
    """What a rank or a microbatch has of a minibatch, in whole pairs."""
    config = small_config("tasks.picture.cutmix_alpha=1")
    generator = torch.Generator().manual_seed(0)
    tokens, labels = torch.rand((6, 4, 192), generator=generator), torch.eye(6, 5)
    whole, whole_labels = mixed({"tokens": tokens}, labels, config, 7, "picture")
    for part in (slice(0, 2), slice(2, 6)):
        own, own_labels = mixed({"tokens": tokens[part]}, labels[part], config, 7, "picture")
        assert torch.equal(own["tokens"], whole["tokens"][part])
        assert torch.equal(own_labels, whole_labels[part])
