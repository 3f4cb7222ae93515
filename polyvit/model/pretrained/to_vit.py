"""One task of a PolyViT as a plain ViT: its weights in the names and shapes of timm's VisionTransformer and of
Hugging Face's ViT, ViViT and AST. Pure functions: no files, and neither library is imported.

In: a trained PolyViT and a task; adaptor blocks are blocks like any other, low-rank maps are multiplied out.
Out: state dicts. All maps are rearrangements, but for AST's final norm (see `ast_state`).
Legend: D width, N patches, C channels, K classes.
Sources: timm 1.0 `VisionTransformer`; transformers 5.23 `models/{vit,vivit,audio_spectrogram_transformer}`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polyvit.config import InputSection
from polyvit.model.polyvit import PolyViT
from polyvit.model.pretrained.convert import block_to_hf, with_prefix
from polyvit.model.tokenizer import Tokenizer

AST_ROOT = "audio_spectrogram_transformer"
"""Where `ASTForAudioClassification` keeps its encoder."""


@dataclass(frozen=True)
class TaskPath:
    """What an example of one task runs through.

    spec: its input. patch_kernel [*patch, C, D], patch_bias [D]; a spectrogram has one channel. cls_token [D].
    positions [1 + N, D], the class token's first. blocks, norm, head: state dicts of modules.
    """

    spec: InputSection
    patch_kernel: Tensor
    patch_bias: Tensor
    cls_token: Tensor
    positions: Tensor
    blocks: tuple[dict[str, Tensor], ...]
    norm: dict[str, Tensor]
    head: dict[str, Tensor]


@torch.no_grad()
def task_path(model: PolyViT, task: str) -> TaskPath:
    """The path of one task of a PolyViT, with any l_adapt and any sharing."""
    modality = model.modality[task]
    tokenizer = model.tokenizers[modality]
    assert isinstance(tokenizer, Tokenizer)
    spec = model.config.input(modality)
    channels = 3 if spec.channels_last else 1
    return TaskPath(
        spec=spec,
        patch_kernel=tokenizer.kernel().T.reshape(*spec.patch, channels, -1),
        patch_bias=tokenizer.patch_embed.bias.detach(),
        cls_token=tokenizer.cls_token.detach()[0, 0],
        positions=tokenizer.pos_embed.detach()[0],
        blocks=tuple(block.state_dict() for block in model.plain_blocks(modality)),
        norm=model.shared.norm.state_dict(),
        head=model.heads[task].state_dict(),
    )


def timm_state(path: TaskPath) -> dict[str, Tensor]:
    """State dict of timm's `VisionTransformer(class_token=True, global_pool="token")`."""
    state = {
        "cls_token": path.cls_token[None, None],
        "pos_embed": path.positions[None],
        "patch_embed.proj.weight": _convolution(path.patch_kernel),
        "patch_embed.proj.bias": path.patch_bias,
    }
    for i, block in enumerate(path.blocks):
        state |= with_prefix(f"blocks.{i}.", block)
    return _own_memory(state | with_prefix("norm.", path.norm) | with_prefix("head.", path.head))


def hf_state(path: TaskPath, root: str) -> dict[str, Tensor]:
    """State dict of Hugging Face's `ViTForImageClassification` (root `vit`) or `VivitForVideoClassification`
    (`vivit`)."""
    state = _hf_encoder(path, root) | with_prefix(f"{root}.layernorm.", path.norm)
    return _own_memory(state | with_prefix("classifier.", path.head))


def ast_state(path: TaskPath) -> dict[str, Tensor]:
    """State dict of Hugging Face's `ASTForAudioClassification`.

    AST averages a class and a distillation token. Both are our class token here: with the distillation token
    hidden as a key (`attention_mask` 0 at place 1) the two stay equal, and their mean is ours. AST normalises that
    mean once more before its head: its first norm gets no scale and shift, the second ours, which differs by
    `norm_eps` against the variance. Patches go by frequency first, kernels are (frequency, time).
    """
    rows, columns = path.spec.grid
    cls_1D, patches_ND = path.positions[:1], path.positions[1:]
    by_frequency_ND = patches_ND.unflatten(0, (rows, columns)).transpose(0, 1).flatten(0, 1)
    turned = TaskPath(
        **vars(path)
        | {
            "patch_kernel": path.patch_kernel.transpose(0, 1),
            "positions": torch.cat([cls_1D, cls_1D, by_frequency_ND]),
        }
    )
    state = _hf_encoder(turned, AST_ROOT)
    state[f"{AST_ROOT}.embeddings.distillation_token"] = path.cls_token[None, None]
    state[f"{AST_ROOT}.layernorm.weight"] = torch.ones_like(path.cls_token)
    state[f"{AST_ROOT}.layernorm.bias"] = torch.zeros_like(path.cls_token)
    state |= with_prefix("classifier.layernorm.", path.norm)
    return _own_memory(state | with_prefix("classifier.dense.", path.head))


def _hf_encoder(path: TaskPath, root: str) -> dict[str, Tensor]:
    """What the three models of Hugging Face have in common: embeddings and blocks."""
    embeddings = f"{root}.embeddings"
    state = {
        f"{embeddings}.cls_token": path.cls_token[None, None],
        f"{embeddings}.position_embeddings": path.positions[None],
        f"{embeddings}.patch_embeddings.projection.weight": _convolution(path.patch_kernel),
        f"{embeddings}.patch_embeddings.projection.bias": path.patch_bias,
    }
    for i, block in enumerate(path.blocks):
        state |= with_prefix(f"{root}.encoder.layer.{i}.", block_to_hf(block))
    return state


def _convolution(kernel: Tensor) -> Tensor:
    """[*patch, C, D] -> [D, C, *patch], as torch's convolutions have it."""
    return kernel.movedim((-1, -2), (0, 1))


def _own_memory(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """float32 on the CPU, each tensor with memory of its own, as safetensors files want it."""
    return {
        name: t.detach().float().cpu().clone(memory_format=torch.contiguous_format) for name, t in state.items()
    }
