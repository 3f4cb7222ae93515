"""Attention rollout: a hand-worked case, and every way of sharing blocks."""

import pytest
import torch
from small import fresh, small_config

from polyvit.model import attention_rollout

pytestmark = pytest.mark.usefixtures("one_thread")


def test_two_layers_by_hand() -> None:
    """Weights of the class token's row of (A2 + I) / 2 (A1 + I) / 2, with queries and keys of a softmax worked
    out."""
    config = small_config("model.l_adapt=1", "model.depth=2", "model.num_heads=1")
    model = fresh(config)[0].eval()
    tokens = torch.rand((2, 4, 192), generator=torch.Generator().manual_seed(0))
    x, product = model.tokenizers["image"](tokens), torch.eye(5)
    for block in (model.adaptors["image"][0], model.shared.blocks[0]):
        query, key, _ = block.attn.qkv(block.norm1(x)).chunk(3, dim=-1)
        attention = torch.softmax(query @ key.transpose(1, 2) / 4.0, dim=-1)  # width 16, one head
        product = (0.5 * attention + 0.5 * torch.eye(5)) @ product
        x = block(x)
    expected = product[:, 0, 1:] / product[:, 0, 1:].sum(1, keepdim=True)
    torch.testing.assert_close(attention_rollout(model, tokens, "image"), expected)


@pytest.mark.parametrize(
    "keys",
    [
        ("model.sharing.layers=all",),
        ("model.sharing.modalities=low_rank", "model.sharing.rank=4"),
        ("model.l_adapt=3",),
    ],
)
def test_every_way_of_sharing_ends_with_the_models_own_features(keys: tuple[str, ...], monkeypatch) -> None:
    model = fresh(small_config(*keys))[0].eval()
    tokens = torch.rand((1, 4, 192), generator=torch.Generator().manual_seed(0))
    weights = attention_rollout(model, tokens, "image")
    assert weights.shape == (1, 4)
    assert float(weights.sum()) == pytest.approx(1)
    x = model.tokenizers["image"](tokens)  # the blocks that it goes through are those of the model
    for block in model.plain_blocks("image"):
        x = block(x)
    torch.testing.assert_close(model.shared.norm(x), model.encode(tokens, "image"), rtol=1e-4, atol=1e-5)
