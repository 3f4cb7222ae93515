"""AVBert: CNN -> projection -> sequence with a summary token -> transformers -> head of the task.

In: inputs["clips"] [B, S, T, H, W, 3], inputs["spectrograms"] [B, S, time, mel] of ONE task. Out: logits [B, K]
or, by the task's `reads`, [B, A, S, K] (`heads.py`); of a contrastive task `Predictions` (`pretraining.py`).
Parameters are named by role: `visual_cnn`, `audio_cnn`, `projections.<role>`, `summaries`, `masks`,
`embeddings.<role>`, `transformers.stacks.<role>`, `heads.<task>`.
Legend: B batch, S clips, N = 1 + S tokens, D width, K classes.
Source: Lee et al., ICLR 2021; shapes and order from the official code (facts-av.md, section 1).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polyvit.config import AudiovisualTask, AVBertConfig, Modality, TaskConfig
from polyvit.errors import UserError
from polyvit.model.avbert.audio_cnn import AudioCNN
from polyvit.model.avbert.heads import ClipsAndSequence, build_head
from polyvit.model.avbert.pretraining import ContrastiveHead, Draws, Exchange, Predictions, at, with_masks
from polyvit.model.avbert.resnet import Bottleneck, no_updates, reset_cnn
from polyvit.model.avbert.transformer import Embeddings, PostNormLayer, Transformers, dropout, mixed
from polyvit.model.avbert.visual_cnn import VisualCNN
from polyvit.model.interface import MultiTaskModel
from polyvit.model.sharing import LowRankLinear, owner_of, reset_low_rank

INIT_STD = 0.02
"""Ours: the release names this number and never applies it (facts-av.md, section 4)."""
PUBLISHED_WIDTH = 768
"""A narrower model's numbers are larger, by the square root, so that a map's gain is the same: ours too."""
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
        self.tasks = {name: _audiovisual(task) for name, task in tasks.items()}
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
        contrastive = [name for name, task in self.tasks.items() if task.loss == "contrastive"]
        self.masks = nn.Parameter(torch.empty(2, config.width)) if contrastive else None
        self.heads = nn.ModuleDict(
            {
                name: ContrastiveHead(config) if name in contrastive else build_head(config, task)
                for name, task in self.tasks.items()
            }
        )
        if not self.summaries.is_meta:
            self.reset_parameters(torch.Generator().manual_seed(seed))

    def forward(  # type: ignore[override]
        self, inputs: Mapping[str, Tensor], task: str, keep: Tensor | None = None,
        draws: Draws | None = None, exchange: Exchange | None = None,
    ) -> Tensor | Predictions:  # fmt: skip
        """Logits [B, K] of `task`, or [B, A, S, K]: A kinds of answer for each clip.

        inputs: `clips` in [-1, 1] and `spectrograms`, as above. keep [B]: seeds of dropout, as `draw_keep` gives;
        none: nothing is dropped. draws, exchange: of a contrastive task, which gives `Predictions`.
        """
        settings, head = self.tasks[task], self.heads[task]
        rate = settings.head_dropout
        own = None if keep is None or not rate else mixed(keep + 16)
        if draws is not None:
            assert isinstance(head, ContrastiveHead)
            assert exchange is not None
            return self._predictions(head, inputs, draws, exchange, keep)
        if settings.reads == "summaries":
            return head(dropout(self.forward_features(inputs, self.modality[task], keep), own, 0, rate))
        if settings.reads in ("visual_cnn", "audio_cnn"):
            pixels, sound = self.arrays(inputs)
            cnn = (self.visual_cnn, pixels) if settings.reads == "visual_cnn" else (self.audio_cnn, sound)
            pooled = self._pooled(*cnn).unflatten(0, pixels.shape[:2])
            return head(dropout(pooled, own, 0, rate))[:, None]
        assert isinstance(head, ClipsAndSequence)
        embedded = self.embed(*self.arrays(inputs))
        sequences = self.contextualise(embedded.visual_BSD, embedded.audio_BSD, keep)
        assert sequences.multimodal is not None
        pooled = torch.cat([embedded.visual_pooled, embedded.audio_pooled], dim=-1)
        pooled_BSC = pooled.unflatten(0, embedded.visual_BSD.shape[:2])
        return head(dropout(pooled_BSC, own, 0, rate), sequences.multimodal, lambda x: dropout(x, own, 1, rate))

    def forward_features(
        self, inputs: Mapping[str, Tensor], modality: Modality, keep: Tensor | None = None
    ) -> Tensor:
        """Both summary tokens, [B, 2 D]. inputs, keep: as `forward`."""
        embedded = self.embed(*self.arrays(inputs))
        return self.contextualise(embedded.visual_BSD, embedded.audio_BSD, keep).summaries()

    def answers(self, inputs: Mapping[str, Tensor], modality: Modality, tasks: Sequence[str]) -> dict[str, Tensor]:
        """As the interface says; tasks whose heads read the summaries share them."""
        sharing = [name for name in tasks if self.tasks[name].reads == "summaries"]
        shared = super().answers(inputs, modality, sharing) if sharing else {}
        return {name: shared[name] if name in shared else self(inputs, name) for name in tasks}

    def arrays(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Pixels [B, S, 3, T, H, W] and sound [B, S, 1, mel, time], as `embed` takes them."""
        pixels = inputs["clips"].movedim(-1, 2)
        # The feed's pixels are in [-1, 1]; the release's are (v - mean) / std of v in [0, 1].
        return (pixels * 0.5 + (0.5 - PIXEL_MEAN)) / PIXEL_STD, inputs["spectrograms"].mT[:, :, None]

    def _predictions(
        self, head: ContrastiveHead, inputs: Mapping[str, Tensor], draws: Draws, exchange: Exchange,
        seeds_B: Tensor | None,
    ) -> Predictions:  # fmt: skip
        """What masked clips and pairs are taken for.

        Of swapped examples the sound that the multimodal transformer hears is another's, after its own audio
        transformer; other examples' masked clips alone count there.
        """
        embedded = self.embed(*self.arrays(inputs))
        both = embedded.visual_BSD, embedded.audio_BSD
        own = draws.rows(len(both[0]))
        assert self.masks is not None
        hidden = [with_masks(x, own.masked[i], self.masks[i]) for i, x in enumerate(both)]
        visual, audio = self.single(hidden[0], hidden[1], seeds_B)
        heard = exchange(audio)[own.sound_of]
        joined = self.multimodal(visual, heard, seeds_B)
        clips = both[0].shape[1]
        streams = {"visual": at(visual, own.masked[0] + 1), "audio": at(audio, own.masked[1] + 1)}
        if joined is None:
            joined = torch.cat([visual, heard], dim=1)
        streams["multimodal_visual"] = at(joined, own.masked[0] + 1)
        streams["multimodal_audio"] = at(joined, own.masked[1] + 2 + clips)
        moment = own.moment + 1 + (own.moment >= clips).long()
        pair = torch.cat([joined[:, 0], at(joined, moment[:, None])[:, 0]], dim=-1)
        queries, pairs = head({name: streams[name] for name in head.streams}, pair)
        return Predictions(torch.stack(both), queries, pairs)

    def embed(self, pixels_BSCTHW: Tensor, sound_BSCFT: Tensor) -> Embedded:
        """Each clip on its own: pixels [B, S, 3, T, H, W], normalised; log-mel [B, S, 1, mel, time]."""
        shape = pixels_BSCTHW.shape[:2]
        visual, audio = self._pooled(self.visual_cnn, pixels_BSCTHW), self._pooled(self.audio_cnn, sound_BSCFT)
        projected = [
            self.projections[name](pooled.unflatten(0, shape))
            for name, pooled in (("visual", visual), ("audio", audio))
        ]
        return Embedded(visual, audio, *projected)

    def _pooled(self, cnn: VisualCNN | AudioCNN, clips_BSx: Tensor) -> Tensor:
        """A CNN's output of each clip, [B * S, C]."""
        return self.run_cnn(cnn, clips_BSx.flatten(0, 1)).flatten(2).mean(-1)

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
        visual, audio = self.single(visual_BSD, audio_BSD, seeds_B)
        return Sequences(visual, audio, self.multimodal(visual, audio, seeds_B))

    def single(self, visual_BSD: Tensor, audio_BSD: Tensor, seeds_B: Tensor | None = None) -> list[Tensor]:
        """Visual and audio sequences [B, 1 + S, D], through their own transformers where there are any."""
        batch = visual_BSD.shape[0]
        sequences = [
            torch.cat([self.summaries[i].to(x.dtype).expand(batch, 1, -1), x], dim=1)
            for i, x in enumerate((visual_BSD, audio_BSD))
        ]
        if "visual" in self.config.roles:
            for i, role in enumerate(("visual", "audio")):
                sequences[i] = self.transform(sequences[i], role, [sequences[i].shape[1]], seeds_B=seeds_B)
        return sequences

    def multimodal(self, visual_BND: Tensor, audio_BND: Tensor, seeds_B: Tensor | None = None) -> Tensor | None:
        """Both sequences through the multimodal transformer, [B, 2 (1 + S), D]; None in late fusion."""
        if "multimodal" not in self.config.roles:
            return None
        lengths = [visual_BND.shape[1], audio_BND.shape[1]]
        return self.transform(torch.cat([visual_BND, audio_BND], dim=1), "multimodal", lengths, seeds_B=seeds_B)

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
        if not self.config.dropout and not any(task.head_dropout for task in self.tasks.values()):
            return None
        return torch.randint(-(1 << 62), 1 << 62, (global_batch,), generator=generator)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """torch.compile every residual block and layer."""
        torch._dynamo.config.recompile_limit = max(256, torch._dynamo.config.recompile_limit)
        for module in self.modules():
            if isinstance(module, Bottleneck | PostNormLayer):
                module.forward = torch.compile(module.forward, dynamic=False, backend=backend)  # type: ignore[method-assign]
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
        """Its head, and of the rest what the task reads: all but the masks, one CNN, or all where it predicts."""
        settings = self.tasks[task]
        cnn_alone = settings.reads if settings.reads.endswith("_cnn") else None
        skipped = ("heads.",) if settings.loss == "contrastive" else ("heads.", "masks")

        def reached(name: str) -> bool:
            if name.startswith(f"heads.{task}."):
                return True
            return name.startswith(f"{cnn_alone}.") if cnn_alone else not name.startswith(skipped)

        return {n: p for n, p in self.named_parameters() if p.requires_grad and reached(n)}

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
        std = INIT_STD * (PUBLISHED_WIDTH / self.config.width) ** 0.5
        for cnn in (self.visual_cnn, self.audio_cnn):
            reset_cnn(cnn, generator)
        for module in self.modules():
            if isinstance(module, LowRankLinear):
                reset_low_rank(module, generator, std)
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, 0.0, std, -2 * std, 2 * std, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, Embeddings):
                for table in (module.positions, module.types):
                    if table is not None:
                        nn.init.trunc_normal_(table, 0.0, std, -2 * std, 2 * std, generator=generator)
        for head in self.heads.values():
            if isinstance(head, ContrastiveHead):
                head.reset(generator)
        for vectors in (self.summaries, self.masks):
            if vectors is not None:
                nn.init.trunc_normal_(vectors, 0.0, std, -2 * std, 2 * std, generator=generator)


def _audiovisual(task: TaskConfig) -> AudiovisualTask:
    assert isinstance(task, AudiovisualTask)  # the config says so
    return task
