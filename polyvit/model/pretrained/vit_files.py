"""Read a plain ViT image classifier from a file, whoever wrote it.

In: an `.npz` (vision_transformer, AugReg, big_vision, Scenic), a `.safetensors` (timm, Hugging Face ViT), or
a folder with `model.safetensors`. Out: a `ViT`, with blocks in our names. Nothing is unpickled.
Legend: D width, N patches, L rows of a position table.
Sources: key names as published by google-research/vision_transformer and big_vision, timm 1.0, transformers 4
and 5.
"""

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from polyvit.errors import UserError
from polyvit.model.pretrained.convert import (
    as_tensor,
    block_from_flax,
    block_from_hf,
    block_from_timm,
    check_finite,
    pop,
    pop_group,
)
from polyvit.storage import LFS_POINTER, is_lfs_pointer, read_record

Grid = tuple[int, int]
FLAX_ROOTS = ("", "params/", "params/img/", "img/", "opt/target/")
"""Where the encoder sits: published files, big_vision checkpoints, its two-tower models, old Flax."""
_FLAX_TABLES = ("pos_embedding", "Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding")
_HF_KERNEL = "embeddings.patch_embeddings.projection.weight"
ALTERING = ("norm_pre.", "layernorm_pre.", "rel_pos_bias.", "Transformer/pre_norm")
"""Parameters outside the blocks that change what the trunk computes, and that our model does not have."""


@dataclass(frozen=True)
class ViT:
    """Weights of a plain ViT.

    patch_kernel [h, w, channels, D], patch_bias [D]; cls_token, cls_position [D], None where there is none;
    positions [N, D] over `grid` (rows, columns), None where the file has none (sine-cosine positions).
    blocks: state dicts of `encoder.Block`. norm: weight and bias, or None (norm after pooling).
    num_heads: None where the file does not say. unused: names that were left in the file.
    """

    source: str
    layout: str
    patch_kernel: Tensor
    patch_bias: Tensor
    cls_token: Tensor | None
    cls_position: Tensor | None
    positions: Tensor | None
    grid: Grid | None
    blocks: tuple[dict[str, Tensor], ...]
    norm: dict[str, Tensor] | None
    num_heads: int | None
    gelu: Literal["tanh", "erf"]
    norm_eps: float
    unused: tuple[str, ...]

    @property
    def width(self) -> int:
        """D."""
        return self.patch_kernel.shape[-1]

    @property
    def mlp_dim(self) -> int:
        """Hidden units of the MLP."""
        return self.blocks[0]["mlp.fc1.weight"].shape[0]


def load_vit(path: str | Path, grid: Grid | None = None) -> ViT:
    """The ViT in a file. `grid`: rows and columns of its patches; needed only where the two differ.

    Raises UserError where the file is missing, of another kind, damaged, or holds something else than a ViT.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; give an .npz or .safetensors file, or a folder with one")
    with path.open("rb") as file:
        if is_lfs_pointer(file.read(64)):
            raise UserError(f"{path} cannot be read: {LFS_POINTER}")
    if path.suffix == ".npz":
        return _read_flax(path, grid)
    if path.suffix == ".safetensors":
        tree, config = _read_safetensors(path)
        if any(name.endswith(_HF_KERNEL) for name in tree):
            return _read_hf(path, tree, config, grid)
        return _read_timm(path, tree, config, grid)
    raise UserError(
        f"{path} ends in {path.suffix!r}; allowed are .npz and .safetensors (a pickled checkpoint can run"
        " code; convert it with safetensors.torch.save_file)"
    )


# ------------------------------------------------------------------------------------------------ one format


def _read_flax(path: Path, grid: Grid | None) -> ViT:
    tree, outside = _read_npz(path)
    table_name = next((name for name in _FLAX_TABLES if name in tree), None)
    table = tree.pop(table_name)[0] if table_name else None
    cls_token = tree.pop("cls")[0, 0] if "cls" in tree else None
    cls_position, positions, grid = _split(path, table, int(cls_token is not None), 0, grid)
    leaves = _flax_blocks(tree)
    heads = next((leaf.shape[1] for name, leaf in leaves[0].items() if name.endswith("query/kernel")), None)
    norm = {"weight": "scale", "bias": "bias"}
    return ViT(
        source=str(path),
        layout="Flax .npz",
        patch_kernel=pop(tree, "embedding/kernel"),
        patch_bias=pop(tree, "embedding/bias"),
        cls_token=cls_token,
        cls_position=cls_position,
        positions=positions,
        grid=grid,
        blocks=tuple(block_from_flax(leaf) for leaf in leaves),
        norm={ours: pop(tree, f"Transformer/encoder_norm/{leaf}") for ours, leaf in norm.items()},
        num_heads=heads,
        gelu="tanh",
        norm_eps=1e-6,
        unused=_unused(path, tree) + outside,
    )


def _flax_blocks(tree: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Leaves of each block; big_vision's scanned models hold them stacked, as [depth, ...]."""
    if not _has(tree, "Transformer/encoderblock/"):
        return _numbered(tree, "Transformer/encoderblock_{}/")
    stacked = pop_group(tree, "Transformer/encoderblock/")
    depth = len(next(iter(stacked.values())))
    return [{name: leaf[i] for name, leaf in stacked.items()} for i in range(depth)]


