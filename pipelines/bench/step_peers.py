"""Contenders of `polyvit bench step`: each has one training step, of the same shapes, with random weights.

Ours is the project's own `TrainStep`. A peer is its library's classification model with cross-entropy, backward,
and torch's SGD with momentum. Peers that are not installed are left out.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.bench.kit import random_minibatch
from polyvit.config import Modality, ModelConfig, RunConfig
from polyvit.model import PolyViT
from polyvit.training import SingleProcess, TrainStep, build_optimiser

CLASSES = 10
LAYOUTS = {"image": "imagefolder", "video": "kinetics", "audio": "csv"}
PEERS = {
    "image": ("bare", "timm", "hf-sdpa", "hf-eager"),
    "video": ("bare", "hf-sdpa", "hf-eager"),
    "audio": ("bare", "hf-sdpa", "hf-eager"),
}
"""Hugging Face: ViT, ViViT and AST."""


@dataclass(frozen=True)
class Case:
    """What all contenders of one table have in common. batch: examples of a step."""

    modality: Modality
    model: ModelConfig
    batch: int
    precision: str
    device: torch.device
    compile: bool = False


@dataclass
class Contender:
    """A model and its training step. tokens: how many its first block really gets, class tokens included."""

    model: nn.Module
    step: Callable[[], object]
    tokens: int = 0


def installed(name: str) -> bool:
    """Whether a contender's library is there."""
    library = {"timm": "timm", "hf-sdpa": "transformers", "hf-eager": "transformers"}.get(name)
    return library is None or importlib.util.find_spec(library) is not None


def contender(name: str, case: Case) -> Contender:
    """Build a contender, run one step, and count the tokens that its first block gets."""
    result = _ours(case) if name == "ours" else _peer(name, case)
    seen: list[int] = []
    first = next(m for m in result.model.modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m) > 0
                 and len(m) == case.model.depth)[0]  # fmt: skip
    handle = first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    result.step()
    handle.remove()
    result.tokens = seen[0]
    if case.compile:
        _compile(result.model)
    return result


def _compile(model: nn.Module) -> None:
    if isinstance(model, PolyViT):
        model.compile_blocks()
    else:
        model.compile(dynamic=False)


def run_config(case: Case) -> RunConfig:
    """One task of the modality, plain SGD with momentum, no clipping."""
    task = {
        "modality": case.modality, "layout": LAYOUTS[case.modality], "num_classes": CLASSES, "steps": 1,
        "batch": case.batch,
    }  # fmt: skip
    document = {
        "model": case.model.model_dump(), "tasks": {"task": task}, "train": {"precision": case.precision},
        "optim": {"clip_norm": None},
    }  # fmt: skip
    return RunConfig.model_validate(document)


def _ours(case: Case) -> Contender:
    config = run_config(case)
    model = PolyViT(config.polyvit, config.tasks).to(case.device)
    optimiser = build_optimiser(dict(model.named_parameters()), config.optim)
    minibatch = random_minibatch(config, "task")
    run = TrainStep(model, optimiser, config, SingleProcess())
    return Contender(model, lambda: run.start([minibatch], 1e-3))


def _peer(name: str, case: Case) -> Contender:
    built = {"bare": _bare, "timm": _timm}[name](case) if name in ("bare", "timm") else _hf(name, case)
    model = built.to(case.device).train()
    inputs = torch.randn(_input_shape(name, case)).to(case.device)
    labels = (torch.arange(case.batch) % CLASSES).to(case.device)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, foreach=True)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(case.device.type, torch.bfloat16, enabled=case.precision == "bfloat16"):
            out = model(inputs)
        logits: Tensor = out if isinstance(out, Tensor) else out.logits
        F.cross_entropy(logits.float(), labels).backward()
        optimiser.step()

    return Contender(model, step)


def _input_shape(name: str, case: Case) -> tuple[int, ...]:
    model = case.model
    if name == "bare":
        spec = model.input(case.modality)
        return (case.batch, spec.num_tokens, spec.patch_dim)
    if case.modality == "image":
        return case.batch, 3, *model.image.size
    if case.modality == "video":
        return case.batch, model.video.frames, 3, *model.video.size
    return case.batch, model.audio.frames, model.audio.mel_bins


class _BareBlock(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.qkv, self.proj = nn.Linear(config.width, 3 * config.width), nn.Linear(config.width, config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, config.mlp_dim), nn.GELU(), nn.Linear(config.mlp_dim, config.width)
        )

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return x + self.mlp(self.norm2(x))


class _Bare(nn.Module):
    def __init__(self, config: ModelConfig, tokens: int, patch_dim: int) -> None:
        super().__init__()
        self.embed = nn.Linear(patch_dim, config.width)
        self.position = nn.Parameter(torch.zeros(1, tokens + 1, config.width))
        self.token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.blocks = nn.ModuleList(_BareBlock(config) for _ in range(config.depth))
        self.norm, self.head = nn.LayerNorm(config.width), nn.Linear(config.width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def _bare(case: Case) -> nn.Module:
    spec = case.model.input(case.modality)
    return _Bare(case.model, spec.num_tokens, spec.patch_dim)


def _timm(case: Case) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    model = case.model
    return VisionTransformer(
        img_size=model.image.size, patch_size=model.image.patch_size, embed_dim=model.width, depth=model.depth,
        num_heads=model.num_heads, mlp_ratio=model.mlp_dim / model.width, num_classes=CLASSES,
    )  # fmt: skip


def _hf(name: str, case: Case) -> nn.Module:
    import transformers

    model = case.model
    common: dict[str, Any] = {
        "hidden_size": model.width, "num_hidden_layers": model.depth, "num_attention_heads": model.num_heads,
        "intermediate_size": model.mlp_dim, "hidden_act": "gelu", "num_labels": CLASSES,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "attn_implementation": name.removeprefix("hf-"),
    }  # fmt: skip
    if case.modality == "image":
        config: Any = transformers.ViTConfig(
            image_size=model.image.size[0], patch_size=model.image.patch_size[0], **common
        )
        return transformers.ViTForImageClassification(config)
    if case.modality == "video":
        config = transformers.VivitConfig(
            image_size=model.video.size[0], num_frames=model.video.frames,
            tubelet_size=list(model.video.tubelet_size), **common,
        )  # fmt: skip
        return transformers.VivitForVideoClassification(config)
    config = transformers.ASTConfig(
        patch_size=model.audio.patch_size[0], frequency_stride=model.audio.patch_size[1],
        time_stride=model.audio.patch_size[0], max_length=model.audio.frames, num_mel_bins=model.audio.mel_bins,
        **common,
    )  # fmt: skip
    return transformers.ASTForAudioClassification(config)
