"""What stands on AVBert in contrastive pre-training: masks, predictions of masked clips, and of pairs.

In: the embeddings of each clip and what was drawn for the global batch (`Draws`). Out: `Predictions`, which
`polyvit.objectives` turns into a loss. Sources: Lee et al., ICLR 2021, and notes on it; the paper's code has none
of this, so what is marked "ours" is a default of this project (facts-av.md, section 6).
Legend: B batch, S clips, k masked clips of a modality of one example, D width, G global batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvit.config import AVBertConfig, ContrastiveConfig
from polyvit.model.devices import upload

STREAMS = ("visual", "audio", "multimodal_visual", "multimodal_audio")
"""What predicts masked clips: each transformer, the multimodal one for either modality."""
Exchange = Callable[[Tensor], Tensor]
"""Rows of this rank [B, ...] -> rows of all ranks [G, ...], gradients of all ranks on the way back."""


class Draws(NamedTuple):
    """What is drawn for a step, of the global batch: the same for any number of workers.

    masked: [2, G, k] positions among the S clips, visual and audio. sound_of: [G] whose sound each example hears.
    moment: [G] which of the 2 S clips the pair head reads besides the first token. matched: how many
    examples hear their own. first: slot of this rank's first example.
    """

    masked: Tensor
    sound_of: Tensor
    moment: Tensor
    matched: int
    first: int = 0

    def rows(self, count: int) -> "Draws":
        """Those of this rank's `count` examples."""
        here = slice(self.first, self.first + count)
        return self._replace(masked=self.masked[:, here], sound_of=self.sound_of[here], moment=self.moment[here])

    def to(self, device: torch.device) -> "Draws":
        """On a device."""
        masked, sound_of, moment = (upload(x, device) for x in self[:3])
        return self._replace(masked=masked, sound_of=sound_of, moment=moment)


class Predictions(NamedTuple):
    """What a pass gives the loss.

    targets: [2, B, S, D] CNN embeddings, projected, before masking. queries: by stream [B, k, D], to be compared
    with them by inner product. pairs: [B] logits that picture and sound belong together.
    """

    targets: Tensor
    queries: dict[str, Tensor]
    pairs: Tensor


def draw(settings: ContrastiveConfig, batch: int, clips: int, generator: torch.Generator, first: int = 0) -> Draws:
    """Masks, swapped sound tracks and moments of a global batch of `batch` examples with `clips` clips each.

    A swapped example hears any other one, drawn evenly; one example alone keeps its own sound.
    """
    count = min(clips, max(1, round(settings.mask * clips)))
    masked = torch.rand(2, batch, clips, generator=generator).argsort(dim=-1)[..., :count]
    sound_of = torch.arange(batch)
    swapped = round(settings.swapped * batch) if batch > 1 else 0
    chosen = torch.randperm(batch, generator=generator)[:swapped]
    if swapped:
        sound_of[chosen] = (chosen + torch.randint(1, batch, chosen.shape, generator=generator)) % batch
    moment = torch.randint(2 * clips, (batch,), generator=generator)
    return Draws(masked, sound_of, moment, batch - swapped, first)


class ContrastiveHead(nn.Module):
    """Two-layer maps of every stream to a query, and of two multimodal tokens to a pair's logit."""

    def __init__(self, config: AVBertConfig) -> None:
        super().__init__()
        width = config.width
        multimodal = "multimodal" in config.roles
        self.streams = [s for s in STREAMS if s in config.roles or (multimodal and s.startswith("multimodal"))]
        # FFN(o)^T W_I x: the FFN is linear, GELU, linear (ours); W_I is D x D and stands in `compare`.
        self.inner = nn.ModuleDict({s: nn.Linear(width, width) for s in self.streams})
        self.outer = nn.ModuleDict({s: nn.Linear(width, width) for s in self.streams})
        self.compare = nn.ModuleDict({s: nn.Linear(width, width, bias=False) for s in self.streams})
        self.pair_inner = nn.Linear(2 * width, width)
        self.pair_outer = nn.Linear(width, 1)

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Weights normal with variance 1 / inputs, W_I's smaller, so that scores are of about 1 at any width.

        Ours: with 0.02 a narrow model's scores are all alike and it learns late; with large ones the embeddings
        are drawn together at first."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.normal_(0.0, layer.in_features**-0.5, generator=generator)
                if layer.bias is not None:
                    layer.bias.zero_()
        for layer in self.compare.values():
            layer.weight *= layer.in_features**-0.5  # type: ignore[operator,union-attr]

    def query(self, stream: str, output: Tensor) -> Tensor:
        """What a stream's outputs are compared with: [..., D] -> [..., D]."""
        return self.compare[stream](self.outer[stream](F.gelu(self.inner[stream](output))))

    def forward(self, outputs: dict[str, Tensor], pair: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """outputs: by stream [B, k, D]; pair: [B, 2 D] -> queries [B, k, D] and logits [B]."""
        queries = {stream: self.query(stream, outputs[stream]) for stream in self.streams}
        return queries, self.pair_outer(F.gelu(self.pair_inner(pair)))[:, 0]


def with_masks(x_BSD: Tensor, masked_Bk: Tensor, vector_D: Tensor) -> Tensor:
    """The masked clips' embeddings replaced by one learned vector."""
    hidden = torch.zeros(x_BSD.shape[:2], dtype=torch.bool, device=x_BSD.device).scatter(1, masked_Bk, True)
    return torch.where(hidden[..., None], vector_D.to(x_BSD.dtype), x_BSD)


def at(x_BND: Tensor, places_Bk: Tensor) -> Tensor:
    """The tokens at some places, [B, k, D]."""
    return x_BND.gather(1, places_Bk[..., None].expand(-1, -1, x_BND.shape[-1]))
