"""Initialise an AVBert from a checkpoint of the official code.

In: a model and a file (.pth, .pyth, .pt, .bin, .safetensors) of sangho-vision/avbert's names. Out: CNNs,
projections, embeddings and transformers overwritten, running averages included, and a report; heads stay random.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from polyvit.config import AVBertConfig
from polyvit.errors import UserError
from polyvit.model.avbert import AVBert, official_to_state
from polyvit.model.pretrained.convert import check_finite
from polyvit.model.pretrained.from_vit import LoadReport

_ROLES = ("single_visual", "single_audio", "multi")
_ROOTS = {
    "visual_conv", "audio_conv", "visual_fc", "visual_norm", "audio_fc", "audio_norm", "summary_encoding",
    "transformer", *(f"{role}_{part}" for role in _ROLES for part in ("embeddings", "transformer")),
}  # fmt: skip
"""First words of the official names that a model of some mode has; others are heads of its tasks."""
_INNER = ("state_dict", "model_state_dict")
"""Where the official code keeps the weights in a pre-trained and in a fine-tuned file."""


def read_avbert(path: str | Path) -> dict[str, Tensor]:
    """Official names and tensors of a file. Raises UserError where it cannot be read."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            tree: Any = load_file(path)
        else:
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} cannot be read as a checkpoint ({words}); give a run's checkpoint, a .safetensors, or a .pth"
            " of tensors alone"
        ) from None
    for key in _INNER:
        tree = tree.get(key, tree) if isinstance(tree, Mapping) else tree
    if not isinstance(tree, Mapping):
        raise UserError(f"{path} holds a {type(tree).__name__} and no parameters by name")
    return {str(k).removeprefix("module."): v for k, v in tree.items() if isinstance(v, Tensor)}


def avbert_values(path: str | Path, config: AVBertConfig) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Our names and values of a file, and its names that are not used. Raises UserError where it does not fit."""
    given = read_avbert(path)
    body = {name: tensor for name, tensor in given.items() if name.partition(".")[0] in _ROOTS}
    values = official_to_state(body, config)
    with torch.device("meta"):
        own = AVBert(config, {}).state_dict()
    differ = [
        f"{name}: the model has {tuple(own[name].shape)}, the file {tuple(tensor.shape)}"
        for name, tensor in values.items()
        if own[name].shape != tensor.shape
    ]
    if differ:
        keys = "model.width, depth, mlp_dim, positions, visual_width, audio_width, blocks and sharing.rank"
        raise UserError(f"{path} does not fit the model; set {keys} to the file's:", differ[:10])
    check_finite(path, values)
    return values, tuple(sorted(given.keys() - body.keys()))


@torch.no_grad()
def initialise_avbert(model: AVBert, path: str | Path) -> LoadReport:
    """Overwrite all of `model` but its heads with an official checkpoint, in place.

    Raises UserError where the file cannot be read or does not fit; the model is then unchanged.
    """
    values, unused = avbert_values(path, model.config)
    names = model.state_dict()
    for name, tensor in values.items():
        names[name].copy_(tensor)
    return LoadReport(
        source=f"{path}: an official AVBert",
        loaded=tuple(name for name in names if name in values),
        resized={},
        random=tuple(name for name in names if name not in values),
        unused=unused,
        notes=(),
    )
