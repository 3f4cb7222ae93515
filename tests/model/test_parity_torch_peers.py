"""Our image, video and audio paths equal timm's and Hugging Face's models, with their weights copied.

Which cases there are, their sizes, strides, activation and epsilon come from the kit's config files.
Tolerance: the same PyTorch kernels but for fused against separate q, k, v and a linear layer against a strided
convolution, in float32 over a few blocks: 1e-5 of the largest magnitude.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import parity_kit as kit
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from polyvit.config import (
    AudioInput,
    AudioTask,
    ImageInput,
    ImageTask,
    ModelConfig,
    TaskConfig,
    VideoInput,
    VideoTask,
)
from polyvit.model.polyvit import PolyViT
from polyvit.model.pretrained.convert import block_from_hf, pop_group
from polyvit.model.pretrained.from_vit import initialise

ROUNDING = 1e-5
FOLDER = kit.DIR / "torch_peers"
NAMES = sorted(path.name.removesuffix("_config.json") for path in FOLDER.glob("*_config.json"))
GELU = {"gelu": "erf"}
"""The exact form goes by this name; every other one in the kits is the tanh form."""


def named(prefix: str) -> list[str]:
    """The kit's cases of one architecture."""
    return [name for name in NAMES if name.startswith(prefix)]


def case_config(name: str) -> dict[str, Any]:
    """The peer's own config."""
    config: dict[str, Any] = json.loads((FOLDER / f"{name}_config.json").read_text())
    return config


def weights_path(name: str) -> Path:
    """The case's state dict; two cases that differ in the activation only share one."""
    own = FOLDER / f"{name}.safetensors"
    shared = [p for p in FOLDER.glob("*.safetensors") if p.stem.startswith(name) or name.startswith(p.stem)]
    return own if own.is_file() else kit.require(shared[0] if shared else own)


def pair(value: Any) -> tuple[int, int]:
    """A side or (height, width)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def hf_encoder(config: dict[str, Any]) -> dict[str, Any]:
    """ModelConfig keys of a Hugging Face encoder."""
    return {
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_dim": config["intermediate_size"],
        "gelu": GELU.get(config["hidden_act"], "tanh"),
        "norm_eps": config["layer_norm_eps"],
    }


def one_task(config: ModelConfig, task: type[ImageTask | VideoTask | AudioTask], classes: int) -> PolyViT:
    """A PolyViT with the one task `peer`."""
    peer: TaskConfig = task(layout="imagefolder", num_classes=classes, steps=1, batch=1)
    return PolyViT(config, {"peer": peer})


def image_grid(model: PolyViT) -> tuple[int, int]:
    """Patches down and across; a table over a grid that is no square does not say."""
    rows, columns = model.config.image.grid
    return rows, columns


def copy_head(model: PolyViT, weights: dict[str, Tensor], name: str) -> None:
    """Our head gets the peer's linear layer `name`."""
    model.heads["peer"].load_state_dict({leaf: weights[f"{name}.{leaf}"] for leaf in ("weight", "bias")})


def copy_hf_trunk(model: PolyViT, weights: dict[str, Tensor]) -> None:
    """Our shared blocks and norm get those of a Hugging Face encoder, the names' root cut off."""
    for i, block in enumerate(model.shared.blocks):
        block.load_state_dict(block_from_hf(pop_group(weights, f"layers.{i}.")))
    model.shared.norm.load_state_dict({leaf: weights[f"layernorm.{leaf}"] for leaf in ("weight", "bias")})


def check_image(model: PolyViT, name: str) -> None:
    """Compare all that the case holds: encoded tokens, features, logits."""
    io = kit.arrays(f"torch_peers/{name}_io.npz")
    tokens = kit.tokens(model.config, np.moveaxis(io["inputs"], 1, -1), "image")
    found = {
        "encoded": model.encode(tokens, "image"),
        "last_hidden": model.encode(tokens, "image"),
        "pre_logits": model.forward_features({"tokens": tokens}, "image"),
        "logits": model({"tokens": tokens}, "peer"),
    }
    for output in set(io) - {"inputs"}:
        kit.close(found[output], io[output], ROUNDING, output)


@pytest.mark.parametrize("name", named("timm_vit"))
@torch.no_grad()
def test_parity_timm_vit(name: str) -> None:
    """timm's VisionTransformer, loaded from its safetensors as a user would, is our image path."""
    config = case_config(name)
    path = weights_path(name)
    model = one_task(
        ModelConfig(
            width=config["embed_dim"],
            depth=config["depth"],
            num_heads=config["num_heads"],
            mlp_dim=int(config["embed_dim"] * config["mlp_ratio"]),
            gelu=GELU.get(config["act_layer"], "tanh"),
            norm_eps=config["norm_eps"],
            image=ImageInput(size=pair(config["img_size"]), patch_size=pair(config["patch_size"])),
        ),
        ImageTask,
        config["num_classes"],
    )
    report = initialise(model, path, grid=image_grid(model))
    assert report.random == ("heads.peer.weight", "heads.peer.bias")
    assert not report.resized
    copy_head(model, load_file(path), "head")
    check_image(model, name)


@pytest.mark.parametrize("name", named("hf_vit_"))
@torch.no_grad()
def test_parity_hf_vit(name: str) -> None:
    """Hugging Face's ViTForImageClassification, loaded from its safetensors, is our image path."""
    config = case_config(name)
    path, io = weights_path(name), kit.arrays(f"torch_peers/{name}_io.npz")
    image = ImageInput(size=pair(config["image_size"]), patch_size=pair(config["patch_size"]))
    encoder = ModelConfig(**hf_encoder(config), image=image)
    model = one_task(encoder, ImageTask, io["logits"].shape[-1])
    report = initialise(model, path, grid=image_grid(model))
    assert report.random == ("heads.peer.weight", "heads.peer.bias")
    copy_head(model, load_file(path), "classifier")
    check_image(model, name)


