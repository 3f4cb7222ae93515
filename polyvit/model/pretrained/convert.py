"""Name and shape maps between other code's parameter trees and ours. Pure functions: no files, no model.

In and out: mappings of parameter name to tensor. Our names are those of `polyvit.model`; a block is a state
dict of `encoder.Block`. Every map is a rearrangement, so converting there and back gives the same bits.
Legend: D width, H heads, C width of one head, M mlp_dim, P patch_dim, K classes.
Sources: names of the official release (google-research/scenic, projects/polyvit), of vision_transformer and
big_vision (Flax), of timm's VisionTransformer and of Hugging Face ViT, releases 4 and 5.
"""

import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from polyvit.config import Modality, ModelConfig
from polyvit.errors import UserError

OFFICIAL_TOKENIZERS: dict[Modality, str] = {
    "image": "tokenizer2d",
    "video": "tokenizer3d",
    "audio": "tokenizer_spec",
}
_HEAD = re.compile(r"classification_head_(.+)/output_projection/kernel")

HF_BLOCK_NAMES: dict[str, tuple[str, str]] = {
    "norm1": ("layernorm_before", "layernorm_before"),
    "q": ("attention.q_proj", "attention.attention.query"),
    "k": ("attention.k_proj", "attention.attention.key"),
    "v": ("attention.v_proj", "attention.attention.value"),
    "attn.proj": ("attention.o_proj", "attention.output.dense"),
    "norm2": ("layernorm_after", "layernorm_after"),
    "mlp.fc1": ("mlp.fc1", "intermediate.dense"),
    "mlp.fc2": ("mlp.fc2", "output.dense"),
}
"""Part of a block -> its module in transformers 5 and in transformers 4."""


def nonfinite(tensors: Mapping[str, Tensor]) -> list[str]:
    """A line for each tensor with NaN or infinite values."""
    return [f"{name}: NaN or infinite" for name, tensor in tensors.items() if not tensor.isfinite().all()]


def check_finite(path: object, tensors: Mapping[str, Tensor]) -> None:
    """Raises UserError that names the tensors of a file with NaN or infinite values."""
    if problems := nonfinite(tensors):
        raise UserError(f"{path} has weights that cannot be used; use another checkpoint", problems[:10])


def as_tensor(array: np.ndarray | Tensor) -> Tensor:
    """float32 tensor. NumPy has no bfloat16: big_vision's files hold it as two void bytes."""
    if isinstance(array, Tensor):
        return array.float()
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).float()
    return torch.from_numpy(np.array(array, dtype=np.float32))


def pop(tree: dict[str, Tensor], name: str) -> Tensor:
    """Take `name` out of `tree`. Raises UserError where it is missing."""
    if name not in tree:
        raise UserError(f"the checkpoint has no {name!r}; it holds {len(tree)} other names: {_some(tree)}")
    return tree.pop(name)


