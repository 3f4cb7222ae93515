"""Contradictions between keys of a config, all found at once."""

from collections.abc import Mapping
from typing import Protocol

from polyvit.config.avbert import AudiovisualTask, AVBertConfig
from polyvit.config.inputs import InputSection
from polyvit.config.sections import (
    InitConfig,
    ModelConfig,
    OptimConfig,
    Range,
    ScheduleConfig,
    SweepConfig,
    TrainConfig,
)
from polyvit.config.tasks import ImageTask, TaskBase


class Config(Protocol):
    """The sections of a `RunConfig` that are looked at here; `run.py` imports this file."""

    @property
    def model(self) -> ModelConfig | AVBertConfig: ...
    @property
    def init(self) -> InitConfig: ...
    @property
    def tasks(self) -> Mapping[str, TaskBase]: ...
    @property
    def modalities(self) -> tuple[str, ...]: ...
    @property
    def schedule(self) -> ScheduleConfig: ...
    @property
    def optim(self) -> OptimConfig: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def sweep(self) -> SweepConfig: ...


def cross_field_problems(config: Config) -> list[str]:
    """Every contradiction between keys, one line each: what was given, what is allowed."""
    model, problems = config.model, []
    if not config.tasks:
        problems.append("tasks: empty; give at least one task")
    if model.width % model.num_heads:
        problems.append(f"model.width={model.width} must be a multiple of model.num_heads={model.num_heads}")
    if isinstance(model, AVBertConfig):
        problems += model.problems(config.modalities)
        if config.optim.layer_decay is not None:
            problems.append(
                f"optim.layer_decay={config.optim.layer_decay:g} needs model.kind=polyvit; here set optim.lr_coefs"
            )
        problems += [
            f"tasks.{name}.drop_path={task.drop_path} needs model.kind=polyvit; avbert has model.dropout"
            for name, task in config.tasks.items()
            if task.drop_path
        ]
        problems += _sequence_problems(model, config.tasks)
    else:
        problems += _polyvit_problems(model, config.modalities)
    for name, task in config.tasks.items():
        problems += _objective_problems(name, task, model)
        problems += _augment_problems(name, task)
        if not name.replace("_", "").replace("-", "").isalnum():
            problems.append(f"tasks.{name}: a task's name may hold letters, digits, '_' and '-' only")
        if task.batch < config.train.known_workers:
            problems.append(
                f"tasks.{name}.batch={task.batch} must be at least train.workers={config.train.workers}:"
                " every worker takes a part of each minibatch"
            )
    fewest, most = config.train.min_workers, config.train.workers
    if fewest is not None and most is not None and fewest > most:
        problems.append(f"train.min_workers={fewest} must be at most train.workers={most}")
    if config.train.best_metric not in ("mean", *config.tasks):
        problems.append(
            f"train.best_metric={config.train.best_metric} must be mean or a task: {', '.join(config.tasks)}"
        )
    problems += _early_stopping_problems(config)
    problems += _accumulate_problems(config)
    problems += _schedule_problems(config)
    problems += _sweep_problems(config)
    if config.optim.clip_order == "reference" and config.schedule.kind == "accumulating":
        problems.append("optim.clip_order=reference is not defined for schedule.kind=accumulating; use global")
    if config.optim.clip_order == "reference" and config.train.sharding == "full":
        problems.append("optim.clip_order=reference is not defined for train.sharding=full; use global")
    if config.optim.kind == "adamw" and config.optim.inactive_params == "momentum":
        problems.append("optim.inactive_params=momentum needs optim.kind=sgd; with adamw it must be frozen")
    return problems


def _augment_problems(name: str, task: TaskBase) -> list[str]:
    """Of augmentations that do not apply to a task."""
    problems = []
    if isinstance(task, ImageTask) and task.layout == "tokens":
        given = [key for key in ("randaugment_ops", "random_erasing") if getattr(task.augment, key)]
        problems += [
            f"tasks.{name}.augment.{key} changes pictures, and layout tokens holds patches that were cut before;"
            " leave it out, or train from the pictures"
            for key in given
        ]
    if isinstance(task, ImageTask) and task.pairs_examples and task.loss not in ("softmax", "sigmoid"):
        problems.append(
            f"tasks.{name}.loss={task.loss} takes no mixed labels: leave out mixup_alpha and cutmix_alpha, or use"
            " softmax or sigmoid"
        )
    return problems


