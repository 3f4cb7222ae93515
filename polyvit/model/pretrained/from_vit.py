"""Initialise a PolyViT from an ordinary ViT checkpoint.

In: a model of any l_adapt and any input sizes, and a file that `vit_files.load_vit` reads. Out: the model's
own parameters overwritten, and a report of what was loaded, resized and left random.
The rules are those of the official release (facts.md, section 5): blocks below l_adapt go into every
modality's adaptors, the rest into the shared trunk; the class token to every modality; heads stay random.
Unlike there, a checkpoint's grid is always compared with the model's, and positions are resized where the two
differ.
Legend: N patches, D width, T time, h w patch sides, c channels.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvit.config import (
    InputSection,
    KernelInit,
    Modality,
    ModelConfig,
)
from polyvit.errors import UserError
from polyvit.model.encoder import low_rank_values
from polyvit.model.polyvit import PolyViT
from polyvit.model.pretrained.convert import flat_kernel
from polyvit.model.pretrained.vit_files import ViT, load_vit
from polyvit.model.sharing import layer_homes

_log = logging.getLogger(__name__)
_STACK = re.compile(r"(shared\.blocks|adaptors\.\w+|\w+_cnn\.stages|transformers\.stacks\.\w+)\.(\d+)\.")


@dataclass(frozen=True)
class LoadReport:
    """What initialising did. `loaded` and `random` are our parameter names, `resized` says how for each;
    `unused` are names of the checkpoint; `notes` are warnings.
    """

    source: str
    loaded: tuple[str, ...]
    resized: Mapping[str, str]
    random: tuple[str, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...]

    def table(self) -> str:
        """A table to print: one line a parameter, blocks of one role gathered."""
        rows = [("loaded", what, "") for what in _gathered(self.loaded)]
        rows += [("resized", name, how) for name, how in self.resized.items()]
        rows += [("left random", what, "") for what in _gathered(self.random)]
        rows += [("not used", what, "in the checkpoint") for what in _gathered(self.unused)]
        widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
        lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows]
        return "\n".join([self.source, *lines, *(f"note: {note}" for note in self.notes)])


def initialise(
    model: PolyViT,
    path: str | Path,
    *,
    kernel_init: KernelInit = "central",
    grid: tuple[int, int] | None = None,
) -> LoadReport:
    """Overwrite `model`'s trunk and tokenizers with a ViT checkpoint, in place.

    `grid`: the checkpoint's patches down and across, needed only where they are no square.
    Raises UserError where the checkpoint cannot be read, or does not fit; the model is then unchanged.
    """
    vit = load_vit(path, grid)
    modalities = list(model.tokenizers)
    if problems := fit_problems(vit, model.config, modalities):
        raise UserError(f"{vit.source} does not fit the model:", problems)
    values = {name: (value, how) for name, value, how in _values(vit, model.config, modalities, kernel_init)}
    parameters = dict(model.named_parameters())
    _copy(parameters, {name: value for name, (value, _) in values.items()})
    changes = {name: values[name][1] for name in parameters if name in values}
    report = LoadReport(
        source=f"{vit.source}: {vit.layout}, {_size(vit)}",
        loaded=tuple(name for name, how in changes.items() if not how),
        resized={name: how for name, how in changes.items() if how},
        random=tuple(name for name in parameters if name not in changes),
        unused=vit.unused,
        notes=tuple(_notes(vit, model.config)),
    )
    _log.info("initialised from %s", report.table())
    return report


def fit_problems(vit: ViT, config: ModelConfig, modalities: list[Modality]) -> list[str]:
    """Every disagreement between a checkpoint's shapes and a model's, one line each; empty where it fits."""
    sizes = [
        ("width", vit.width, config.width),
        ("depth", len(vit.blocks), config.depth),
        ("mlp_dim", vit.mlp_dim, config.mlp_dim),
        ("num_heads", vit.num_heads or config.num_heads, config.num_heads),
    ]
    problems = [
        f"the checkpoint's {key} is {theirs}, model.{key} is {ours}; set model.{key}={theirs}"
        for key, theirs, ours in sizes
        if theirs != ours
    ]
    h, w, channels, _ = vit.patch_kernel.shape
    if channels != 3:
        problems.append(f"the checkpoint's patch kernel is {h}x{w}x{channels}; it must take 3 channels (RGB)")
    for modality in modalities:
        spec = config.input(modality)
        if spec.vit_positions == "new":
            continue  # its tokenizer starts at random
        key, patch = spec.patch_key, spec.patch
        if patch[-2:] != (h, w):
            fitting = [*patch[:-2], h, w]
            problems.append(
                f"the checkpoint's patches are {_times((h, w))}, model.{modality}.{key} is {_times(patch)};"
                f" set model.{modality}.{key}={fitting} or take a checkpoint with such patches"
            )
    return problems


def inflate(kernel_hwcD: Tensor, frames: int, how: KernelInit) -> Tensor:
    """2-D patch kernel -> tubelet kernel [t, h, w, c, D].

    central: zero but at t // 2. average: kernel / t. arp: weights
    (2 (T - t + 1) - (T + 1) (H_T - H_{t-1})) / T for t = 1..T, with H the harmonic numbers.
    Source: official release (facts.md, section 5).
    """
    if how == "central":
        weights = [float(t == frames // 2) for t in range(frames)]
    elif how == "average":
        weights = [1.0 / frames] * frames
    else:
        harmonic = [sum(1.0 / k for k in range(1, t + 1)) for t in range(frames + 1)]
        weights = [
            (2 * (frames - t + 1) - (frames + 1) * (harmonic[frames] - harmonic[t - 1])) / frames
            for t in range(1, frames + 1)
        ]
    factor = torch.tensor(weights, dtype=torch.float64).view(-1, 1, 1, 1, 1)
    return (factor * kernel_hwcD.double()).float()


def resize_positions(table_ND: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Position table over `grid` -> [N', D] over `target`, bilinear between the corner patches' centres.

    Equal to scipy.ndimage.zoom of order 1, which the release uses. Works in float64.
    """
    if grid == target:
        return table_ND
    plane_1Dhw = table_ND.double().view(*grid, -1).permute(2, 0, 1)[None]
    resized = F.interpolate(plane_1Dhw, size=target, mode="bilinear", align_corners=True)
    return resized[0].permute(1, 2, 0).reshape(target[0] * target[1], -1).float()