def _read_timm(path: Path, tree: dict[str, Tensor], config: Mapping[str, Any], grid: Grid | None) -> ViT:
    if not _has(tree, "patch_embed.proj.") or not _has(tree, "blocks.0."):
        some = min(tree, default="")
        raise UserError(f"{path} is neither a timm nor a Hugging Face ViT: it holds names such as {some!r}")
    kernel = _conv_kernel(path, pop(tree, "patch_embed.proj.weight"))
    cls_token = tree.pop("cls_token")[0, 0] if "cls_token" in tree else None
    table = tree.pop("pos_embed")[0] if "pos_embed" in tree else None
    extra = sum(tree[name].shape[1] for name in ("dist_token", "reg_token") if name in tree)
    norm = {leaf: tree.pop(f"norm.{leaf}") for leaf in ("weight", "bias") if f"norm.{leaf}" in tree}
    grid = grid or _grid(
        _value(path, _value(path, config, "pretrained_cfg", dict) or {}, "input_size", int, list), kernel
    )
    cls_position, positions, grid = _split(path, table, int(cls_token is not None), extra, grid)
    return ViT(
        source=str(path),
        layout="timm",
        patch_kernel=kernel,
        patch_bias=pop(tree, "patch_embed.proj.bias"),
        cls_token=cls_token,
        cls_position=cls_position,
        positions=positions,
        grid=grid,
        blocks=tuple(block_from_timm(leaves) for leaves in _numbered(tree, "blocks.{}.")),
        norm=norm or None,
        num_heads=None,
        gelu="erf",
        norm_eps=1e-6,
        unused=_unused(path, tree),
    )


def _read_hf(path: Path, tree: dict[str, Tensor], config: Mapping[str, Any], grid: Grid | None) -> ViT:
    root = next(name for name in tree if name.endswith(_HF_KERNEL)).removesuffix(_HF_KERNEL)
    left = pop_group(tree, root) if root else tree
    kernel = _conv_kernel(path, pop(left, _HF_KERNEL))
    extra = int("embeddings.distillation_token" in left)
    grid = grid or _grid(_value(path, config, "image_size", int, list), kernel)
    table = pop(left, "embeddings.position_embeddings")[0]
    cls_position, positions, grid = _split(path, table, 1, extra, grid)
    layers = "layers" if _has(left, "layers.0.") else "encoder.layer"
    return ViT(
        source=str(path),
        layout="Hugging Face",
        patch_kernel=kernel,
        patch_bias=pop(left, "embeddings.patch_embeddings.projection.bias"),
        cls_token=pop(left, "embeddings.cls_token")[0, 0],
        cls_position=cls_position,
        positions=positions,
        grid=grid,
        blocks=tuple(block_from_hf(leaves) for leaves in _numbered(left, f"{layers}.{{}}.")),
        norm={leaf: pop(left, f"layernorm.{leaf}") for leaf in ("weight", "bias")},
        num_heads=_value(path, config, "num_attention_heads", int),
        gelu="erf" if config.get("hidden_act", "gelu") == "gelu" else "tanh",
        norm_eps=_value(path, config, "layer_norm_eps", int, float) or 1e-12,
        unused=_unused(path, left | (tree if root else {})),
    )


