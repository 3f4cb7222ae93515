"""AVBert: CNN -> projection -> sequence with a summary token -> transformers -> head of the task.

In: inputs["clips"] [B, S, T, H, W, 3], inputs["spectrograms"] [B, S, time, mel] of ONE task. Out: logits [B, K].
Parameters are named by role: `visual_cnn`, `audio_cnn`, `projections.<role>`, `summaries`, `embeddings.<role>`,
`transformers.stacks.<role>`, `heads.<task>`. Legend: B batch, S clips, N = 1 + S tokens, D width, K classes.
Source: Lee et al., ICLR 2021; shapes and order from the official code (facts-av.md, section 1).
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polyvit.config import AVBertConfig, Modality, TaskConfig
from polyvit.errors import UserError
from polyvit.model.avbert.audio_cnn import AudioCNN
from polyvit.model.avbert.resnet import Bottleneck, no_updates, reset_cnn
from polyvit.model.avbert.transformer import Embeddings, PostNormLayer, Transformers, mixed
from polyvit.model.avbert.visual_cnn import VisualCNN
from polyvit.model.interface import MultiTaskModel
from polyvit.model.sharing import LowRankLinear, owner_of, reset_low_rank

INIT_STD = 0.02
"""Ours: the release names this number and never applies it (facts-av.md, section 4)."""
PIXEL_MEAN, PIXEL_STD = 0.45, 0.225
"""Of pixels in [0, 1]; source: the official code."""


class Embedded(NamedTuple):
    """What the CNNs make of each clip: pooled [B * S, C], and projected to the transformers' width [B, S, D]."""

    visual_pooled: Tensor
    audio_pooled: Tensor
    visual_BSD: Tensor
    audio_BSD: Tensor


class Sequences(NamedTuple):
    """Summary token and clips of each role, [B, 1 + S, D]; multimodal [B, 2 (1 + S), D], none in late fusion."""

    visual_BND: Tensor
    audio_BND: Tensor
    multimodal: Tensor | None

    def summaries(self) -> Tensor:
        """The visual and the audio summary, [B, 2 D], of the last transformer that there is."""
        if self.multimodal is None:
            return torch.cat([self.visual_BND[:, 0], self.audio_BND[:, 0]], dim=-1)
        return torch.cat([self.multimodal[:, 0], self.multimodal[:, self.visual_BND.shape[1]]], dim=-1)


