"""Negatives, InfoNCE and the pre-training objective: exact values, what is drawn, and that it learns."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from avbert_small import contrastive, minibatch

from polyvit.config import ContrastiveConfig, validate_config
from polyvit.distributed import SingleProcess
from polyvit.errors import UserError
from polyvit.evaluation import evaluate
from polyvit.model import build_model, parameters_of
from polyvit.model.avbert import draw
from polyvit.objectives.contrastive import info_nce, sample_negatives, uniform
from polyvit.training import train_step
from polyvit.training.curves import Curves
from polyvit.training.microbatch import FakePass, derive_microbatches
from polyvit.training.optim import build_optimiser
from polyvit.training.step import parts

pytestmark = pytest.mark.usefixtures("one_thread")


def test_info_nce_by_hand() -> None:
    """Scores 2, 0 and 4 at temperature 2: -log(e / (e + 1 + e^2)); the positive is not the best."""
    query, positive = torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.0]])
    negatives = torch.tensor([[[0.0, 0.0], [1.0, 3.0]]])
    losses, hits = info_nce(query, positive, negatives, temperature=2.0)
    assert float(losses) == pytest.approx(-math.log(math.e / (math.e + 1 + math.e**2)))
    assert not bool(hits)
    assert bool(info_nce(query, positive, negatives[:, :1], 2.0)[1])


@pytest.mark.parametrize(("sampling", "likelier"), [("similar", 1), ("dissimilar", 4), ("random", None)])
def test_what_is_drawn_follows_the_distances(sampling: str, likelier: int | None) -> None:
    """Distances 0 (itself), 1, 2, 3, 4: one of four is drawn, by weights 1, 2/3, 1/3, 0 or the other way round."""
    rows = 4000
    distances = torch.arange(5.0).expand(rows, 5)
    allowed = torch.arange(5).expand(rows, 5) > 0
    drawn = sample_negatives(distances, allowed, 4, uniform(7, torch.arange(rows), 5), 1, sampling, 1.0)  # type: ignore[arg-type]
    shares = torch.bincount(drawn.flatten(), minlength=5) / rows
    assert shares[0] == 0
    expected = {"similar": [1, 2 / 3, 1 / 3, 0], "dissimilar": [0, 1 / 3, 2 / 3, 1], "random": [0.5] * 4}[sampling]
    assert torch.allclose(shares[1:], torch.tensor(expected) / 2, atol=0.03)
    assert likelier is None or int(shares.argmax()) == likelier


def test_only_the_central_part_is_drawn_and_nothing_twice() -> None:
    """Of 40 clips the nearest and the farthest 2 are left out; 64 asked for gives the 36 that are left."""
    distances = torch.arange(40.0)[None]
    everything = torch.ones(1, 40, dtype=torch.bool)
    drawn = sample_negatives(
        distances, everything, 40, uniform(1, torch.tensor([3]), 40), 64, "similar", interval=0.9
    )
    assert sorted(drawn[0].tolist()) == list(range(2, 38))


def test_draws_of_a_row_follow_from_the_row_alone() -> None:
    """So they are the same on whichever rank the row lies."""
    whole = uniform(5, torch.arange(6), 9)
    assert torch.equal(uniform(5, torch.tensor([4]), 9)[0], whole[4])
    assert not torch.equal(uniform(6, torch.tensor([4]), 9)[0], whole[4])
    assert bool(((whole > 0) & (whole < 1)).all())


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_masks_and_pairs_of_a_global_batch(batch: int) -> None:
    """15 % of 20 clips are 3, all different; half of the examples hear another's sound, none its own."""
    drawn = draw(ContrastiveConfig(), batch, 20, torch.Generator().manual_seed(1))
    assert drawn.masked.shape == (2, batch, 3)
    assert all(len(set(row.tolist())) == 3 for row in drawn.masked.flatten(0, 1))
    own = drawn.sound_of == torch.arange(batch)
    assert int(own.sum()) == drawn.matched == batch - round(batch / 2)
    assert draw(ContrastiveConfig(), 1, 20, torch.Generator()).matched == 1


@pytest.mark.parametrize("fusion", ["early", "mid", "late"])
def test_it_learns_pairs_of_noise(fusion: str) -> None:
    """One minibatch again and again: every parameter is reached, and the loss falls by a tenth in 25 steps."""
    config = contrastive(fusion=fusion)
    optim = config.optim.model_copy(update={"kind": "adamw", "amsgrad": True})
    model = build_model(config, seed=1)
    optimiser = build_optimiser(dict(model.named_parameters()), optim)
    batch, losses = minibatch(config, "one", 1), []
    for step in range(1, 26):
        again = dataclasses.replace(batch, step=step)
        result = train_step(model, optimiser, [again], 3e-3, config, SingleProcess())
        losses.append(result.losses[0])
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    streams = {"early": 0, "mid": 2, "late": 2}[fusion] + 2 * (fusion != "late")
    assert sum(name.startswith("retrieval_") for name in result.measures["one"]) == streams
    assert result.measures["one"]["chance"] == pytest.approx(1 / 12)  # of 4 x 3 clips, less the positive
    curves = Curves()
    curves.add([again], result, 1.0)
    assert {"train/one/pair_accuracy", "train/one/negative_similarity"} <= curves.take().keys()


def test_an_evaluation_has_retrieval_and_pairs() -> None:
    """From one set of draws: twice the same."""
    config = contrastive()
    model = build_model(config, seed=1)
    found = [evaluate(model, [minibatch(config, "one", 1)], config, SingleProcess())[0]["one"] for _ in "ab"]
    assert found[0] == found[1]
    assert found[0]["value"] == found[0]["retrieval"]
    assert found[0]["examples"] == 4
    assert 0 <= found[0]["pair_accuracy"] <= 1


def test_a_contrastive_minibatch_is_never_cut() -> None:
    config = contrastive()
    config = config.model_copy(update={"train": config.train.model_copy(update={"microbatch": 1})})
    batch = minibatch(config, "one", 1)
    model = build_model(config, seed=1)
    sizes = derive_microbatches(model, config, SingleProcess(), torch.device("cpu"))
    assert sizes == {"one": 4}
    optimiser = build_optimiser(dict(model.named_parameters()), config.optim)
    result = train_step(model, optimiser, [batch], 1e-3, config, SingleProcess(), microbatches={"one": 1})
    assert result.examples == 4
    assert len(parts(batch, None, config, 1)) == 1


@pytest.mark.slow
def test_the_memory_of_a_contrastive_pass_is_counted() -> None:
    tried = FakePass(contrastive(), "one")
    assert 0 < tried.peak(2) < tried.peak(4)


def test_roles_of_the_objective() -> None:
    table = parameters_of(contrastive())
    assert table["masks"] == 2 * 16
    # Three maps of 16 x 16 in four streams, two of them with biases; the pair's two maps.
    assert table["head/one"] == 4 * (3 * 256 + 32) + (32 * 16 + 16) + 17


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metric": "top1"}, ["metric=top1", "retrieval or pair_accuracy"]),
        ({"batch": 1}, ["batch=1", "at least 2"]),
        ({"reads": "visual_cnn"}, ["reads=visual_cnn"]),
        ({"loss": "softmax"}, ["metric=retrieval", "top1 or map"]),
    ],
)
def test_contradictions_are_named(changes: dict, words: list[str]) -> None:
    document = contrastive().model_dump(mode="json")
    document["tasks"]["one"] |= changes
    with pytest.raises(UserError) as caught:
        validate_config(document)
    said = " ".join(caught.value.problems)
    assert all(word in said for word in words)