# ----------------------------------------------------------------------------------------------------- parts


def _read_npz(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The encoder's leaves, their root cut off, and the names outside of it (optimiser state is not read)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            root = next((r for r in FLAX_ROOTS if f"{r}embedding/kernel" in file), None)
            if root is None:
                raise UserError(
                    f"{path} is no ViT: it has no 'embedding/kernel' under any of {FLAX_ROOTS}; it holds"
                    f" {len(file.files)} names such as {min(file.files, default='')!r}"
                )
            inside = [name for name in file.files if name.startswith(root)]
            outside = tuple(name for name in file.files if not name.startswith(root))
            tree = {name.removeprefix(root): as_tensor(file[name]) for name in inside}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as an .npz of plain arrays: {error}") from error
    check_finite(path, tree)
    return tree, outside


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """float32 tensors, and the `config.json` beside the file (empty where there is none)."""
    try:
        with safe_open(path, framework="pt") as file:
            tree = {name: as_tensor(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error
    check_finite(path, tree)
    beside = path.parent / "config.json"
    return tree, read_record(beside, "put back a copy of it, or delete it") if beside.is_file() else {}


def _split(
    path: Path, table_LD: Tensor | None, has_cls: int, extra: int, grid: Grid | None
) -> tuple[Tensor | None, Tensor | None, Grid | None]:
    """Position table -> (row of the class token, rows of the patches, grid).

    The class token, and `extra` distillation or register tokens, may or may not have rows of their own.
    """
    if table_LD is None:
        return None, None, None
    rows = len(table_LD)
    for before in sorted({has_cls + extra, has_cls, 0}, reverse=True):
        side = math.isqrt(max(0, rows - before))
        sides = grid or (side, side)
        if math.prod(sides) == rows - before:
            return table_LD[0] if has_cls and before else None, table_LD[before:], sides
    shape = f"{grid[0]}x{grid[1]}" if grid else "square"
    raise UserError(
        f"{path}: its position table has {rows} rows ({has_cls + extra} for tokens that are no patches),"
        f" which do not form a {shape} grid; give `grid`, the checkpoint's own patches down and across"
    )


def _conv_kernel(path: Path, weight: Tensor) -> Tensor:
    """Convolution weight [D, channels, h, w] -> [h, w, channels, D]."""
    if weight.ndim != 4:
        raise UserError(
            f"{path}: its patch embedding is {list(weight.shape)}; an image ViT's is [width, channels, h, w]"
        )
    return weight.permute(2, 3, 1, 0).contiguous()


def _numbered(tree: dict[str, Tensor], pattern: str) -> list[dict[str, Tensor]]:
    """Leaves of block 0, 1, 2 ... as far as they go. Raises UserError where block 0 is missing."""
    blocks = [pop_group(tree, pattern.format(0))]
    while _has(tree, prefix := pattern.format(len(blocks))):
        blocks.append(pop_group(tree, prefix))
    return blocks


def _unused(path: Path, left: Mapping[str, Tensor]) -> tuple[str, ...]:
    if altering := [name for name in left if name.startswith(ALTERING) or ".rel_pos_bias." in name]:
        raise UserError(f"{path} is no plain ViT: it holds {altering[0]!r}, which our model does not have")
    return tuple(left)


def _value(path: Path, config: Mapping[str, Any], key: str, *kinds: type) -> Any:
    """A value of the `config.json` beside a file; None where it has none. Raises UserError for another kind."""
    value = config.get(key)
    numbers = isinstance(value, list) and len(value) >= 2 and all(isinstance(side, int) for side in value)
    if value is None or (isinstance(value, kinds) and (numbers or not isinstance(value, list))):
        return value
    raise UserError(
        f"{path.parent / 'config.json'}: {key}={value!r} is not what a ViT's config holds; put back a copy of the "
        "file, or delete it"
    )


def _grid(size: Any, kernel: Tensor) -> Grid | None:
    """Patches of an image size that a `config.json` gives as S, [H, W] or [3, H, W]."""
    if not size:
        return None
    height, width = (size, size) if isinstance(size, int) else size[-2:]
    return height // kernel.shape[0], width // kernel.shape[1]


def _has(tree: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in tree)