def _early_stopping_problems(config: Config) -> list[str]:
    settings, problems = config.train.early_stopping, []
    if settings.metric not in ("mean", *config.tasks):
        problems.append(
            f"train.early_stopping.metric={settings.metric} must be mean or a task: {', '.join(config.tasks)}"
        )
    if settings.patience is not None and config.train.eval_every is None:
        problems.append("train.early_stopping acts at evaluations: set train.eval_every, steps between them")
    return problems


def _accumulate_problems(config: Config) -> list[str]:
    problems = []
    for name, task in config.tasks.items():
        passes = task.accumulate or config.train.accumulate
        key = f"tasks.{name}.accumulate" if task.accumulate else "train.accumulate"
        part = task.batch // config.train.known_workers // (2 if task.pairs_examples else 1)
        if passes > 1 and task.loss == "contrastive":
            problems.append(
                f"{key}={passes}: task {name} compares the clips of its whole minibatch, which is one pass; set"
                f" tasks.{name}.accumulate=1"
            )
        elif passes > max(1, part):
            units = "pairs of examples" if task.pairs_examples else "examples"
            problems.append(
                f"{key}={passes} is more than the {part} {units} of tasks.{name}.batch={task.batch} that a"
                f" worker gets; give at most {max(1, part)}"
            )
    return problems


def _objective_problems(name: str, task: TaskBase, model: ModelConfig | AVBertConfig) -> list[str]:
    """Of a task's loss, metric and head."""
    problems, contrastive = [], task.loss == "contrastive"
    if contrastive and task.modality != "audiovisual":
        problems.append(f"tasks.{name}.loss=contrastive needs modality audiovisual, not {task.modality}")
    if contrastive != (task.metric in ("retrieval", "pair_accuracy")):
        allowed = "retrieval or pair_accuracy" if contrastive else "top1 or map"
        problems.append(f"tasks.{name}.metric={task.metric} does not fit loss={task.loss}; give {allowed}")
    if contrastive and task.batch < 2:
        problems.append(f"tasks.{name}.batch={task.batch} must be at least 2: examples are compared")
    if not isinstance(model, AVBertConfig) or not isinstance(task, AudiovisualTask):
        return problems
    problems += task.stream_problems(name)
    if contrastive and task.reads != "summaries":
        problems.append(f"tasks.{name}.reads={task.reads} is of tasks with classes; leave it out")
    if task.reads == "clips_and_sequence" and model.fusion == "late":
        problems.append(
            f"tasks.{name}.reads=clips_and_sequence needs a multimodal transformer: fusion early or mid"
        )
    return problems


def _sequence_problems(model: AVBertConfig, tasks: Mapping[str, TaskBase]) -> list[str]:
    spec, problems = model.audiovisual, []
    for name, task in tasks.items():
        if not isinstance(task, AudiovisualTask):
            continue
        augment, least = task.augment, spec.spectrogram_frames
        if (samples := round(augment.clip_seconds * spec.sample_rate)) < least:
            problems.append(
                f"tasks.{name}.augment.clip_seconds={augment.clip_seconds:g} at model.audiovisual.sample_rate="
                f"{spec.sample_rate} are {samples} samples; model.audiovisual.spectrogram_frames={least} needs at"
                " least as many"
            )
        if augment.resize_sides and augment.resize_sides[0] > augment.resize_sides[1]:
            problems.append(
                f"tasks.{name}.augment.resize_sides={list(augment.resize_sides)}: give the smaller number first"
            )
    return problems


