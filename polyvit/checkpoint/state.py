"""A checkpoint directory: all state for exact resume, as safetensors and JSON; nothing is pickled.

In: a `TrainUnit` (model, optimiser, average) and a `TrainState` (counters). Out: a folder of these files, and the
same state read back:

model.safetensors      parameters and buffers (batch norm's running averages) by name, float32
optimiser.safetensors  optimiser state by name
ema.safetensors        averaged parameters, where `optim.ema_decay` is set
loss_weights.safetensors  learned weights of losses, where `schedule.loss_weights=uncertainty`
drift.safetensors      how far each task moved shared weights, where `train.drift` is set
state.json             format, global_step, counters, quarantine, evaluations, hashes, class names, config
manifest.json          size and SHA-256 of each of them, and the results of an evaluation at this step
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, NonNegativeInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from polyvit.checkpoint.locate import find_checkpoint
from polyvit.checkpoint.store import write_manifest
from polyvit.checkpoint.unit import TrainUnit
from polyvit.config import RunConfig, validate_config
from polyvit.data.loading import Quarantined
from polyvit.distributed import (
    Communicator,
    SingleProcess,
    buffers_of,
    from_rank_0,
    full_state,
    load_optimiser,
    load_parameters,
)
from polyvit.errors import UserError
from polyvit.model import MultiTaskModel, build_model, device_of
from polyvit.model.pretrained import check_finite, nonfinite

FORMAT = 2


@dataclass
class TrainState:
    """The counters and results of a run, besides parameters and optimiser state; the same on every rank.

    global_step: steps done. read, bad: planned examples of each task, and those of them that could not be decoded,
    over all ranks. quarantine: every example that could not be decoded, each once; substitutes that were tried and
    failed too count. evaluations: their results. microbatches: examples of each task in one forward and backward,
    where the step is split. decisions: of an adaptive schedule. stopped: the run was told to (not stored). ended:
    why it ended early by itself; follows from `evaluations`.
    """

    global_step: int = 0
    read: dict[str, int] = field(default_factory=dict)
    bad: dict[str, int] = field(default_factory=dict)
    quarantine: list[Quarantined] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    microbatches: dict[str, int] = field(default_factory=dict)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False
    ended: dict[str, Any] | None = None

    def scores(self) -> dict[str, float]:
        """Results of the evaluation at this step: each task's metric, and their mean as `mean`; {} without one."""
        if not self.evaluations or self.evaluations[-1]["step"] != self.global_step:
            return {}
        results = self.evaluations[-1]["tasks"]
        values = {task: result["value"] for task, result in results.items() if result["value"] is not None}
        return {**values, "mean": sum(values.values()) / len(values)} if values else {}

    def quarantined(self, entries: list[Quarantined]) -> None:
        """Add entries, each example once, in a fixed order.

        Of several reasons for one example, as different parts of it were read, the first by the alphabet stays,
        whatever the order in which they come.
        """
        ordered = sorted([*self.quarantine, *entries], key=lambda entry: (entry.task, entry.key, entry.reason))
        first = {(entry.task, entry.key): entry for entry in reversed(ordered)}
        self.quarantine = [first[key] for key in sorted(first)]


class _Evaluation(BaseModel):
    step: NonNegativeInt
    tasks: dict[str, dict[str, Any]]


class _Answering(BaseModel):
    """What must be in `state.json` of any checkpoint, packaged models included."""

    global_step: NonNegativeInt
    config: dict[str, Any]
    evaluations: list[_Evaluation] = []
    classes: dict[str, list[str]] | None = None


class _Quarantine(BaseModel):
    task: str
    key: str
    path: str
    reason: str


class _Resumable(_Answering):
    """What training needs of `state.json` besides."""

    read: dict[str, NonNegativeInt]
    bad: dict[str, NonNegativeInt]
    quarantine: list[_Quarantine]
    microbatches: dict[str, int]
    evaluations: list[dict[str, Any]]  # type: ignore[assignment]
    decisions: list[dict[str, Any]] = []


@dataclass(frozen=True)
class CheckpointData:
    """All that a checkpoint holds, ready to be written.

    tensors: by file, then by name. document: `state.json`. scores: results of an evaluation at this step.
    """

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


def checkpoint_data(
    tensors: Mapping[str, Mapping[str, torch.Tensor]], state: TrainState, config: RunConfig,
    metadata: Mapping[str, Any],
) -> CheckpointData:  # fmt: skip
    """A checkpoint, ready to be written.

    tensors: by file and name, as `training_tensors` gives them. state: counters. config: of the run. metadata:
    hashes, which resuming checks, and class names.
    """
    document = {"format": FORMAT, **asdict(state), **metadata, "seed": config.seed}
    document["config"] = config.model_dump(mode="json")
    del document["stopped"]
    owned = {file: {n: t.detach().contiguous() for n, t in named.items()} for file, named in tensors.items()}
    return CheckpointData(state.global_step, owned, document, state.scores())


