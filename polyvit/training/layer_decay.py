"""Layer-wise decay of the learning rate: the deeper a layer, the faster it learns (`optim.layer_decay`).

In: names of a PolyViT's parameters. Out: a factor of the learning rate for each. Source: BEiT (arXiv:2106.08254),
`optim_factory.py` of its release, and timm's `layer_decay`: patch embeddings are layer 0, blocks 1 .. depth, final
norm and heads depth + 1; a layer learns at decay ** (depth + 1 - layer).
"""

from collections.abc import Iterable

from polyvit.config import ModelConfig, RunConfig
from polyvit.model import layer_homes


def layer_factors(names: Iterable[str], config: RunConfig) -> dict[str, float]:
    """{parameter: factor}, all 1 without `optim.layer_decay`.

    Adaptor blocks are the first layers of their modality. A shared block that runs at several layers counts as the
    last of them; private factors of a shared block count as it does.
    """
    decay, model = config.optim.layer_decay, config.model
    if decay is None or not isinstance(model, ModelConfig):
        return dict.fromkeys(names, 1.0)
    homes = layer_homes(model.depth - model.l_adapt, model.sharing.layers)
    last = {home: model.l_adapt + i + 1 for i, home in enumerate(homes)}
    return {name: decay ** (model.depth + 1 - _layer(name, last, model.depth)) for name in names}


def _layer(name: str, last: dict[int, int], depth: int) -> int:
    """0 .. depth + 1, of a parameter. last: {shared block: the last layer at which it runs}, from 1."""
    parts = name.split(".")
    if parts[0] == "tokenizers":
        return 0
    if parts[0] == "adaptors":
        return int(parts[2]) + 1
    if parts[:2] == ["shared", "blocks"]:
        return last[int(parts[2])]
    return depth + 1