def pop_group(tree: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take out every name that starts with `prefix`, and cut it off. Raises UserError where none does."""
    names = [name for name in tree if name.startswith(prefix)]
    if not names:
        raise UserError(f"the checkpoint has nothing under {prefix!r}; it holds {_some(tree)}")
    return {name.removeprefix(prefix): tree.pop(name) for name in names}


def with_prefix(prefix: str, tree: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put `prefix` before every name."""
    return {prefix + name: tensor for name, tensor in tree.items()}


def flat_kernel(kernel: Tensor) -> Tensor:
    """Flax patch kernel [(t,) h, w, channels, D] -> weight [D, P] of our linear patch embedding."""
    return kernel.reshape(-1, kernel.shape[-1]).T.contiguous()


# ---------------------------------------------------------------------------------------------------- blocks


def block_from_flax(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """One Flax encoder block -> ours. Dense kernels are (in, out); q, k, v kernels [D, H, C], out [H, C, D].

    The modules are told by kind and order, since their numbers differ: LayerNorm_0 and _2, attention _1,
    MLP _3 in vision_transformer; LayerNorm_0 and _1, attention _0, MLP _0 in big_vision and Scenic.
    """
    modules = sorted({name.split("/")[0] for name in leaves})
    kinds = [name.rsplit("_", 1)[0] for name in modules]
    if kinds != ["LayerNorm", "LayerNorm", "MlpBlock", "MultiHeadDotProductAttention"]:
        raise UserError(f"an encoder block holds {modules}; a ViT block is two LayerNorm, attention and MLP")
    norm1, norm2, mlp, attention = modules
    block: dict[str, Tensor] = {}
    for ours, theirs in (("norm1", norm1), ("norm2", norm2)):
        block[f"{ours}.weight"] = pop(leaves, f"{theirs}/scale")
        block[f"{ours}.bias"] = pop(leaves, f"{theirs}/bias")
    qkv = [_dense(leaves, f"{attention}/{part}", inputs=1) for part in ("query", "key", "value")]
    block["attn.qkv.weight"] = torch.cat([weight for weight, _ in qkv])
    block["attn.qkv.bias"] = torch.cat([bias for _, bias in qkv])
    block["attn.proj.weight"], block["attn.proj.bias"] = _dense(leaves, f"{attention}/out", inputs=2)
    for i in (0, 1):
        weight, bias = _dense(leaves, f"{mlp}/Dense_{i}", inputs=1)
        block[f"mlp.fc{i + 1}.weight"], block[f"mlp.fc{i + 1}.bias"] = weight, bias
    return _whole_block(block, leaves)


def block_to_flax(block: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """Our block -> the official release's names and shapes."""
    width = block["norm1.weight"].shape[0]
    heads = (num_heads, width // num_heads)
    leaves = {
        "LayerNorm_0/scale": block["norm1.weight"],
        "LayerNorm_0/bias": block["norm1.bias"],
        "LayerNorm_1/scale": block["norm2.weight"],
        "LayerNorm_1/bias": block["norm2.bias"],
    }
    attention = "MultiHeadDotProductAttention_0"
    weights, biases = block["attn.qkv.weight"].chunk(3), block["attn.qkv.bias"].chunk(3)
    for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        leaves[f"{attention}/{part}/kernel"] = weight.T.reshape(width, *heads)
        leaves[f"{attention}/{part}/bias"] = bias.reshape(heads)
    leaves[f"{attention}/out/kernel"] = block["attn.proj.weight"].T.reshape(*heads, width)
    leaves[f"{attention}/out/bias"] = block["attn.proj.bias"]
    for i in (0, 1):
        leaves[f"MlpBlock_0/Dense_{i}/kernel"] = block[f"mlp.fc{i + 1}.weight"].T
        leaves[f"MlpBlock_0/Dense_{i}/bias"] = block[f"mlp.fc{i + 1}.bias"]
    return leaves


def block_from_timm(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """One timm block -> ours. The names agree; layer scale, if there is one, is folded into the weights."""
    block = {}
    scales = {"attn.proj": "ls1.gamma", "mlp.fc2": "ls2.gamma"}
    for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
        weight, bias = pop(leaves, f"{part}.weight"), pop(leaves, f"{part}.bias")
        gamma = leaves.pop(scales.get(part, ""), None)
        if gamma is not None:
            weight, bias = gamma[:, None] * weight, gamma * bias
        block[f"{part}.weight"], block[f"{part}.bias"] = weight, bias
    return _whole_block(block, leaves)


def block_from_hf(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """One Hugging Face block (ViT, ViViT, AST; names of release 4 or 5) -> ours."""
    release = 0 if "attention.q_proj.weight" in leaves else 1
    parts = {
        f"{part}.{leaf}": pop(leaves, f"{names[release]}.{leaf}")
        for part, names in HF_BLOCK_NAMES.items()
        for leaf in ("weight", "bias")
    }
    for leaf in ("weight", "bias"):
        parts[f"attn.qkv.{leaf}"] = torch.cat([parts.pop(f"{part}.{leaf}") for part in "qkv"])
    return _whole_block(parts, leaves)


def block_to_hf(block: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our block -> Hugging Face's (ViT, ViViT, AST) in the names of release 4, which release 5 reads too."""
    parts = dict(block)
    for leaf in ("weight", "bias"):
        parts |= zip((f"{part}.{leaf}" for part in "qkv"), parts.pop(f"attn.qkv.{leaf}").chunk(3), strict=True)
    return {
        f"{names[1]}.{leaf}": parts[f"{part}.{leaf}"]
        for part, names in HF_BLOCK_NAMES.items()
        for leaf in ("weight", "bias")
    }


def _dense(leaves: dict[str, Tensor], name: str, inputs: int) -> tuple[Tensor, Tensor]:
    """(weight [out, in], bias [out]) of a Flax layer whose kernel has `inputs` input axes."""
    kernel = pop(leaves, f"{name}/kernel")
    weight = kernel.reshape(int(np.prod(kernel.shape[:inputs])), -1).T.contiguous()
    return weight, pop(leaves, f"{name}/bias").reshape(-1)


def _whole_block(block: dict[str, Tensor], left: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if left:
        raise UserError(
            f"an encoder block also holds {_some(left)}: this is no plain ViT block, and without these"
            " parameters it would compute something else; give a plain ViT checkpoint"
        )
    return block


# -------------------------------------------------------------------------------------- the official PolyViT


def official_to_state(tree: Mapping[str, np.ndarray | Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The official release's PolyViT parameters (flattened names) -> state dict of `PolyViT(config, ...)`.

    Tasks get the names of the release's datasets. Raises UserError where a parameter is missing or unknown.
    """
    left = {name: as_tensor(array) for name, array in tree.items()}
    state: dict[str, Tensor] = {}
    for modality, tokenizer in OFFICIAL_TOKENIZERS.items():
        root = f"tokenizer/{tokenizer}/"
        if f"{root}cls" not in left:
            continue
        ours = f"tokenizers.{modality}."
        state[f"{ours}patch_embed.weight"] = flat_kernel(pop(left, f"{root}embedding/kernel"))
        state[f"{ours}patch_embed.bias"] = pop(left, f"{root}embedding/bias")
        state[f"{ours}cls_token"] = pop(left, f"{root}cls")
        state[f"{ours}pos_embed"] = pop(left, f"{root}posembed_input/pos_embedding")
        for i in range(config.l_adapt):
            block = block_from_flax(pop_group(left, f"{root}encoderblock_{i}/"))
            state |= with_prefix(f"adaptors.{modality}.{i}.", block)
    for i in range(config.l_adapt, config.depth):
        block = block_from_flax(pop_group(left, f"vit_encoder/encoderblock_{i}/"))
        state |= with_prefix(f"shared.blocks.{i - config.l_adapt}.", block)
    state["shared.norm.weight"] = pop(left, "vit_encoder/encoder_norm/scale")
    state["shared.norm.bias"] = pop(left, "vit_encoder/encoder_norm/bias")
    for task in [match[1] for match in map(_HEAD.fullmatch, list(left)) if match]:
        root = f"classification_head_{task}/output_projection/"
        state[f"heads.{task}.weight"] = pop(left, f"{root}kernel").T.contiguous()
        state[f"heads.{task}.bias"] = pop(left, f"{root}bias")
    if left:
        raise UserError(
            f"the tree holds {_some(left)}, which a PolyViT of depth {config.depth} with l_adapt"
            f" {config.l_adapt} does not have; set model.depth and model.l_adapt to the checkpoint's"
        )
    return state


def state_to_official(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, np.ndarray]:
    """State dict of `PolyViT(config, ...)` -> the official release's flattened names and shapes."""
    left = {name: tensor.detach().cpu() for name, tensor in state.items()}
    tree: dict[str, Tensor] = {}
    for modality, tokenizer in OFFICIAL_TOKENIZERS.items():
        ours, root = f"tokenizers.{modality}.", f"tokenizer/{tokenizer}/"
        if f"{ours}cls_token" not in left:
            continue
        kernel = pop(left, f"{ours}patch_embed.weight").T
        tree[f"{root}embedding/kernel"] = kernel.reshape(*kernel_shape(config, modality), -1)
        tree[f"{root}embedding/bias"] = pop(left, f"{ours}patch_embed.bias")
        tree[f"{root}cls"] = pop(left, f"{ours}cls_token")
        tree[f"{root}posembed_input/pos_embedding"] = pop(left, f"{ours}pos_embed")
        for i in range(config.l_adapt):
            block = block_to_flax(pop_group(left, f"adaptors.{modality}.{i}."), config.num_heads)
            tree |= with_prefix(f"{root}encoderblock_{i}/", block)
    for i in range(config.l_adapt, config.depth):
        block = block_to_flax(pop_group(left, f"shared.blocks.{i - config.l_adapt}."), config.num_heads)
        tree |= with_prefix(f"vit_encoder/encoderblock_{i}/", block)
    tree["vit_encoder/encoder_norm/scale"] = pop(left, "shared.norm.weight")
    tree["vit_encoder/encoder_norm/bias"] = pop(left, "shared.norm.bias")
    for name, tensor in left.items():
        task, leaf = name.removeprefix("heads.").rsplit(".", 1)
        root = f"classification_head_{task}/output_projection/"
        tree[root + ("kernel" if leaf == "weight" else "bias")] = tensor.T if leaf == "weight" else tensor
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in tree.items()}


def kernel_shape(config: ModelConfig, modality: Modality) -> tuple[int, ...]:
    """Shape of a modality's patch kernel without its output axis: ([t,] h, w, channels)."""
    return config.input(modality).kernel_shape


def _some(names: Mapping[str, object], most: int = 5) -> str:
    shown = ", ".join(sorted(names)[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
