"""PolyViT with shared layers and low-rank private factors: what is shared, counts, initialising from a ViT."""

import pytest
import torch
from small import small_config
from torch import Tensor

from polyvit.config import RunConfig
from polyvit.errors import UserError
from polyvit.model import build_model, parameters_of
from polyvit.model.encoder import Block, low_rank_values
from polyvit.model.polyvit import PolyViT
from polyvit.training.microbatch import FakePass, pass_peak

pytestmark = pytest.mark.usefixtures("one_thread")
LOW_RANK = ("model.sharing.modalities=low_rank", "model.sharing.rank=4")


def tokens(config: RunConfig, modality: str, batch: int = 2) -> dict[str, Tensor]:
    spec = config.model.input(modality).arrays["tokens"]
    return {"tokens": torch.randn(batch, *spec.shape, generator=torch.Generator().manual_seed(5))}


def test_off_by_default_and_the_same_bits() -> None:
    """No sharing key, the old names and values: nothing of an old checkpoint changes."""
    config = small_config()
    assert (config.model.kind, config.model.sharing.layers, config.model.sharing.modalities) == (
        "polyvit", "none", "full",
    )  # fmt: skip
    model, said = build_model(config, seed=3), small_config("model.sharing={layers: 1, rank: 7}")
    other = build_model(said, seed=3)
    assert list(model.state_dict()) == list(other.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    x = tokens(config, "image")
    assert torch.equal(model(x, "picture"), other(x, "picture"))


def test_counts_of_low_rank_blocks() -> None:
    """Width 16, MLP 32, rank 4, three modalities, two shared layers: U and b shared, V private, by hand."""
    table = parameters_of(small_config(*LOW_RANK))
    shared_map, private = (lambda m: 4 * m + m), (lambda n: 4 * n)
    block = 4 * shared_map(16) + shared_map(32) + shared_map(16) + 4 * 16
    assert table["shared"] == 2 * block + 2 * 16
    for modality in ("image", "video", "audio"):
        assert table[f"shared/{modality}"] == 2 * (5 * private(16) + private(32))


@pytest.mark.parametrize(("layers", "blocks"), [("none", 2), ("all", 1), ("2", 1), ("1", 2)])
def test_shared_layers(layers: str, blocks: int) -> None:
    """One block run twice equals two blocks with its values."""
    config = small_config(f"model.sharing.layers={layers}")
    model = build_model(config, seed=1)
    assert isinstance(model, PolyViT)
    assert len(model.shared.blocks) == blocks
    plain = build_model(small_config(), seed=2)
    state = dict(model.state_dict())
    if blocks == 1:
        state |= {
            n.replace("blocks.0", "blocks.1"): t for n, t in state.items() if n.startswith("shared.blocks.0")
        }
    plain.load_state_dict(state)
    x = tokens(config, "audio")
    assert torch.equal(model(x, "sound"), plain(x, "sound"))


def test_a_task_reaches_its_own_factors_only() -> None:
    model = build_model(small_config(*LOW_RANK))
    model(tokens(small_config(), "video"), "clip").sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == set(model.touched("clip"))
    assert any(".private.video." in name for name in reached)
    assert not any(".private.image." in name or ".private.audio." in name for name in reached)


def test_checkpointed_and_compiled_blocks_give_the_same() -> None:
    config = small_config(*LOW_RANK, "model.sharing.layers=all")
    model, x = build_model(config, seed=0), tokens(config, "image")
    model(x, "picture").sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    for way in ("checkpointed", "compiled"):
        model.zero_grad()
        model.activation_checkpointing = way == "checkpointed"
        if way == "compiled":
            model.compile_blocks(backend="eager")
        model(x, "picture").sum().backward()
        for name, gradient in expected.items():
            # Compiled masks are ones where there were none: the same products.
            torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-5, atol=1e-6)


def test_the_memory_of_a_pass_is_counted_without_running_it() -> None:
    config = small_config(*LOW_RANK)
    model = build_model(config, {"picture": config.tasks["picture"]})
    assert FakePass(config, "picture").peak(2) == pass_peak(model, config, "picture", 2) > 0


def vit_values(model: PolyViT, rank: int) -> tuple[PolyViT, dict[str, str]]:
    """A low-rank model with the values of a plain one, block by block, and the error of each map."""
    config = small_config("model.sharing.modalities=low_rank", f"model.sharing.rank={rank}")
    low = build_model(config, seed=9)
    assert isinstance(low, PolyViT)
    state, errors = dict(model.state_dict()), {}
    values = {name: tensor for name, tensor in state.items() if not name.startswith("shared.blocks")}
    for i, block in enumerate(model.shared.blocks):
        assert isinstance(block, Block)
        for name, value, how in low_rank_values(block.state_dict(), rank, config.modalities):
            values[f"shared.blocks.{i}.{name}"] = value
            if how:
                errors[f"{i}.{name}"] = how
    low.load_state_dict(values)
    return low, errors


def test_full_rank_is_the_vit_to_rounding() -> None:
    """Rank D: the two factors multiply to W to float32's rounding, and so do the features of three blocks."""
    model = build_model(small_config(), seed=4)
    assert isinstance(model, PolyViT)
    low, errors = vit_values(model, 16)
    assert all(how == "rank 16 of 16: error 0 of the map" for how in errors.values())
    for modality, task in (("image", "picture"), ("video", "clip"), ("audio", "sound")):
        x = tokens(small_config(), modality)
        torch.testing.assert_close(
            low.forward_features(x, modality), model.forward_features(x, modality), rtol=1e-5, atol=1e-5
        )
        plain = low.blocks_alone(modality)
        torch.testing.assert_close(
            plain[1].mlp.fc1.weight, model.shared.blocks[0].mlp.fc1.weight, rtol=0, atol=1e-6
        )
        assert task in model.heads


def test_lower_ranks_lose_more() -> None:
    model = build_model(small_config(), seed=4)
    assert isinstance(model, PolyViT)
    lost = []
    for rank in (12, 8, 4, 1):
        _, errors = vit_values(model, rank)
        assert len(errors) == 6 * 2
        lost.append(float(errors["0.query.weight"].split()[-4]))
    assert lost == sorted(lost)
    assert 0 < lost[0] < lost[-1] < 1


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("model.sharing.modalities=low_rank", "model.sharing.rank=17"), "model.sharing.rank=17"),
        (("model.sharing.layers=some",), "model.sharing.layers"),
        (("model.sharing.modality=full",), "did you mean modalities"),
        (("model.kind=avbart",), "give polyvit or avbert"),
    ],
)
def test_wrong_keys_are_named(overrides: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError) as raised:
        small_config(*overrides)
    assert says in str(raised.value)
