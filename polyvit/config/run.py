"""One run, whole: all sections of its config, and what must hold between them.

A config comes from a recipe's name or a YAML file, plus `key.path=value` overrides (`loader.py`).
"""

import re
import secrets
import time
from typing import Any

from pydantic import model_validator

from polyvit.config.cross_field import cross_field_problems
from polyvit.config.inputs import Modality, Section
from polyvit.config.modalities import PluginsConfig, TaskConfig, modalities_of, register_plugins
from polyvit.config.models import AnyModel
from polyvit.config.renamed import with_new_names
from polyvit.config.sections import (
    DataConfig,
    FeedConfig,
    InitConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    SweepConfig,
    TrackingConfig,
    TrainConfig,
)
from polyvit.errors import UserError


class RunConfig(Section):
    """One run, whole. `polyvit cotrain RECIPE key.path=value` sets any of these keys."""

    name: str = "polyvit"
    """Name of the recipe; new runs are called NAME, time and four digits."""
    source: str = ""
    """Where the recipe's numbers come from."""
    seed: int = 42
    """All random draws follow from it: schedule, plan, augmentation, initial weights."""
    storage: str = "runs"
    """Folder of runs, checkpoints and the default MLflow store; shared storage on a cluster."""
    model: AnyModel = ModelConfig()
    init: InitConfig = InitConfig()
    tasks: dict[str, TaskConfig]
    schedule: ScheduleConfig = ScheduleConfig()
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    feed: FeedConfig = FeedConfig()
    train: TrainConfig = TrainConfig()
    tracking: TrackingConfig = TrackingConfig()
    sweep: SweepConfig = SweepConfig()
    plugins: PluginsConfig = PluginsConfig()

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, document: Any) -> Any:
        """Old keys get their new names; plugins enter the tables that the sections are validated against."""
        if not isinstance(document, dict):
            return document
        document = with_new_names(document)
        register_plugins(document.get("plugins"))
        return document

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        if problems := cross_field_problems(self):
            raise ValueError("\n".join(problems))
        return self

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities that the tasks need, in the order of the table of modalities."""
        return modalities_of(self.tasks)

    @property
    def polyvit(self) -> ModelConfig:
        """The model section of a PolyViT. Raises UserError for another kind, which the caller cannot serve."""
        if not isinstance(self.model, ModelConfig):
            raise UserError(f"this works for model.kind=polyvit, and the config has model.kind={self.model.kind}")
        return self.model

    @property
    def warmup_steps(self) -> int:
        """Linear warmup: `optim.warmup_steps`, else the sum over tasks."""
        if self.optim.warmup_steps is not None:
            return self.optim.warmup_steps
        return sum(task.warmup_steps for task in self.tasks.values())

    def long_warmup(self, updates: int) -> str | None:
        """A sentence where a run of so many updates ends within the warmup; None where it does not."""
        if self.warmup_steps < updates:
            return None
        return (
            f"warmup takes {self.warmup_steps:,} updates and the run has {updates:,}: the peak learning rate is"
            " not reached; set optim.warmup_steps"
        )

    def with_train(self, **keys: Any) -> "RunConfig":
        """The config with other values of `train`; they are not checked again."""
        return self.model_copy(update={"train": self.train.model_copy(update=keys)})


def with_model_of(config: RunConfig, trained: RunConfig) -> RunConfig:
    """The tasks of `config` with the model section of `trained`, so that tokens fit its model.

    Raises UserError for tasks of a modality that the model has no tokenizer for.
    """
    problems = [
        f"tasks.{name}: {task.modality}; leave it out with --only, or give a model trained on {task.modality}"
        for name, task in config.tasks.items()
        if task.modality not in trained.modalities
    ]
    if problems:
        have = ", ".join(trained.modalities)
        raise UserError(f"the model has no tokenizer for these tasks (it has {have}):", problems)
    return config.model_copy(update={"model": trained.model})


def run_name(config: RunConfig, name: str | None, flag: str = "--name ") -> str:
    """The name of a new run: the one given, else the recipe's name, the time and four digits.

    It is one folder, a name in Ray and one in MLflow. flag: how the user gives a name. Raises UserError for one
    that cannot be all of these.
    """
    if name is None:
        recipe = re.sub(r"[^\w.+=@-]+", "-", config.name).strip(".-") or "run"
        return f"{recipe[:100]}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    if not re.fullmatch(r"[\w+=@][\w.+=@-]{0,199}", name):
        raise UserError(
            f"{flag}{name!r}: a run's name is one folder; give letters, digits and . _ - + = @, at most 200, the "
            "first no . or -; `storage=FOLDER` says where the run lies"
        )
    return name
