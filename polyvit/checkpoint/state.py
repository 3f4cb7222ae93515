"""A checkpoint directory: all state for exact resume, as safetensors and JSON; nothing is pickled.

model.safetensors      parameters by name, float32
optimiser.safetensors  optimiser state by name
ema.safetensors        averaged parameters, where `optim.ema_decay` is set
state.json             format, global_step, counters, quarantine, evaluations, hashes, class names, config
manifest.json          size and SHA-256 of each of them, and the results of an evaluation at this step
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from polyvit.checkpoint.store import MANIFEST, damage, folder_name, newest_whole, open_store, write_manifest
from polyvit.config import RunConfig
from polyvit.data.loading import Quarantined
from polyvit.distributed import full_state, load_optimiser, load_parameters
from polyvit.errors import UserError
from polyvit.model import PolyViT
from polyvit.training import Ema, Optimiser

logger = logging.getLogger(__name__)
FORMAT = 2


@dataclass
class TrainState:
    """What a run knows besides parameters and optimiser state; every rank holds the same.

    read, bad: planned examples of each task, and those of them that could not be decoded, over all ranks.
    quarantine: every example that could not be decoded, spares that were tried included, each once.
    microbatches: examples of each task in one forward and backward, where the step is split.
    stopped: whether the run was told to stop before its end (not stored).
    """

    global_step: int = 0
    read: dict[str, int] = field(default_factory=dict)
    bad: dict[str, int] = field(default_factory=dict)
    quarantine: list[Quarantined] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    microbatches: dict[str, int] = field(default_factory=dict)
    stopped: bool = False

    def scores(self) -> dict[str, float]:
        """What an evaluation at this very step found: each task's metric, and their mean as `mean`."""
        if not self.evaluations or self.evaluations[-1]["step"] != self.global_step:
            return {}
        results = self.evaluations[-1]["tasks"]
        values = {task: result["value"] for task, result in results.items() if result["value"] is not None}
        return {**values, "mean": sum(values.values()) / len(values)} if values else {}

    def quarantined(self, found: list[Quarantined]) -> None:
        """Add, each example once, in a fixed order."""
        self.quarantine = sorted(
            {*self.quarantine, *found}, key=lambda entry: (entry.task, entry.key, entry.reason)
        )


@dataclass(frozen=True)
class Learner:
    """What training changes: model, optimiser, and the running average of the parameters, if there is one."""

    model: PolyViT
    optimiser: Optimiser
    ema: Ema | None = None


@dataclass(frozen=True)
class Contents:
    """All that a checkpoint holds, apart from the model that goes on training. tensors: by file, then by name."""

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    document: dict[str, Any]
    scores: dict[str, float]

    def write(self, directory: Path) -> None:
        """Files and manifest into `directory`. Raises OSError."""
        for name, tensors in self.tensors.items():
            try:
                save_file(tensors, directory / name)
            except SafetensorError as error:  # its words for a full disk
                raise OSError(str(error)) from None
        (directory / "state.json").write_text(json.dumps(self.document, indent=1))
        write_manifest(directory, {"format": FORMAT, "global_step": self.step, "metrics": self.scores})


def contents(
    tensors: Mapping[str, Mapping[str, torch.Tensor]], state: TrainState, config: RunConfig,
    facts: Mapping[str, Any],
) -> Contents:  # fmt: skip
    """A checkpoint of `tensors` (see `training_tensors`). `facts`: hashes, checked when resuming; class names."""
    document = {"format": FORMAT, **asdict(state), **facts, "seed": config.seed}
    del document["stopped"]
    document["config"] = config.model_dump(mode="json")
    owned = {file: {n: t.detach().contiguous() for n, t in named.items()} for file, named in tensors.items()}
    return Contents(state.global_step, owned, document, state.scores())


def training_tensors(learner: Learner) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of a checkpoint, by file and name: the very ones that training changes, or gathered where they
    are divided among ranks (then all ranks call this together).
    """
    parameters, state = full_state(learner.model, learner.optimiser)
    tensors = {"model.safetensors": parameters, "optimiser.safetensors": state}
    return {**tensors, "ema.safetensors": learner.ema.state()} if learner.ema else tensors


def save_checkpoint(
    directory: Path, learner: Learner, state: TrainState, config: RunConfig, facts: Mapping[str, Any]
) -> None:
    """Write into `directory` (made if absent), here and now. `pipelines` writes beside training instead."""
    directory.mkdir(parents=True, exist_ok=True)
    contents(training_tensors(learner), state, config, facts).write(directory)


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


def load_model(directory: Path, model: PolyViT, file: str = "model.safetensors") -> None:
    """Parameters of a checkpoint into a model of the same shape. Raises UserError naming what differs."""
    tensors = _load(directory / file)
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != given:
        differ = sorted(n for n in wanted.keys() | given.keys() if wanted.get(n) != given.get(n))
        problems = [f"{n}: the model has {wanted.get(n)}, the checkpoint {given.get(n)}" for n in differ]
        raise UserError(f"{directory} does not fit the model of this config", problems[:10])
    load_parameters(model, tensors)


def load_training(directory: Path, learner: Learner, hashes: Mapping[str, Any]) -> TrainState:
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
    load_model(directory, learner.model)
    load_optimiser(learner.model, learner.optimiser, _load(directory / "optimiser.safetensors"))
    if learner.ema:
        learner.ema.load_state(_load(directory / "ema.safetensors"))
    return TrainState(
        document["global_step"], document["read"], document["bad"],
        [Quarantined(**entry) for entry in document["quarantine"]], document["evaluations"],
        document["microbatches"],
    )  # fmt: skip


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); use another checkpoint") from None


def find_checkpoint(given: Path) -> Path:
    """A checkpoint's folder, or the newest whole checkpoint of a run's folder.

    A run that keeps its checkpoints elsewhere (`train.checkpoint_dir`) has the newest one copied beside it. Raises
    UserError where there is none, or where the one given is damaged.
    """
    if (given / "state.json").is_file():
        if (given / MANIFEST).is_file() and (wrong := damage(given)):
            raise UserError(f"{given} is damaged: {wrong}; use another checkpoint")
        return given
    store = open_store(store_of(given))
    step, passed = newest_whole(store)
    if step is None:
        raise UserError(
            f"{given} is neither a checkpoint nor a run with one; give a folder that `polyvit cotrain` wrote",
            passed,
        )
    for line in passed:
        logger.warning("%s; taking %s", line, folder_name(step))
    with store.fetched(step) as folder:
        return folder if folder.parent == Path(store.address) else _kept(folder, given, step)


def store_of(run: Path) -> str:
    """Where a run's checkpoints lie: its own folder, unless its record names another place."""
    try:
        return json.loads((run / "run.json").read_text())["checkpoints"]
    except (OSError, ValueError, KeyError):
        return str(run)


def _kept(folder: Path, run: Path, step: int) -> Path:
    target = run / "fetched" / folder_name(step)
    shutil.copytree(folder, target, dirs_exist_ok=True)
    return target


def load_trained(given: Path) -> tuple[PolyViT, RunConfig, dict[str, Any]]:
    """A checkpoint or a run -> the model on the CPU in eval mode, its config, and `state.json`.

    The averaged weights, where the run kept any: they are what it was evaluated with. Raises UserError where it is
    not one of this version's.
    """
    directory = find_checkpoint(given)
    document = read_document(directory)
    config = RunConfig.model_validate(document["config"])
    model = PolyViT(config.model, config.tasks)
    load_model(directory, model, "ema.safetensors" if config.optim.ema_decay else "model.safetensors")
    return model.eval(), config, document
