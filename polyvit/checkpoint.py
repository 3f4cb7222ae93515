"""A checkpoint directory: all state for exact resume, as safetensors and JSON; nothing is pickled.

model.safetensors      parameters by name, float32
optimiser.safetensors  optimiser state by name
state.json             format, global_step, task_steps, counters, quarantine, evaluations, hashes, config
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from polyvit.config import RunConfig
from polyvit.data.minibatch import Quarantined
from polyvit.errors import UserError
from polyvit.model.polyvit import PolyViT
from polyvit.optim import Optimiser

FORMAT = 1


@dataclass
class TrainState:
    """What a run knows besides parameters and optimiser state; every rank holds the same.

    read, bad: examples of each task asked for and found undecodable, over all ranks.
    """

    global_step: int = 0
    read: dict[str, int] = field(default_factory=dict)
    bad: dict[str, int] = field(default_factory=dict)
    quarantine: list[Quarantined] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    def quarantined(self, found: list[Quarantined]) -> None:
        """Add, each example once, in a fixed order."""
        self.quarantine = sorted(
            {*self.quarantine, *found}, key=lambda entry: (entry.task, entry.key, entry.reason)
        )


def save_checkpoint(
    directory: Path,
    model: PolyViT,
    optimiser: Optimiser,
    state: TrainState,
    config: RunConfig,
    hashes: Mapping[str, Any],
) -> None:
    """Write into `directory` (made if absent). `hashes`: of schedule and index, checked when resuming."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: p.detach().contiguous() for name, p in model.state_dict().items()},
        directory / "model.safetensors",
    )
    tensors = {name: tensor.contiguous() for name, tensor in optimiser.state().items()}
    save_file(tensors, directory / "optimiser.safetensors")
    document = {
        "format": FORMAT,
        **asdict(state),
        **hashes,
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
    }
    (directory / "state.json").write_text(json.dumps(document, indent=1))


def read_document(directory: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint. Raises UserError where it is not one."""
    try:
        document = json.loads((directory / "state.json").read_text())
    except FileNotFoundError:
        raise UserError(
            f"{directory} is not a checkpoint: it has no state.json; give a folder that `polyvit cotrain` wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{directory}/state.json cannot be read ({error}); use another checkpoint") from None
    if not isinstance(document, dict):
        raise UserError(f"{directory}/state.json cannot be read (it holds no mapping); use another checkpoint")
    if document.get("format") != FORMAT:
        raise UserError(
            f"{directory} has checkpoint format {document.get('format')}; this version reads format {FORMAT}"
        )
    return document


def load_model(directory: Path, model: PolyViT) -> None:
    """Parameters of a checkpoint into a model of the same shape. Raises UserError naming what differs."""
    tensors = _load(directory / "model.safetensors")
    wanted = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != given:
        differ = sorted(n for n in wanted.keys() | given.keys() if wanted.get(n) != given.get(n))
        problems = [f"{n}: the model has {wanted.get(n)}, the checkpoint {given.get(n)}" for n in differ]
        raise UserError(f"{directory} does not fit the model of this config", problems[:10])
    model.load_state_dict(tensors)


def load_training(directory: Path, model: PolyViT, optimiser: Optimiser, hashes: Mapping[str, Any]) -> TrainState:
    """Everything back in place for the step after `global_step`.

    Raises UserError where the schedule or the index is not the one that the checkpoint was trained with.
    """
    document = read_document(directory)
    for key, value in hashes.items():
        if document.get(key) != value:
            raise UserError(
                f"cannot resume from {directory}: its {key.replace('_', ' ')} differs from this run's. "
                "Resume with the same tasks, schedule, seed and data, or start a new run"
            )
    load_model(directory, model)
    optimiser.load_state(_load(directory / "optimiser.safetensors"))
    return TrainState(
        document["global_step"], document["read"], document["bad"],
        [Quarantined(**entry) for entry in document["quarantine"]], document["evaluations"],
    )  # fmt: skip


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); use another checkpoint") from None


def find_checkpoint(given: Path) -> Path:
    """A checkpoint's folder, or the newest checkpoint of a run's folder. Raises UserError where there is none."""
    if (given / "state.json").is_file():
        return given
    found = sorted(path.parent for path in given.glob("step_*/state.json"))
    if not found:
        raise UserError(
            f"{given} is neither a checkpoint nor a run with one; give a folder that `polyvit cotrain` wrote"
        )
    return found[-1]


def load_trained(given: Path) -> tuple[PolyViT, RunConfig, dict[str, Any]]:
    """A checkpoint or a run -> the model on the CPU in eval mode, its config, and `state.json`.

    Raises UserError where it is not one of this version's.
    """
    directory = find_checkpoint(given)
    document = read_document(directory)
    config = RunConfig.model_validate(document["config"])
    model = PolyViT(config.model, config.tasks)
    load_model(directory, model)
    return model.eval(), config, document