def training_tensors(unit: TrainUnit, keeps: bool = True) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of a checkpoint, by file and name: the very ones that training changes, or gathered in host
    memory, one at a time, where they are divided among ranks (then all ranks call this together).

    keeps: False on a rank that does not write: of what is gathered it gets nothing.
    """
    parameters, state = full_state(unit.model, unit.optimiser, keeps)  # type: ignore[arg-type]
    tensors = {"model.safetensors": parameters, "optimiser.safetensors": state}
    if unit.ema:
        tensors["ema.safetensors"] = unit.ema.state(keeps)
    return tensors | {f"{name}.safetensors": each.state() for name, each in unit.besides().items()}


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
        given = document.get("format")
        raise UserError(f"{directory} has checkpoint format {given}; this version reads format {FORMAT}")
    return document


def _check_keys(directory: Path, document: Mapping[str, Any], kind: type[BaseModel]) -> None:
    """Raises UserError that names the keys of `state.json` that are missing or of another type."""
    try:
        kind.model_validate(document, strict=True)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise UserError(
            f"{directory}/state.json is not what polyvit wrote; use another checkpoint", problems[:10]
        ) from None


def load_model(
    directory: Path, model: MultiTaskModel, file: str = "model.safetensors", allow_nonfinite: bool = False
) -> None:
    """Parameters and buffers of a checkpoint into a model of the same shapes and types.

    Raises UserError naming what differs. allow_nonfinite: take NaN and infinite weights too, such as to look into
    a run that diverged.
    """
    load_parameters(model, _fitting(directory, model, _load(directory / file), file, allow_nonfinite))


def _fitting(
    directory: Path, model: MultiTaskModel, tensors: dict[str, torch.Tensor], file: str = "model.safetensors",
    allow_nonfinite: bool = False,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """The tensors of a checkpoint's file, if the model takes them. Raises UserError naming what differs."""
    whole = {**dict(model.named_parameters()), **buffers_of(model)}
    expected = {name: tuple(p.shape) for name, p in whole.items()}
    stored = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != stored:
        differ = sorted(n for n in expected.keys() | stored.keys() if expected.get(n) != stored.get(n))
        problems = [f"{n}: the model has {expected.get(n)}, the checkpoint {stored.get(n)}" for n in differ]
        raise UserError(f"{directory} does not fit the model of this config", problems[:10])
    types = {name: tensor.dtype for name, tensor in whole.items()}
    problems = [
        f"{name}: the model has {types[name]}, the checkpoint {tensor.dtype}"
        for name, tensor in tensors.items()
        if tensor.dtype != types[name]
    ]
    if not allow_nonfinite:
        problems += nonfinite(tensors)
    if problems:
        raise UserError(
            f"{directory / file} has weights that cannot be used; use another checkpoint", problems[:10]
        )
    return tensors


def load_training(
    directory: Path | None, unit: TrainUnit, hashes: Mapping[str, Any], world: Communicator | None = None
) -> TrainState:
    """Load a checkpoint into `unit`; returns the counters, so that training goes on after `global_step`.

    directory: of the checkpoint; rank 0 alone reads it and the others get it from there: None for them. hashes:
    `schedule_hash` and `index_hash` of this run. world: of the ranks, which call this together; None: one alone.

    Raises UserError, on all ranks, where the schedule or the index is not the one that the checkpoint was trained
    with, and where it does not fit.
    """
    world, document, failure = world or SingleProcess(), None, None
    files: dict[str, dict[str, torch.Tensor]] = {}
    if directory is not None and world.rank == 0:
        try:
            document, files = _read_training(directory, unit, hashes)
        except UserError as error:
            failure = error
    document, failure = world.gather((document, failure))[0]
    if failure:
        raise failure
    names = ("model", "optimiser", *(("ema",) if unit.ema else ()), *unit.besides())
    device = device_of(unit.model)
    for name in names:
        tensors = from_rank_0(files.pop(name, {}), world, device)
        if name == "model":
            load_parameters(unit.model, tensors)
        elif name == "optimiser":
            load_optimiser(unit.model, unit.optimiser, tensors)  # type: ignore[arg-type]
        elif name in unit.besides():
            unit.besides()[name].load_state(tensors)
        elif unit.ema:
            unit.ema.load_state(tensors)
    return TrainState(
        document["global_step"], document["read"], document["bad"],
        [Quarantined(**entry) for entry in document["quarantine"]], document["evaluations"],
        document["microbatches"], document.get("decisions", []),
    )  # fmt: skip


def _read_training(
    directory: Path, unit: TrainUnit, hashes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    """`state.json` and the tensors by file and name, checked."""
    document = read_document(directory)
    for key, value in hashes.items():
        if document.get(key) != value:
            raise UserError(
                f"cannot resume from {directory}: its {key.replace('_', ' ')} differs from this run's. "
                "Resume with the same tasks, schedule, seed and data, or start a new run"
            )
    _check_keys(directory, document, _Resumable)
    files = {"model": _fitting(directory, unit.model, _load(directory / "model.safetensors"))}
    files["optimiser"] = _load_finite(directory / "optimiser.safetensors")
    if unit.ema:
        files["ema"] = _load_finite(directory / "ema.safetensors")
    for name in unit.besides():
        if not (directory / f"{name}.safetensors").is_file():
            raise UserError(
                f"cannot resume from {directory}: it has no {name}.safetensors, so its run was trained without. "
                "Resume with the config that it was trained with, or start a new run"
            )
        files[name] = _load_finite(directory / f"{name}.safetensors")
    return document, files


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); use another checkpoint") from None


def _load_finite(path: Path) -> dict[str, torch.Tensor]:
    tensors = _load(path)
    check_finite(path, tensors)
    return tensors


def load_trained(path: Path) -> tuple[MultiTaskModel, RunConfig, dict[str, Any]]:
    """A checkpoint or a run -> the model on the CPU in eval mode, its config, and `state.json`.

    The averaged weights where the run kept an average, since it was evaluated with them. Raises UserError for a
    checkpoint of another version.
    """
    directory = find_checkpoint(path)
    document = read_document(directory)
    _check_keys(directory, document, _Answering)
    try:
        config = validate_config(document["config"])
    except UserError as error:
        raise UserError(f"{directory}/state.json: {error.message}", error.problems) from None
    model = build_model(config)
    load_model(directory, model, "ema.safetensors" if config.optim.ema_decay else "model.safetensors")
    return model.eval(), config, document
