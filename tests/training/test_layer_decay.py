"""Layer-wise learning-rate decay: the factor of every parameter, in both optimisers, and an exact resume."""

import pytest
import torch
from small import ArrayFeed, Heard, fresh, small_config

from polyvit.checkpoint import TrainState, TrainUnit
from polyvit.config import RunConfig, load_config
from polyvit.distributed import SingleProcess
from polyvit.errors import UserError
from polyvit.model import build_model
from polyvit.training import build_learner, train
from polyvit.training.layer_decay import layer_factors

pytestmark = pytest.mark.usefixtures("one_thread")
DECAY = "optim.layer_decay=0.5"


def by_part(config: RunConfig) -> dict[str, set[float]]:
    """{part: the factors of its parameters}."""
    factors = layer_factors(dict(build_model(config).named_parameters()), config)
    parts: dict[str, set[float]] = {}
    for name, factor in factors.items():
        pieces = name.split(".")
        at = {"adaptors": 3, "shared": 3 if pieces[1] == "blocks" else 2}.get(pieces[0], 1)
        parts.setdefault(".".join(pieces[:at]), set()).add(factor)
    return parts


def test_the_factor_of_every_parameter() -> None:
    """Depth 3, one of it adaptors: layers 0 (patches), 1 (adaptors), 2, 3 (shared), 4 (norm and heads)."""
    assert by_part(small_config(DECAY)) == {
        "tokenizers": {0.0625},
        "adaptors.image.0": {0.125}, "adaptors.video.0": {0.125}, "adaptors.audio.0": {0.125},
        "shared.blocks.0": {0.25}, "shared.blocks.1": {0.5}, "shared.norm": {1.0}, "heads": {1.0},
    }  # fmt: skip
    shared = by_part(small_config(DECAY, "model.l_adapt=0", "model.sharing.layers=2", "model.depth=3"))
    assert {part: shared[part] for part in shared if "blocks" in part} == {
        "shared.blocks.0": {0.25}, "shared.blocks.1": {0.5},
    }  # fmt: skip
    low_rank = by_part(small_config(DECAY, "model.sharing.modalities=low_rank", "model.sharing.rank=2"))
    assert low_rank["shared.blocks.0"] == {0.25}  # private factors too
    assert {factor for part in by_part(small_config()).values() for factor in part} == {1.0}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_updates_are_scaled(kind: str) -> None:
    """With equal gradients a parameter moves by its factor; both optimisers' first step is lr x gradient's
    size."""
    config = small_config(DECAY, f"optim.kind={kind}", "optim.momentum=0", "optim.lr_coefs={heads: 10}")
    model = build_model(config)
    learner = build_learner(model, config, torch.device("cpu"), SingleProcess())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner.optimiser.step(1e-3)
    factors = layer_factors(before, config)
    for name, parameter in model.named_parameters():
        moved = before[name] - parameter.detach()
        expected = 1e-3 * factors[name] * (10 if name.startswith("heads") else 1)
        torch.testing.assert_close(moved, torch.full_like(moved, expected), rtol=2e-3, atol=1e-7, msg=name)


def test_resume_is_exact() -> None:
    config = small_config(DECAY, "optim.kind=adamw", "optim.lr=0.01", "train.checkpoint_every=5")

    def learner() -> TrainUnit:
        return build_learner(fresh(config)[0], config, torch.device("cpu"), SingleProcess())

    class Kept(Heard):
        def checkpoint(self, state: TrainState, last: bool) -> None:
            if state.global_step == 5:
                copied = {name: p.detach().clone() for name, p in whole.model.named_parameters()}
                kept.append((copied, {k: v.clone() for k, v in whole.optimiser.state().items()}))

    kept: list = []
    whole = learner()
    train(whole, fresh(config)[2], ArrayFeed(config), config, SingleProcess(), TrainState(), Kept())
    again = learner()
    with torch.no_grad():
        for name, parameter in again.model.named_parameters():
            parameter.copy_(kept[0][0][name])
    again.optimiser.load_state(kept[0][1])
    train(again, fresh(config)[2], ArrayFeed(config), config, SingleProcess(), TrainState(5), Heard())
    for (name, ours), theirs in zip(again.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_another_model_is_refused() -> None:
    with pytest.raises(UserError) as refused:
        load_config("avbert-esc50", ["optim.layer_decay=0.7"])
    assert any("optim.layer_decay=0.7 needs model.kind=polyvit" in line for line in refused.value.problems)
