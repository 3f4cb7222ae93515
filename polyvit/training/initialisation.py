"""What a new run's model starts from (`init.path`), and which of its parts do not train (`optim.frozen`).

In: a new `PolyViT`, and a config whose `init.path` names a ViT file or one of our checkpoints. Out: the model's
parameters overwritten, and a report of what was loaded. A ViT file is read by `polyvit.model.pretrained`; from a
checkpoint of ours, parameters are copied by name.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from polyvit.checkpoint import read_document
from polyvit.config import Modality, ModelConfig, RunConfig
from polyvit.errors import UserError
from polyvit.model import MultiTaskModel, PolyViT
from polyvit.model.pretrained import LoadReport, fit_problems, initialise, load_vit


def init_problems(config: RunConfig) -> list[str]:
    """Why `init.path` cannot be read or does not fit the model, one line each; empty where it is null or fits."""
    path = config.init.path
    if path is None:
        return []
    try:
        if is_checkpoint(path):
            problems = checkpoint_problems(Path(path), config.polyvit)
        else:
            problems = fit_problems(load_vit(path, config.init.grid), config.polyvit, [*config.modalities])
    except UserError as error:
        problems = list(error.problems) or [error.message]
    return [f"init.path: {problem}" for problem in problems]


def check_init(config: RunConfig) -> None:
    """Raises UserError with the problems of `init_problems`, so that they show before any worker starts."""
    if problems := init_problems(config):
        raise UserError(f"this run cannot start from init.path={config.init.path}:", problems)


def initialise_model(model: MultiTaskModel, config: RunConfig) -> LoadReport:
    """Overwrite `model` with what `init.path` names, in place.

    Raises UserError where it is null, cannot be read, or does not fit; the model is then unchanged.
    """
    if not isinstance(model, PolyViT):
        raise UserError("init.path needs model.kind=polyvit; set init.path=null")
    init = config.init
    if init.path is None:
        raise UserError("init.path is null: there is nothing to start from")
    if is_checkpoint(init.path):
        return copy_checkpoint(model, Path(init.path))
    return initialise(model, init.path, kernel_init=init.kernel_init, grid=init.grid)


def is_checkpoint(path: str | Path) -> bool:
    """Whether `init.path` names one of our checkpoints rather than a ViT file."""
    return (Path(path) / "state.json").is_file()


def checkpoint_problems(path: Path, config: ModelConfig) -> list[str]:
    """Why a model of `config` cannot start from the checkpoint."""
    theirs = RunConfig.model_validate(read_document(path)["config"]).model
    keys = ("width", "depth", "num_heads", "mlp_dim", "l_adapt")
    pairs = [(key, getattr(config, key), getattr(theirs, key)) for key in keys]
    return [f"model.{key}={ours}: the checkpoint has {other}" for key, ours, other in pairs if ours != other]


@torch.no_grad()
def copy_checkpoint(model: PolyViT, path: Path) -> LoadReport:
    """Copy every parameter that the checkpoint has under the same name and shape.

    Adaptor blocks and class tokens of modalities that the checkpoint lacks become copies of those of its first
    modality. Raises UserError where its encoder is another one, or where a part of one name has another shape.
    """
    if problems := checkpoint_problems(path, model.config):
        raise UserError(f"{path} does not fit the model:", problems)
    averaged = path / "ema.safetensors"
    tensors = load_file(averaged if averaged.is_file() else path / "model.safetensors")
    names = dict(model.named_parameters())
    differ = [
        f"{name}: the model has {tuple(p.shape)}, the checkpoint {tuple(tensors[name].shape)}"
        for name, p in names.items()
        if name in tensors and tensors[name].shape != p.shape
    ]
    if differ:
        raise UserError(f"{path} does not fit the model:", differ[:10])
    known: tuple[Modality, ...] = ("image", "video", "audio")
    donor = next(m for m in known if f"tokenizers.{m}.cls_token" in tensors)
    copied = {name: other for name in names if name not in tensors and (other := _donated(name, donor)) in tensors}
    for name, parameter in names.items():
        if (source := copied.get(name, name)) in tensors:
            parameter.copy_(tensors[source])
    fresh = sorted({name.split(".")[1] for name in copied})
    return LoadReport(
        source=f"{path}: a PolyViT checkpoint",
        loaded=tuple(name for name in names if name in tensors),
        resized={},
        random=tuple(name for name in names if name not in tensors and name not in copied),
        unused=tuple(sorted(tensors.keys() - names.keys())),
        notes=tuple(f"adaptor blocks and class token of {m} start as copies of those of {donor}" for m in fresh),
    )


def _donated(name: str, donor: Modality) -> str:
    """What an adaptor block's parameter or a class token is called in the modality `donor`; else its own name."""
    role, _, rest = name.partition(".")
    own = rest.partition(".")[2]
    return f"{role}.{donor}.{own}" if role == "adaptors" or (role, own) == ("tokenizers", "cls_token") else name


def freeze_parts(model: MultiTaskModel, frozen: Sequence[str]) -> int:
    """Take the parameters of the named parts out of training; returns how many numbers they hold.

    Raises UserError for a part that the model does not have, and where a task has nothing left to train.
    """
    names = dict(model.named_parameters())
    for part in frozen:
        held = [p for name, p in names.items() if name == part or name.startswith(f"{part}.")]
        if not held:
            raise UserError(
                f"optim.frozen: the model has no part {part!r}; parts are shared, tokenizers.image, ..."
            )
        for parameter in held:
            parameter.requires_grad_(False)
    for task in model.modality:
        if not model.touched(task):
            raise UserError(f"optim.frozen={','.join(frozen)} leaves nothing to train for task {task}")
    return sum(p.numel() for p in names.values() if not p.requires_grad)