def _values(
    vit: ViT, config: ModelConfig, modalities: list[Modality], kernel_init: KernelInit
) -> Iterator[tuple[str, Tensor, str]]:
    """(parameter name, value, how it was changed; empty: copied) of everything that the checkpoint gives."""
    for i, block in enumerate(vit.blocks[: config.l_adapt]):
        homes = [f"adaptors.{m}.{i}" for m in modalities]
        yield from ((f"{home}.{leaf}", value, "") for home in homes for leaf, value in block.items())
    for i, home in _first_layers(config):
        if config.sharing.modalities == "low_rank":
            values = low_rank_values(vit.blocks[i], config.sharing.rank, modalities)
        else:
            values = ((leaf, value, "") for leaf, value in vit.blocks[i].items())
        yield from ((f"shared.blocks.{home}.{leaf}", value, how) for leaf, value, how in values)
    yield from ((f"shared.norm.{leaf}", value, "") for leaf, value in (vit.norm or {}).items())
    for modality in modalities:
        spec = config.input(modality)
        if spec.vit_positions == "new":
            continue
        for leaf, value, how in _tokenizer_values(vit, spec, kernel_init):
            yield f"tokenizers.{modality}.{leaf}", value, how


def _first_layers(config: ModelConfig) -> Iterator[tuple[int, int]]:
    """(layer, distinct shared block) of the first layer of each block: the one that gives it its values."""
    homes = layer_homes(config.depth - config.l_adapt, config.sharing.layers)
    for i, home in enumerate(homes):
        if home not in homes[:i]:
            yield i + config.l_adapt, home


