"""Whether the packages that a config asks for are installed on this machine."""

import importlib.util

from polyvit.config.run import RunConfig
from polyvit.errors import UserError


def check_installed(config: RunConfig) -> None:
    """Raise UserError, one line a task, where a task wants decord and this machine has none.

    decord has wheels for x86-64 only, so pyproject.toml leaves it out elsewhere. A config inside a checkpoint is
    not checked: a model trained with decord predicts anywhere, since PyAV gives the same frames.
    """
    tasks = [name for name, task in config.tasks.items() if getattr(task.augment, "reader", None) == "decord"]
    if tasks and importlib.util.find_spec("decord") is None:
        raise UserError(
            "augment.reader=decord, but decord is not installed here (it has wheels for x86-64 only); "
            "leave the key out: the default, pyav, reads the same frames",
            [f"tasks.{name}.augment.reader=decord" for name in tasks],
        )