class Projection(nn.Module):
    """A CNN's pooled output to the transformers' width: linear, layer norm."""

    def __init__(self, channels: int, config: AVBertConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., D]."""
        return self.norm(self.linear(x))


class AVBert(MultiTaskModel):
    """Two CNNs and up to three transformers for several tasks on sequences of clips."""

    def __init__(self, config: AVBertConfig, tasks: Mapping[str, TaskConfig], seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.modality: dict[str, Modality] = {name: task.modality for name, task in tasks.items()}
        if reserved := [name for name in tasks if hasattr(nn.ModuleDict(), name)]:
            raise UserError(f"tasks.{reserved[0]}: this name is taken by PyTorch; give the task another")
        self.visual_cnn = VisualCNN(config.visual_width, config.blocks)
        self.audio_cnn = AudioCNN(config.audio_width, config.blocks)
        channels = {"visual": self.visual_cnn.channels, "audio": self.audio_cnn.channels}
        self.projections = nn.ModuleDict({name: Projection(n, config) for name, n in channels.items()})
        self.summaries = nn.Parameter(torch.empty(2, config.width))
        self.embeddings = nn.ModuleDict(
            {role: Embeddings(config, 2 if role == "multimodal" else 0) for role in config.roles}
        )
        self.transformers = Transformers(config)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(config.feature_width, task.num_classes) for name, task in tasks.items()}
        )
        if not self.summaries.is_meta:
            self.reset_parameters(torch.Generator().manual_seed(seed))

    def forward(self, inputs: Mapping[str, Tensor], task: str, keep: Tensor | None = None) -> Tensor:
        """Logits [B, K] of `task`.

        inputs: `clips` in [-1, 1] and `spectrograms`, as above. keep [B]: seeds of dropout, as `draw_keep` gives;
        none: nothing is dropped.
        """
        return self.heads[task](self.forward_features(inputs, self.modality[task], keep))

    def forward_features(
        self, inputs: Mapping[str, Tensor], modality: Modality, keep: Tensor | None = None
    ) -> Tensor:
        """Both summary tokens, [B, 2 D]. inputs, keep: as `forward`."""
        pixels = inputs["clips"].movedim(-1, 2)
        # The feed's pixels are in [-1, 1]; the release's are (v - mean) / std of v in [0, 1].
        pixels = (pixels * 0.5 + (0.5 - PIXEL_MEAN)) / PIXEL_STD
        sound = inputs["spectrograms"].mT[:, :, None]
        embedded = self.embed(pixels, sound)
        return self.contextualise(embedded.visual_BSD, embedded.audio_BSD, keep).summaries()

    def embed(self, pixels_BSCTHW: Tensor, sound_BSCFT: Tensor) -> Embedded:
        """Each clip on its own: pixels [B, S, 3, T, H, W], normalised; log-mel [B, S, 1, mel, time]."""
        shape = pixels_BSCTHW.shape[:2]
        visual = self.run_cnn(self.visual_cnn, pixels_BSCTHW.flatten(0, 1)).flatten(2).mean(-1)
        audio = self.run_cnn(self.audio_cnn, sound_BSCFT.flatten(0, 1)).flatten(2).mean(-1)
        projected = [
            self.projections[name](pooled.unflatten(0, shape))
            for name, pooled in (("visual", visual), ("audio", audio))
        ]
        return Embedded(visual, audio, *projected)

    def run_cnn(self, cnn: VisualCNN | AudioCNN, x: Tensor) -> Tensor:
        """The last map of a CNN; block by block, so that each may be run again for its gradient."""
        x = cnn.first(x)
        for stage in cnn.stages:
            for block in stage:  # type: ignore[attr-defined]
                if self.activation_checkpointing and torch.is_grad_enabled():
                    x = checkpoint(
                        block, x, use_reentrant=False, preserve_rng_state=False,
                        context_fn=partial(no_updates, block),
                    )  # fmt: skip
                else:
                    x = block(x)
        return x

    def contextualise(self, visual_BSD: Tensor, audio_BSD: Tensor, seeds_B: Tensor | None = None) -> Sequences:
        """Sequences with their summary token through the transformers that the fusion has."""
        batch = visual_BSD.shape[0]
        sequences = [
            torch.cat([self.summaries[i].to(x.dtype).expand(batch, 1, -1), x], dim=1)
            for i, x in enumerate((visual_BSD, audio_BSD))
        ]
        roles = self.config.roles
        if "visual" in roles:
            for i, role in enumerate(("visual", "audio")):
                sequences[i] = self.transform(sequences[i], role, [sequences[i].shape[1]], seeds_B=seeds_B)
        visual, audio = sequences
        if "multimodal" not in roles:
            return Sequences(visual, audio, None)
        joined = torch.cat([visual, audio], dim=1)
        lengths = [visual.shape[1], audio.shape[1]]
        return Sequences(visual, audio, self.transform(joined, "multimodal", lengths, seeds_B=seeds_B))

    def transform(
        self, x_BND: Tensor, role: str, lengths: list[int], mask_BN: Tensor | None = None,
        seeds_B: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Embeddings and layers of one role; lengths: of the sequences joined in x."""
        own = None if seeds_B is None else mixed(seeds_B + 1 + self.config.roles.index(role))
        x_BND = self.embeddings[role](x_BND, lengths, own)
        return self.transformers(x_BND, role, mask_BN, seeds_B, self.activation_checkpointing)

    def draw_keep(self, drop_path: float, global_batch: int, generator: torch.Generator) -> Tensor | None:
        """Seeds of dropout, int64 [B] on the CPU; None where nothing is dropped. There is no stochastic depth."""
        if not self.config.dropout:
            return None
        return torch.randint(-(1 << 62), 1 << 62, (global_batch,), generator=generator)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """torch.compile every residual block and layer."""
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        for module in self.modules():
            if isinstance(module, Bottleneck | PostNormLayer):
                module.forward = torch.compile(module.forward, backend=backend)  # type: ignore[method-assign]
        self.compiled = True

    def sharding_units(self) -> list[nn.Module]:
        """Residual blocks, layers that run once in a pass, heads, then the model with all the rest.

        A layer that is shared stays in the model's own unit: gathered once a pass, not at each of its runs.
        """
        blocks = [
            m for cnn in (self.visual_cnn, self.audio_cnn) for m in cnn.modules() if isinstance(m, Bottleneck)
        ]
        return [*blocks, *self.transformers.run_once(), *self.heads.values(), self]

    def touched(self, task: str) -> dict[str, nn.Parameter]:
        """Everything but the other tasks' heads: each parameter that is there is reached, in every mode."""
        return {
            n: p for n, p in self.named_parameters()
            if p.requires_grad and (not n.startswith("heads.") or n.startswith(f"heads.{task}."))
        }  # fmt: skip

    def parameter_table(self) -> dict[str, int]:
        """Parameters by role: the CNNs, `projections`, `summaries`, `embeddings`, the transformers by owner
        (`transformers/shared`, `transformers/visual`, ...), `head/<task>`; in order."""
        table: dict[str, int] = {}
        for name, parameter in self.named_parameters():
            first, *rest = name.split(".")
            key = first
            if first == "transformers":
                key = f"transformers/{owner_of(name) or rest[1]}"
            elif first == "heads":
                key = f"head/{rest[0]}"
            table[key] = table.get(key, 0) + parameter.numel()
        return table

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Linear maps, tables and summaries truncated normal 0.02, no biases, convolutions He, last norms of
        residual branches without scale. Ours: the release leaves it open how pre-training was initialised."""
        std = INIT_STD
        for cnn in (self.visual_cnn, self.audio_cnn):
            reset_cnn(cnn, generator)
        for module in self.modules():
            if isinstance(module, LowRankLinear):
                reset_low_rank(module, generator, std)
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, 0.0, std, -2 * std, 2 * std, generator=generator)
                module.bias.zero_()
            elif isinstance(module, Embeddings):
                for table in (module.positions, module.types):
                    if table is not None:
                        nn.init.trunc_normal_(table, 0.0, std, -2 * std, 2 * std, generator=generator)
        nn.init.trunc_normal_(self.summaries, 0.0, std, -2 * std, 2 * std, generator=generator)
