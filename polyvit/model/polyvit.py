"""PolyViT: tokenizer -> adaptor blocks of the modality -> shared blocks -> norm -> head of the task.

In: inputs["tokens"] [B, N, P] of ONE task. Out: logits [B, K]. Parameters are named by role:
`tokenizers.<modality>`, `adaptors.<modality>`, `shared.blocks`, `shared.norm`, `heads.<task>`.
Initial values: as in the official release (see `reset_parameters`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polyvit.config import Modality, ModelConfig, TaskConfig, modalities_of
from polyvit.errors import UserError
from polyvit.model.encoder import Block, LowRankBlock, draw_keep, drop_path_rates
from polyvit.model.interface import MultiTaskModel
from polyvit.model.sharing import LowRankLinear, layer_homes, owner_of
from polyvit.model.tokenizer import Tokenizer


class Trunk(nn.Module):
    """The blocks that every modality shares, and the final norm (shared even when no block is).

    blocks: the distinct ones; `homes` says which of them each layer is (see `model.sharing`).
    """

    def __init__(self, config: ModelConfig, modalities: Sequence[Modality]) -> None:
        super().__init__()
        sharing = config.sharing
        self.homes = layer_homes(config.depth - config.l_adapt, sharing.layers)
        low_rank = sharing.modalities == "low_rank"
        self.blocks = nn.ModuleList(
            LowRankBlock(config, modalities) if low_rank else Block(config) for _ in dict.fromkeys(self.homes)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)


class PolyViT(MultiTaskModel):
    """One encoder for several tasks of several modalities."""

    def __init__(self, config: ModelConfig, tasks: Mapping[str, TaskConfig], seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.modality: dict[str, Modality] = {name: task.modality for name, task in tasks.items()}
        self._head_init = {name: task.head_init for name, task in tasks.items()}
        present = modalities_of(tasks)
        if reserved := [name for name in tasks if hasattr(nn.ModuleDict(), name)]:
            raise UserError(f"tasks.{reserved[0]}: this name is taken by PyTorch; give the task another")
        self.tokenizers = nn.ModuleDict({m: Tokenizer(config.input(m), config.width) for m in present})
        self.adaptors = nn.ModuleDict(
            {m: nn.ModuleList(Block(config) for _ in range(config.l_adapt)) for m in present}
        )
        self.shared = Trunk(config, present)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(config.feature_width, task.num_classes) for name, task in tasks.items()}
        )
        if not self.shared.norm.weight.is_meta:
            self.reset_parameters(torch.Generator().manual_seed(seed))

    def forward(self, inputs: Mapping[str, Tensor], task: str, keep: Tensor | None = None) -> Tensor:
        """Logits [B, K] of `task`.

        inputs: `tokens` [B, N, P], normalised floats. keep [L, 2, B]: stochastic depth, as `draw_keep` gives.
        """
        return self.heads[task](self.forward_features(inputs, self.modality[task], keep))

    def forward_features(
        self, inputs: Mapping[str, Tensor], modality: Modality, keep: Tensor | None = None
    ) -> Tensor:
        """The class token after the final norm: [B, D]. inputs, keep: as `forward`."""
        return self.encode(inputs["tokens"], modality, keep)[:, 0]

    def encode(self, tokens_BNP: Tensor, modality: Modality, keep_L2B: Tensor | None = None) -> Tensor:
        """Every token after the final norm: [B, 1 + N, D]."""
        x_BND = self.tokenizers[modality](tokens_BNP)
        for i, block in enumerate(self._blocks(modality)):
            x_BND = self._run(block, x_BND, None if keep_L2B is None else keep_L2B[i], modality)
        return self.shared.norm(x_BND)

    def _blocks(self, modality: Modality) -> Iterator[nn.Module]:
        yield from self.adaptors[modality]  # type: ignore[misc]
        yield from (self.shared.blocks[home] for home in self.shared.homes)

    def blocks_alone(self, modality: Modality) -> list[Block | LowRankBlock]:
        """The blocks of a modality in the order in which they run, without other modalities' factors.

        Low-rank maps are multiplied out where that makes them smaller. A block that runs several times is one.
        """
        alone: dict[int, Block | LowRankBlock] = {}
        for block in (blocks := list(self._blocks(modality))):
            if id(block) not in alone:
                low_rank = isinstance(block, LowRankBlock)
                alone[id(block)] = block.alone(self.config, modality) if low_rank else block  # type: ignore[operator,assignment]
        return [alone[id(block)] for block in blocks]

    def plain_blocks(self, modality: Modality) -> list[Block]:
        """The blocks of a modality in the order in which they run, every low-rank map multiplied out.

        A block that runs several times is there several times.
        """
        blocks = self._blocks(modality)
        return [
            block.plain(self.config, modality) if isinstance(block, LowRankBlock) else block  # type: ignore[misc]
            for block in blocks
        ]

    def _run(self, block: nn.Module, x_BND: Tensor, keep_2B: Tensor | None, modality: Modality) -> Tensor:
        own = (modality,) if isinstance(block, LowRankBlock) else ()
        if self.activation_checkpointing and torch.is_grad_enabled():
            # A block draws no random numbers, so there is no generator's state to put back.
            return checkpoint(block, x_BND, keep_2B, *own, use_reentrant=False, preserve_rng_state=False)
        return block(x_BND, keep_2B, *own)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """torch.compile every block, for shapes that do not change: one graph for each number of tokens (modality)
        and of examples (batch), with and without stochastic depth, with and without gradients.

        `polyvit.training.warm_up` has them all compiled before the first step.
        """
        # Past the limit torch falls back to eager without a word; blocks share one function, hence one count.
        torch._dynamo.config.recompile_limit = max(256, torch._dynamo.config.recompile_limit)
        for module in self.modules():
            if isinstance(module, Block | LowRankBlock):
                # Not module.compile(): hooks of FSDP stay outside the graph this way.
                module.forward = torch.compile(module.forward, dynamic=False, backend=backend)  # type: ignore[method-assign]
        self.compiled = True

    def draw_keep(self, drop_path: float, global_batch: int, generator: torch.Generator) -> Tensor | None:
        """Stochastic depth [L, 2, B] of a global batch, of 0 and 1 on the CPU; None where nothing is dropped."""
        if not drop_path:
            return None
        config = self.config
        rates = drop_path_rates(drop_path, config.depth, config.l_adapt, config.drop_path_ramp)
        return draw_keep(rates, global_batch, generator)

    def sharding_units(self) -> list[nn.Module]:
        """Modules that FSDP gathers one by one: tokenizers, blocks, heads, then the model.

        A block that several layers share stays with the model: gathered once a pass, not at each layer.
        """
        blocks = [block for stack in self.adaptors.values() for block in stack]  # type: ignore[attr-defined]
        if len(self.shared.blocks) == len(self.shared.homes):
            blocks += self.shared.blocks
        return [*self.tokenizers.values(), *blocks, *self.heads.values(), self]

    def parameter_table(self) -> dict[str, int]:
        """Parameters by role: `tokenizer/image`, ..., `adaptor/image`, ..., `shared`, `shared/image` (a modality's
        own factors of shared blocks), ..., `head/<task>`; in order."""
        table: dict[str, int] = {}
        for name, parameter in self.named_parameters():
            role, _, rest = name.partition(".")
            owner = owner_of(name) if role == "shared" else rest.split(".")[0]
            key = role.removesuffix("s") + (f"/{owner}" if owner else "")
            table[key] = table.get(key, 0) + parameter.numel()
        return table

    def touched(self, task: str) -> dict[str, nn.Parameter]:
        """The parameters that a step of `task` reaches and trains, by name: none that is frozen."""
        modality = self.modality[task]
        prefixes = ("shared.", f"tokenizers.{modality}.", f"adaptors.{modality}.", f"heads.{task}.")
        return {
            n: p
            for n, p in self.named_parameters()
            if p.requires_grad and n.startswith(prefixes) and owner_of(n) in (None, modality)
        }

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Blocks xavier-uniform (q, k, v apart), MLP bias N(0, 1e-6), positions N(0, 0.02), class token 0,
        patch embedding LeCun-normal, heads as their tasks' `head_init` says. Source: facts from the release.
        """
        for tokenizer in self.tokenizers.values():
            assert isinstance(tokenizer, Tokenizer)
            _lecun_normal(tokenizer.patch_embed, generator)
            tokenizer.cls_token.zero_()
            tokenizer.pos_embed.normal_(0.0, 0.02, generator=generator)
        for module in self.modules():
            if isinstance(module, Block):
                _reset_block(module, generator)
            elif isinstance(module, LowRankLinear):
                module.reset(generator)
        for name, head in self.heads.items():
            assert isinstance(head, nn.Linear)
            if self._head_init[name] == "lecun_normal":
                _lecun_normal(head, generator)
            else:
                head.weight.zero_()
                head.bias.zero_()


def _lecun_normal(layer: nn.Linear, generator: torch.Generator) -> None:
    # Flax's lecun_normal: a normal cut off at two deviations, rescaled to variance 1 / fan_in.
    std = math.sqrt(1.0 / layer.in_features) / 0.87962566103423978
    nn.init.trunc_normal_(layer.weight, 0.0, std, -2 * std, 2 * std, generator=generator)
    layer.bias.zero_()


def _reset_block(block: Block, generator: torch.Generator) -> None:
    for part in block.attn.qkv.weight.chunk(3):
        nn.init.xavier_uniform_(part, generator=generator)
    block.attn.qkv.bias.zero_()
    nn.init.xavier_uniform_(block.attn.proj.weight, generator=generator)
    block.attn.proj.bias.zero_()
    for layer in (block.mlp.fc1, block.mlp.fc2):
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        layer.bias.normal_(0.0, 1e-6, generator=generator)