def _tokenizer_values(vit: ViT, spec: InputSection, kernel_init: KernelInit) -> Iterator[tuple[str, Tensor, str]]:
    kernel, how = vit.patch_kernel, ""
    if len(spec.patch) == 3:
        kernel = inflate(kernel, spec.patch[0], kernel_init)
        how = f"kernel {_times(vit.patch_kernel.shape[:2])} -> {_times(kernel.shape[:3])}, {kernel_init} frame"
    elif spec.kernel_shape[-1] == 1:
        kernel, how = kernel.sum(dim=2, keepdim=True), "kernel summed over 3 channels"
    yield "patch_embed.weight", flat_kernel(kernel), how
    yield "patch_embed.bias", vit.patch_bias, ""
    if vit.cls_token is not None:
        yield "cls_token", vit.cls_token[None, None], ""
    if vit.positions is not None:
        yield "pos_embed", *_positions(vit, spec)


def _positions(vit: ViT, spec: InputSection) -> tuple[Tensor, str]:
    """Our table [1, 1 + N, D] and how it was made. A class token without a row of its own gets zeros."""
    assert vit.positions is not None
    assert vit.grid is not None
    target = (spec.grid[-2], spec.grid[-1])
    table_ND, how = resize_positions(vit.positions, vit.grid, target), []
    if vit.grid != target:
        how.append(f"positions {_times(vit.grid)} -> {_times(target)}")
    if len(spec.grid) == 3:
        table_ND = table_ND.repeat(spec.grid[0], 1)
        how.append(f"positions tiled over {spec.grid[0]} tubelets of time")
    row_D = torch.zeros(vit.width) if vit.cls_position is None else vit.cls_position
    return torch.cat([row_D[None], table_ND])[None], ", ".join(how)


@torch.no_grad()
def _copy(parameters: Mapping[str, torch.nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        if parameters[name].shape != value.shape:
            raise ValueError(f"{name} is {tuple(parameters[name].shape)}, got {tuple(value.shape)}")
    for name, value in values.items():
        parameters[name].copy_(value)


def _notes(vit: ViT, config: ModelConfig) -> Iterator[str]:
    if vit.num_heads is None:
        yield f"the file does not say how many attention heads it has; model.num_heads is {config.num_heads}"
    for key, theirs, ours in (("gelu", vit.gelu, config.gelu), ("norm_eps", vit.norm_eps, config.norm_eps)):
        if theirs != ours:
            yield f"a {vit.layout} ViT has {key} {theirs}, the model {ours}; the same is model.{key}={theirs}"
    taken = {*range(config.l_adapt), *(i for i, _ in _first_layers(config))}
    if spare := sorted(set(range(len(vit.blocks))) - taken):
        yield f"layers {', '.join(map(str, spare))} are not used: model.sharing.layers={config.sharing.layers}"
    if vit.cls_token is None:
        yield "the checkpoint has no class token; ours starts as in a new model"
    if vit.positions is None:
        yield "the checkpoint has no position table; ours starts as in a new model"
    if vit.norm is None:
        yield "the checkpoint has no final norm over tokens; ours starts as in a new model"


def _gathered(names: tuple[str, ...]) -> list[str]:
    """Parameter names, those of one stack of blocks as one entry with the block numbers."""
    stacks: dict[str, list[int]] = {}
    for name in names:
        match = _STACK.match(name)
        stacks.setdefault(match[1] if match else name, []).extend([int(match[2])] if match else [])
    return [f"{stack}.{min(i)}..{max(i)} ({len(i)} parameters)" if i else stack for stack, i in stacks.items()]


def _size(vit: ViT) -> str:
    grid = "no position table" if vit.grid is None else f"positions {_times(vit.grid)}"
    patch = _times(vit.patch_kernel.shape[:2])
    return f"width {vit.width}, {len(vit.blocks)} blocks, mlp {vit.mlp_dim}, patches {patch}, {grid}"


def _times(sides: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in sides)
