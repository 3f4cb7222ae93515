"""How a model shares its weights: over layers, and over modalities (PolyViT) or transformers (AVBert).

What the keys do is in `polyvit/model/sharing.py`.
"""

from typing import Literal

from pydantic import PositiveInt

from polyvit.config.inputs import Section

Layers = PositiveInt | Literal["none", "all"]


class ModalitySharing(Section):
    """How PolyViT's shared blocks share their weights. The default is the paper's: one block a layer, for all."""

    layers: Layers = "none"
    """Over the layers of the shared trunk. `none`: each its own; `all`: one block, run at every layer; a number:
    so many in a row are one. Adaptor blocks stay their own."""
    modalities: Literal["full", "low_rank"] = "full"
    """Over modalities. `full`: the same block for all. `low_rank`: every map of a shared block is U V with U, bias
    and layer norms shared and V = Sigma V^T each modality's own, beside what `l_adapt` keeps private."""
    rank: PositiveInt = 128
    """Of `low_rank`."""


class RoleSharing(Section):
    """How AVBert's visual, audio and multimodal transformers share their weights. The default is the paper's."""

    layers: Layers = "all"
    """Over the layers of a transformer. `all`: one layer, run `depth` times; `none`: each its own; a number: so
    many in a row are one."""
    roles: Literal["none", "full", "low_rank", "low_rank_alone"] = "low_rank"
    """Over the transformers. `full`: one for all. `low_rank`: every map is U R V of rank `rank`; U, biases and
    layer norms are shared, V and the rotation R each transformer's own. `none`: nothing is shared;
    `low_rank_alone`: nothing is shared, every map is factorised."""
    rank: PositiveInt = 128
    """Of `low_rank` and `low_rank_alone`."""
    orthogonal: Literal["expm", "cayley"] = "expm"
    """How R comes from the numbers that are learnt: the matrix exponential or the Cayley transform."""
