"""Parity of ViT initialisation with the official release: every transplant case of the kit.

Where the release copies a position table without looking at its grid (and so ends with a wrong length, or with
rows laid on other places), ours resizes; those tables are held to scipy's zoom instead of the kit's.
"""

from typing import Any

import numpy as np
import parity_kit as kit
import pytest
import scipy.ndimage
import torch

from polyvit.config import Modality, ModelConfig, RunConfig
from polyvit.errors import UserError
from polyvit.model.polyvit import PolyViT
from polyvit.model.pretrained.convert import OFFICIAL_TOKENIZERS, state_to_official
from polyvit.model.pretrained.from_vit import KernelInit, LoadReport, initialise
from polyvit.model.pretrained.vit_files import ViT, load_vit

CASES: dict[str, dict[str, Any]] = {
    name: case for name, case in kit.info("vit_init/info.json").items() if "target_sizes" in case
}
KERNELS: dict[str, KernelInit] = {
    "central_frame_initializer": "central",
    "average_frame_initializer": "average",
    "average_arp_frame_initializer": "arp",
}
ONE_ROUNDING = 2e-7
"""Both sides interpolate and scale in float64 and round once to float32: half a unit in the last place each."""


def source() -> tuple[ViT, tuple[int, int] | None]:
    """The kit's ViT and its grid, from the size of the pictures that it was run on (if the kit says)."""
    path = kit.require(kit.DIR / "vit_init" / "vit_params.npz")
    grid = None
    if (kit.DIR / "vit_init" / "vit_forward.npz").is_file():
        height, width = kit.arrays("vit_init/vit_forward.npz")["inputs"].shape[1:3]
        h, w = kit.arrays("vit_init/vit_params.npz")["embedding/kernel"].shape[:2]
        grid = (height // h, width // w)
    return load_vit(path, grid), grid


def target(case: str) -> RunConfig:
    """The case's PolyViT: input sizes from the case, encoder sizes from the ViT, tasks from the kit."""
    vit, _ = source()
    encoder = {"width": vit.width, "depth": len(vit.blocks), "mlp_dim": vit.mlp_dim, "num_heads": vit.num_heads}
    config = kit.run_config(0)
    model = kit.model_config(CASES[case]["target_sizes"], CASES[case]["L_adapt"]).model_copy(update=encoder)
    return config.model_copy(update={"model": model})


def transplant(case: str) -> tuple[PolyViT, dict[str, torch.Tensor], LoadReport]:
    """(initialised model, its state before, report)."""
    config = target(case)
    model = PolyViT(config.model, config.tasks, seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kernel = KERNELS[CASES[case]["variant"].get("kernel", "central_frame_initializer")]
    path = kit.DIR / "vit_init" / "vit_params.npz"
    return model, before, initialise(model, path, kernel_init=kernel, grid=source()[1])


def zoomed(config: ModelConfig, modality: Modality) -> np.ndarray:
    """The right position table [1, 1 + N, D]: scipy's zoom of order 1, repeated over time."""
    vit, _ = source()
    assert vit.positions is not None
    assert vit.grid is not None
    assert vit.cls_position is not None
    grid = config.input(modality).grid
    plane = vit.positions.numpy().reshape(*vit.grid, -1)
    factors = (grid[-2] / vit.grid[0], grid[-1] / vit.grid[1], 1)
    table = scipy.ndimage.zoom(plane, factors, order=1).reshape(grid[-2] * grid[-1], -1)
    tiled = np.tile(table, (grid[0] if modality == "video" else 1, 1))
    return np.concatenate([vit.cls_position.numpy()[None], tiled])[None]


def misplaced(case: str, modality: Modality) -> bool:
    """Does the release lay this table on a grid that it does not fit?"""
    name = f"tokenizer/{OFFICIAL_TOKENIZERS[modality]}/posembed_input/pos_embedding"
    if name in CASES[case]["shape_mismatch_out_vs_target"]:
        return True
    vit, _ = source()
    assert vit.grid is not None
    grid = target(case).model.input(modality).grid[-2:]
    same_count = grid[0] * grid[1] == vit.grid[0] * vit.grid[1]
    return modality != "audio" and same_count and tuple(grid) != vit.grid


def refused(case: str) -> bool:
    """The release copies a patch kernel of another size; ours refuses."""
    return any(name.endswith("embedding/kernel") for name in CASES[case]["shape_mismatch_out_vs_target"])


@pytest.mark.parametrize("case", CASES)
def test_parity_vit_init(case: str) -> None:
    """Every array of the case; heads and what the report calls random keep their own values."""
    expected = kit.arrays(f"vit_init/{case}.npz")
    if refused(case):
        with pytest.raises(UserError, match="does not fit"):
            transplant(case)
        return
    model, before, report = transplant(case)
    found = state_to_official(model.state_dict(), model.config)
    tables = {
        f"tokenizer/{name}/posembed_input/pos_embedding": m
        for m, name in OFFICIAL_TOKENIZERS.items()
        if m in model.tokenizers
    }
    for name, array in expected.items():
        if name in CASES[case]["kept_from_target_init"]:
            continue
        modality = tables.get(name)
        if modality is not None and misplaced(case, modality):
            array = zoomed(model.config, modality)
        kit.close(found[name], array, ONE_ROUNDING, name)
    kept = {name: before[name] for name in report.random}
    assert sorted(state_to_official_names(kept)) == sorted(CASES[case]["kept_from_target_init"])
    for name, tensor in kept.items():
        assert torch.equal(model.state_dict()[name], tensor), name


def state_to_official_names(state: dict[str, torch.Tensor]) -> list[str]:
    """Names of heads in the official tree."""
    leaf = {"weight": "kernel", "bias": "bias"}
    parts = [name.removeprefix("heads.").rsplit(".", 1) for name in state]
    return [f"classification_head_{task}/output_projection/{leaf[end]}" for task, end in parts]


@pytest.mark.parametrize("case", [name for name in CASES if not refused(name)])
def test_parity_vit_init_positions_are_zoomed(case: str) -> None:
    """Every position table equals scipy's zoom and tile, and the report says which were resized."""
    model, _, report = transplant(case)
    vit, _ = source()
    for modality in target(case).modalities:
        tokenizer = model.tokenizers[modality]
        kit.close(tokenizer.pos_embed, zoomed(model.config, modality), ONE_ROUNDING, modality)
        how = report.resized.get(f"tokenizers.{modality}.pos_embed", "")
        assert ("->" in how) == (model.config.input(modality).grid[-2:] != vit.grid)


@pytest.mark.parametrize("case", [name for name in CASES if "max_abs_diff_prelogits_vs_vit" in CASES[name]])
@torch.no_grad()
def test_parity_vit_init_gives_the_vits_features(case: str) -> None:
    """At the ViT's own resolution the image path is the ViT. Tolerance: float32 rounding over its blocks."""
    forward = kit.arrays("vit_init/vit_forward.npz")
    model, _, _ = transplant(case)
    tokens = kit.tokens(model.config, forward["inputs"], "image")
    kit.close(model.forward_features({"tokens": tokens}, "image"), forward["pre_logits"], 1e-5, "pre_logits")
