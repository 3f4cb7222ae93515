"""Whether the packages that a config asks for are installed on this machine."""

import importlib.util

from polyvit.config.modalities import load_attribute
from polyvit.config.run import RunConfig
from polyvit.errors import UserError


def check_installed(config: RunConfig) -> None:
    """Raise UserError, one line a task, where a task wants decord and this machine has none, where balancing wants
    torchjd, and where a class of `train.callbacks` cannot be imported.

    decord has wheels for x86-64 only, so pyproject.toml leaves it out elsewhere. A config inside a checkpoint is
    not checked: a model trained with decord predicts anywhere, since PyAV gives the same frames.
    """
    balancing = config.schedule.balancing
    needed = [] if balancing == "sum" else ["torchjd", *(["ecos"] if balancing == "nash_mtl" else [])]
    if absent := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"schedule.balancing={balancing} needs {absent[0]}, which is not installed here; install"
            " polyvit[balancing] (ecos has wheels for Linux x86-64 with Python below 3.13), or choose another"
        )
    for address in config.train.callbacks:
        try:
            load_attribute(address)
        except ValueError as error:
            raise UserError(f"train.callbacks: {error}") from None
    tasks = [name for name, task in config.tasks.items() if getattr(task.augment, "reader", None) == "decord"]
    if tasks and importlib.util.find_spec("decord") is None:
        raise UserError(
            "augment.reader=decord, but decord is not installed here (it has wheels for x86-64 only); "
            "leave the key out: the default, pyav, reads the same frames",
            [f"tasks.{name}.augment.reader=decord" for name in tasks],
        )
