"""Losses against torch's own, mixup, pairs; exact small values."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polyvit.data.transforms.patchify import patchify_audio
from polyvit.objectives.losses import example_losses, mixup, neighbours


@pytest.fixture
def logits_BK() -> torch.Tensor:
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_softmax_is_torch_cross_entropy(logits_BK: torch.Tensor, smoothing: float) -> None:
    targets = torch.arange(7) % 5
    expected = F.cross_entropy(logits_BK, targets, reduction="none", label_smoothing=smoothing)
    found = example_losses(logits_BK, F.one_hot(targets, 5), "softmax", smoothing)
    torch.testing.assert_close(found, expected)


def test_softmax_takes_soft_targets(logits_BK: torch.Tensor) -> None:
    soft = torch.softmax(torch.randn(7, 5, generator=torch.Generator().manual_seed(1)), dim=-1)
    torch.testing.assert_close(
        example_losses(logits_BK, soft, "softmax"), F.cross_entropy(logits_BK, soft, reduction="none")
    )


def test_sigmoid_is_torch_bce_summed_over_classes(logits_BK: torch.Tensor) -> None:
    labels = torch.tensor([[1, 0, 1, 0, 0]]).expand(7, 5)
    bce = torch.nn.BCEWithLogitsLoss(reduction="sum")
    expected = torch.stack([bce(row, label.float()) for row, label in zip(logits_BK, labels, strict=True)])
    torch.testing.assert_close(example_losses(logits_BK, labels, "sigmoid"), expected)


def test_sigmoid_smoothing_is_y_times_1_minus_s_plus_s_over_K() -> None:
    labels, smooth = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.9, 0.1]])
    logits = torch.tensor([[2.0, -1.0]])
    torch.testing.assert_close(
        example_losses(logits, labels, "sigmoid", 0.2), example_losses(logits, smooth, "sigmoid")
    )


def test_values_by_hand() -> None:
    labels = torch.tensor([[0, 1, 0, 0]])
    zero = torch.zeros(1, 4)
    assert example_losses(zero, labels, "softmax").item() == pytest.approx(math.log(4))
    assert example_losses(zero, labels, "sigmoid").item() == pytest.approx(4 * math.log(2))
    no_label = torch.zeros(1, 4)
    assert example_losses(zero, no_label, "softmax").item() == 0.0


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_large_logits_stay_finite_and_bfloat16_is_lifted(kind: str) -> None:
    logits = torch.tensor([[1e4, -1e4]], dtype=torch.bfloat16)
    found = example_losses(logits, torch.tensor([[0, 1]]), kind)  # type: ignore[arg-type]
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    assert found.item() > 1e4


def test_mixup_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0], [10.0, 20.0]])
    mixed = mixup(x, torch.tensor([1, 0]), 0.75)
    assert mixed.tolist() == [[3.25, 6.5], [7.75, 15.5]]
    assert torch.equal(mixup(x, torch.tensor([1, 0]), 1.0), x)


@pytest.mark.parametrize(
    ("batch", "partners"), [(0, []), (1, [0]), (2, [1, 0]), (5, [1, 0, 3, 2, 4]), (6, [1, 0, 3, 2, 5, 4])]
)
def test_neighbours(batch: int, partners: list[int]) -> None:
    assert neighbours(batch).tolist() == partners


@pytest.mark.parametrize("stride", [None, (4, 8)])
def test_mixing_tokens_is_mixing_spectrograms(stride: tuple[int, int] | None) -> None:
    rng = np.random.default_rng(0)
    spectrograms_BTF = rng.normal(size=(5, 24, 16)).astype(np.float32)
    partner, weight = neighbours(5), 0.3
    mixed_BTF = mixup(torch.from_numpy(spectrograms_BTF), partner, weight).numpy()
    of_mixed = np.stack([patchify_audio(s, (8, 8), stride) for s in mixed_BTF])
    tokens = torch.from_numpy(np.stack([patchify_audio(s, (8, 8), stride) for s in spectrograms_BTF]))
    # The same numbers meet in the same operations, only in another place: equal to the last bit.
    assert np.array_equal(mixup(tokens, partner, weight).numpy(), of_mixed)