@pytest.mark.parametrize("name", named("hf_vivit"))
@torch.no_grad()
def test_parity_hf_vivit(name: str) -> None:
    """Hugging Face's (unfactorised) ViViT is our video path: its Conv3d is our linear tubelet embedding."""
    config = case_config(name)
    io = kit.arrays(f"torch_peers/{name}_io.npz")
    video = VideoInput(
        frames=config["num_frames"], size=pair(config["image_size"]), tubelet_size=tuple(config["tubelet_size"])
    )
    model = one_task(ModelConfig(**hf_encoder(config), video=video), VideoTask, io["logits"].shape[-1])
    weights = load_file(weights_path(name))
    copy_head(model, weights, "classifier")
    trunk = pop_group(weights, "vivit.")
    copy_hf_trunk(model, trunk)
    kernel_Dcthw = trunk["embeddings.patch_embeddings.projection.weight"]
    model.tokenizers["video"].load_state_dict(
        {
            "patch_embed.weight": kernel_Dcthw.permute(0, 2, 3, 4, 1).flatten(1),
            "patch_embed.bias": trunk["embeddings.patch_embeddings.projection.bias"],
            "cls_token": trunk["embeddings.cls_token"],
            "pos_embed": trunk["embeddings.position_embeddings"],
        }
    )
    tokens = kit.tokens(model.config, np.moveaxis(io["inputs"], 2, -1), "video")
    if "last_hidden" in io:
        kit.close(model.encode(tokens, "video"), io["last_hidden"], ROUNDING, "last_hidden")
    kit.close(model({"tokens": tokens}, "peer"), io["logits"], ROUNDING, "logits")


def ast_input(config: dict[str, Any]) -> AudioInput:
    """AST's spectrogram. What its patches do not reach (they may not divide the sides) is not looked at."""
    patch, step = config["patch_size"], (config["time_stride"], config["frequency_stride"])
    sides = (config["max_length"], config["num_mel_bins"])
    covered = [(side - patch) // d * d + patch for side, d in zip(sides, step, strict=True)]
    return AudioInput(frames=covered[0], mel_bins=covered[1], patch_size=(patch, patch), stride=step, channels=1)


def time_major(table_BND: Tensor, audio: AudioInput) -> Tensor:
    """AST's tokens are frequency-major, ours time-major."""
    times, bins = audio.grid
    return table_BND.unflatten(1, (bins, times)).transpose(1, 2).flatten(1, 2)


def load_ast(model: PolyViT, trunk: dict[str, Tensor]) -> Tensor:
    """Copy AST's encoder into the audio path; returns its distillation token with its position [1, 1, D]."""
    copy_hf_trunk(model, trunk)
    table = trunk["embeddings.position_embeddings"]
    kernel_D1ft = trunk["embeddings.patch_embeddings.projection.weight"]
    positions = torch.cat([table[:, :1], time_major(table[:, 2:], model.config.audio)], dim=1)
    model.tokenizers["audio"].load_state_dict(
        {
            "patch_embed.weight": kernel_D1ft.transpose(2, 3).flatten(1),
            "patch_embed.bias": trunk["embeddings.patch_embeddings.projection.bias"],
            "cls_token": trunk["embeddings.cls_token"],
            "pos_embed": positions,
        }
    )
    return trunk["embeddings.distillation_token"] + table[:, 1:2]


@pytest.mark.parametrize("name", named("hf_ast"))
@torch.no_grad()
def test_parity_hf_ast(name: str) -> None:
    """Hugging Face's AST, with and without overlapping patches, is our audio path.

    AST has a second token (distillation), the mean of both as features, and LayerNorm before its head. Our model
    has none of these, so the test puts them around our tokenizer, blocks and norm.
    """
    config = case_config(name)
    io = kit.arrays(f"torch_peers/{name}_io.npz")
    audio = ast_input(config)
    classes = io["logits"].shape[-1]
    model = one_task(ModelConfig(**hf_encoder(config), audio=audio), AudioTask, classes)
    weights = load_file(weights_path(name))
    distillation_11D = load_ast(model, pop_group(weights, "audio_spectrogram_transformer."))
    tokens = kit.tokens(model.config, io["inputs"], "audio")
    x_BND = model.tokenizers["audio"](tokens)
    x_BND = torch.cat([x_BND[:, :1], distillation_11D.expand(len(x_BND), -1, -1), x_BND[:, 1:]], dim=1)
    for block in model.shared.blocks:
        x_BND = block(x_BND)
    x_BND = model.shared.norm(x_BND)
    expected = torch.from_numpy(io["last_hidden"])
    expected = torch.cat([expected[:, :2], time_major(expected[:, 2:], audio)], dim=1)
    kit.close(x_BND, expected, ROUNDING, "last_hidden")
    pooled = x_BND[:, :2].mean(dim=1)
    kit.close(pooled, io["pooled"], ROUNDING, "pooled")
    norm = nn.LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])
    norm.load_state_dict({leaf: weights[f"classifier.layernorm.{leaf}"] for leaf in ("weight", "bias")})
    copy_head(model, weights, "classifier.dense")
    kit.close(model.heads["peer"](norm(pooled)), io["logits"], ROUNDING, "logits")
