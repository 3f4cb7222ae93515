"""RandAugment and random erasing: operations by hand, draws that follow the generator, and what is refused."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image
from small import small_config

from polyvit.config import ImageInput, ImageTask
from polyvit.data.loading import example_arrays
from polyvit.data.transforms import example_rng, rand_augment, random_erasing
from polyvit.data.transforms.picture_augment import OPERATIONS
from polyvit.errors import UserError

GREYS_HWC = np.repeat(np.arange(0, 256, 16, dtype=np.uint8).reshape(4, 4, 1), 3, axis=2)


def applied(name: str, magnitude: float, image_HWC: np.ndarray = GREYS_HWC) -> np.ndarray:
    return np.asarray(OPERATIONS[name](Image.fromarray(image_HWC), magnitude))


def test_operations_by_hand() -> None:
    """At half the magnitude: solarize from 128, posterize to 6 bits, brightness 1.45, shift of 22.5 %."""
    grey = GREYS_HWC[..., 0].astype(int)
    assert (applied("solarize", 0.5)[..., 0] == np.where(grey < 128, grey, 255 - grey)).all()
    assert (applied("solarize", -0.5) == applied("solarize", 0.5)).all()  # it has no direction
    assert (applied("posterize", 0.5)[..., 0] == grey & 0b11111100).all()
    assert np.abs(applied("brightness", 0.5)[..., 0] - np.minimum(255, grey * 1.45)).max() <= 1
    assert np.abs(applied("brightness", -0.5)[..., 0] - grey * 0.55).max() <= 1
    wide_HWC = np.zeros((20, 20, 3), np.uint8)
    wide_HWC[:, 10] = 200
    moved = applied("translate_x", 5 / 9, wide_HWC)  # a quarter of 20 pixels: the picture moves left
    assert [moved[10, x].tolist() for x in (5, 10, 19)] == [[200] * 3, [0] * 3, [128] * 3]
    for name in ("identity", "rotate", "shear_x", "shear_y", "translate_x", "translate_y", "colour", "contrast"):
        assert np.abs(applied(name, 0.0).astype(int) - GREYS_HWC).max() <= 1, name


def test_draws_are_even_and_follow_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, float]] = []
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, lambda picture, m, name=name: calls.append((name, m)) or picture)
    for key in range(1400):
        rand_augment(GREYS_HWC, 2, 7.0, example_rng(1, "pets", 0, str(key)))
    counts = Counter(name for name, _ in calls)
    assert len(OPERATIONS) == len(counts) == 14
    assert min(counts.values()) > 150  # of 200
    assert max(counts.values()) < 250
    assert Counter(m for _, m in calls).keys() == {0.7, -0.7}
    first = calls[:2]
    rand_augment(GREYS_HWC, 2, 7.0, example_rng(1, "pets", 0, "0"))
    assert calls[-2:] == first


def test_erasing() -> None:
    blank_HWC = np.full((40, 30, 3), 7, np.uint8)
    erased = []
    for key in range(400):
        image_HWC = random_erasing(blank_HWC, 0.25, example_rng(1, "pets", 0, str(key)))
        inside_HW = (image_HWC != 7).any(-1)
        if inside_HW.any():
            rows, columns = np.flatnonzero(inside_HW.any(1)), np.flatnonzero(inside_HW.any(0))
            box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
            assert inside_HW.sum() >= 0.9 * box  # one rectangle; noise may be 7 by chance
            erased.append(box / 1200)
    assert 70 < len(erased) < 130  # of 100
    assert 0.01 < min(erased) < 0.05
    assert 0.25 < max(erased) < 0.37
    assert (blank_HWC == 7).all()


def test_a_task_uses_them_in_training_only_and_defaults_draw_as_before() -> None:
    spec = ImageInput(size=(16, 16), patch_size=(8, 8))
    pixels_HWC = np.random.Generator(np.random.Philox(1)).integers(0, 256, (40, 50, 3), np.uint8)
    base = {"layout": "imagefolder", "num_classes": 2, "steps": 1, "batch": 2}
    plain = ImageTask.model_validate(base)
    strong = ImageTask.model_validate({**base, "augment": {"randaugment_ops": 2, "random_erasing": 1.0}})

    def tokens(task: ImageTask, training: bool = True) -> np.ndarray:
        rng = example_rng(3, "a", 0, "b") if training else None
        return example_arrays(pixels_HWC, task, spec, rng)["tokens"]

    assert (tokens(strong) == tokens(strong)).all()
    assert (tokens(strong) != tokens(plain)).any()
    assert (tokens(strong, False) == tokens(plain, False)).all()


def test_what_does_not_apply_is_refused() -> None:
    with pytest.raises(UserError) as refused:
        small_config(
            "tasks.picture.layout=tokens", "tasks.picture.augment.randaugment_ops=2",
            "tasks.picture.loss=multi_margin", "tasks.picture.cutmix_alpha=1",
        )  # fmt: skip
    text = "\n".join(refused.value.problems)
    assert "tasks.picture.augment.randaugment_ops changes pictures, and layout tokens holds patches" in text
    assert "tasks.picture.loss=multi_margin takes no mixed labels" in text
    with pytest.raises(UserError, match="cutmix_alpha") as unknown:
        small_config("tasks.clip.cutmix_alpha=1")
    assert "tasks.clip" in str(unknown.value) + "".join(unknown.value.problems)