def _polyvit_problems(model: ModelConfig, modalities: tuple[str, ...]) -> list[str]:
    problems, sharing = [], model.sharing
    if model.l_adapt > model.depth:
        problems.append(f"model.l_adapt={model.l_adapt} must be at most model.depth={model.depth}")
    if sharing.modalities == "low_rank" and sharing.rank > model.width:
        problems.append(
            f"model.sharing.rank={sharing.rank} must be at most model.width={model.width}: at that rank the"
            " factors hold any map"
        )
    for modality in modalities:
        if modality == "audiovisual":
            problems.append("model.kind=polyvit takes no tasks of modality audiovisual; set model.kind=avbert")
        else:
            problems += _patch_problems(modality, model.input(modality))
    return problems


def _schedule_problems(config: Config) -> list[str]:
    schedule, problems = config.schedule, []
    if schedule.kind == "adaptive" and config.train.eval_every is None:
        problems.append("schedule.kind=adaptive decides at evaluations: set train.eval_every, steps between them")
    for key, plain in (("balancing", "sum"), ("loss_weights", "equal")):
        if getattr(schedule, key) != plain and schedule.kind != "accumulating":
            problems.append(
                f"schedule.{key}={getattr(schedule, key)} is of schedule.kind=accumulating, not of"
                f" {schedule.kind}; leave it out"
            )
    if schedule.loss_weights == "dwa" and config.train.eval_every is None:
        problems.append("schedule.loss_weights=dwa follows from evaluations: set train.eval_every")
    if schedule.balancing != "sum" and config.train.sharding == "full":
        problems.append(
            f"schedule.balancing={schedule.balancing} needs whole gradients on each worker:"
            " set train.sharding=none"
        )
    if config.train.interference_every and config.train.sharding == "full":
        problems.append("train.interference_every needs whole gradients on each worker: set train.sharding=none")
    if config.train.drift and config.train.sharding == "full":
        problems.append("train.drift needs whole weights on each worker: set train.sharding=none")
    if config.train.drift and schedule.kind == "accumulating":
        problems.append(
            "train.drift: each step of schedule.kind=accumulating trains all tasks at once, so no movement is one"
            " task's own; leave it out"
        )
    if schedule.temperature != 1 and schedule.kind not in ("weighted", "adaptive"):
        problems.append(
            f"schedule.temperature={schedule.temperature:g} is of schedule.kind=weighted and adaptive, not of"
            f" {schedule.kind}; leave it out"
        )
    return problems


def _sweep_problems(config: Config) -> list[str]:
    sweep, problems = config.sweep, []
    if sweep.search == "grid" and (
        ranges := [key for key, values in sweep.space.items() if isinstance(values, Range)]
    ):
        problems.append(
            f"sweep.search=grid cannot go through the range of {ranges[0]}; list values, or use random"
        )
    if sweep.alone and (sweep.search != "grid" or sweep.early_stopping):
        problems.append(
            "sweep.alone needs sweep.search=grid and no sweep.early_stopping: models of fewer tasks cannot be"
            " ranked with the others"
        )
    missing = [task for task in config.tasks if task not in sweep.baselines]
    if sweep.objective == "worst_regression" and missing:
        problems.append(
            f"sweep.objective=worst_regression needs sweep.baselines of every task; missing: {', '.join(missing)}"
        )
    if sweep.early_stopping and config.train.eval_every is None:
        problems.append("sweep.early_stopping needs evaluations on the way: set train.eval_every")
    return problems


def _patch_problems(modality: str, spec: InputSection) -> list[str]:
    return [
        f"model.{modality}: {side} {s} is not divided by its patch side {p}"
        + (f" at stride {d}" if d != p else "")
        + f"; the nearest that fit are {_nearest_sizes(s, p, d)}"
        for side, s, p, d in zip(spec.sides, spec.media_size, spec.patch, spec.strides, strict=True)
        if s < p or (d >= p and (s - p) % d)  # overlapping patches may leave a rest, as a VALID convolution does
    ]


def _nearest_sizes(size: int, patch: int, stride: int) -> str:
    below = patch + max(0, (size - patch) // stride) * stride
    return str(below) if below > size else f"{below} and {below + stride}"
