"""What a new run's model starts from (`init.path`), and which of its parts do not train (`optim.frozen`).

In: a new model, and a config whose `init.path` names a ViT file, an official AVBert's, or one of our checkpoints.
Out: the model's parameters overwritten, and a report of what was loaded. Other people's files are read by
`polyvit.model.pretrained`; from a checkpoint of ours, parameters are copied by name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from polyvit.checkpoint import find_checkpoint, read_document
from polyvit.config import AVBertConfig, Modality, ModelConfig, RunConfig, flatten
from polyvit.errors import UserError
from polyvit.model import MultiTaskModel, PolyViT
from polyvit.model.avbert import AVBert
from polyvit.model.pretrained import (
    LoadReport,
    avbert_values,
    check_finite,
    fit_problems,
    initialise,
    initialise_avbert,
    load_vit,
)
from polyvit.model.sharing import owner_of
from polyvit.training.optim import belongs

_FREE = ("audiovisual", "image", "video", "audio", "inputs", "dropout", "drop_path_ramp", "norm_eps", "gelu")
"""Keys of `model` in which a run may differ from the checkpoint that it starts from."""
_RANK_KEYS = ("sharing.rank", "sharing.orthogonal")
"""Keys of `model` that count with low rank only."""


def init_problems(config: RunConfig) -> list[str]:
    """Why `init.path` cannot be read or does not fit the model, one line each; empty where it is null or fits."""
    path, model = config.init.path, config.model
    if path is None:
        return []
    problems: list[str] = []
    try:
        if is_checkpoint(path):
            problems = checkpoint_problems(find_checkpoint(Path(path)), model)
        elif isinstance(model, AVBertConfig):
            avbert_values(path, model)
        else:
            problems = fit_problems(load_vit(path, config.init.grid), model, [*config.modalities])
    except UserError as error:
        problems = list(error.problems) or [error.message]
        if isinstance(model, AVBertConfig):  # one file's faults, all of one cause
            problems = ["; ".join([error.message, *error.problems])]
    return [f"init.path: {problem}" for problem in problems]


def check_init(config: RunConfig) -> None:
    """Raises UserError with the problems of `init_problems`, so that they show before any worker starts."""
    if problems := init_problems(config):
        raise UserError(f"this run cannot start from init.path={config.init.path}:", problems)


def initialise_model(model: MultiTaskModel, config: RunConfig) -> LoadReport:
    """Overwrite `model` with what `init.path` names, in place.

    Raises UserError where it is null, cannot be read, or does not fit; the model is then unchanged.
    """
    init = config.init
    if init.path is None:
        raise UserError("init.path is null: there is nothing to start from")
    if is_checkpoint(init.path):
        return copy_checkpoint(model, find_checkpoint(Path(init.path)))
    if isinstance(model, AVBert):
        return initialise_avbert(model, init.path)
    assert isinstance(model, PolyViT)
    return initialise(model, init.path, kernel_init=init.kernel_init, grid=init.grid)


def is_checkpoint(path: str | Path) -> bool:
    """Whether `init.path` names one of our checkpoints, or a run with some, rather than another project's file."""
    return any((Path(path) / name).is_file() for name in ("state.json", "run.json"))


def checkpoint_problems(path: Path, config: ModelConfig | AVBertConfig) -> list[str]:
    """Why a model of `config` cannot start from the checkpoint."""
    theirs = RunConfig.model_validate(read_document(path)["config"]).model
    if config.kind != theirs.kind:
        return [f"model.kind={config.kind}: the checkpoint has {theirs.kind}"]
    mine, other = map(_compared, (config, theirs))
    return [
        f"model.{key}={value}: the checkpoint has {other[key]}"
        for key, value in mine.items()
        if value != other.get(key, value)
    ]


def _compared(config: ModelConfig | AVBertConfig) -> dict[str, Any]:
    """The keys that decide which parameters there are."""
    flat = flatten({key: value for key, value in config.model_dump().items() if key not in _FREE})
    low_rank = "low_rank" in str(flat.get("sharing.modalities", flat.get("sharing.roles")))
    return flat if low_rank else {key: value for key, value in flat.items() if key not in _RANK_KEYS}


@torch.no_grad()
def copy_checkpoint(model: MultiTaskModel, path: Path) -> LoadReport:
    """Copy every parameter and running average that the checkpoint has under the same name and shape.

    Adaptor blocks, class tokens and private factors of modalities that the checkpoint lacks become copies of those
    of its first modality. Raises UserError where its encoder is another one, or where a part of one name has
    another shape.
    """
    assert isinstance(model, PolyViT | AVBert)
    if problems := checkpoint_problems(path, model.config):
        raise UserError(f"{path} does not fit the model:", problems)
    averaged = path / "ema.safetensors"
    tensors = load_file(averaged if averaged.is_file() else path / "model.safetensors")
    check_finite(path, tensors)
    names = model.state_dict()
    differ = [
        f"{name}: the model has {tuple(p.shape)}, the checkpoint {tuple(tensors[name].shape)}"
        for name, p in names.items()
        if name in tensors and tensors[name].shape != p.shape
    ]
    if differ:
        raise UserError(f"{path} does not fit the model:", differ[:10])
    known: tuple[Modality, ...] = ("image", "video", "audio")
    donor = next((m for m in known if f"tokenizers.{m}.cls_token" in tensors), "")
    copied = {name: other for name in names if name not in tensors and (other := _donated(name, donor)) in tensors}
    for name, parameter in names.items():
        if (source := copied.get(name, name)) in tensors:
            parameter.copy_(tensors[source])
    fresh = sorted({owner_of(name) or name.split(".")[1] for name in copied})
    private = any(owner_of(name) for name in copied)
    what = "adaptor blocks, class token and private factors" if private else "adaptor blocks and class token"
    return LoadReport(
        source=f"{path}: a {'PolyViT' if isinstance(model, PolyViT) else 'AVBert'} checkpoint",
        loaded=tuple(name for name in names if name in tensors),
        resized={},
        random=tuple(name for name in names if name not in tensors and name not in copied),
        unused=tuple(sorted(tensors.keys() - names.keys())),
        notes=tuple(f"{what} of {m} start as copies of those of {donor}" for m in fresh),
    )


def _donated(name: str, donor: Modality) -> str:
    """What an adaptor block's parameter, a private factor or a class token is called in the modality `donor`; else
    its own name."""
    if owner := owner_of(name):
        return name.replace(f".private.{owner}.", f".private.{donor}.")
    role, _, rest = name.partition(".")
    own = rest.partition(".")[2]
    return f"{role}.{donor}.{own}" if role == "adaptors" or (role, own) == ("tokenizers", "cls_token") else name


def freeze_parts(model: MultiTaskModel, frozen: Sequence[str]) -> int:
    """Take the parameters of the named parts out of training; returns how many numbers they hold.

    Raises UserError for a part that the model does not have, and where a task has nothing left to train.
    """
    names = dict(model.named_parameters())
    for part in frozen:
        held = [p for name, p in names.items() if belongs(name, part)]
        if not held:
            parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            raise UserError(
                f"optim.frozen: the model has no part {part!r}; parts are {parts}, and longer beginnings of names"
            )
        for parameter in held:
            parameter.requires_grad_(False)
    for task in model.modality:
        if not model.touched(task):
            raise UserError(f"optim.frozen={','.join(frozen)} leaves nothing to train for task {task}")
    return sum(p.numel() for p in names.values() if not p.requires_grad)
