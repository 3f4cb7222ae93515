"""A run's folder: a new one, one found again, and the config with which a run is resumed.

In: a config, or what the user gave for `--resume`. Out: a `RunDir`. In the folder `storage`/NAME lie config.json,
run.json (which MLflow run it is), index/, quarantine.json, result.json, and a folder for each checkpoint
(`step_00000500`) unless `train.checkpoint_dir` says otherwise.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyvit.config import (
    RunConfig,
    apply_override,
    check_installed,
    check_no_password,
    run_name,
    validate_config,
    with_absolute_paths,
    with_new_names,
)
from polyvit.errors import UserError
from polyvit.storage import as_location, read_record, sole_owner, under, write_whole

RESUMABLE = ("train", "data", "feed", "tracking", "storage")
"""Sections that a resumed run may change: where it runs and how fast, not what it learns."""


@dataclass(frozen=True)
class RunDir:
    """A run's folder on (shared) storage."""

    folder: Path

    @property
    def name(self) -> str:
        """The run's name, also in Ray Train and MLflow."""
        return self.folder.name

    @property
    def record(self) -> Path:
        """The file that names the run's MLflow run; it is written when the run starts."""
        return self.folder / "run.json"

    def checkpoints(self, config: RunConfig) -> str:
        """Folder or URL of the run's checkpoints: `train.checkpoint_dir`/NAME, else the run's folder."""
        checkpoint_dir = config.train.checkpoint_dir
        return under(checkpoint_dir, self.name) if checkpoint_dir else str(self.folder)

    def owned(self, config: RunConfig, notice: Callable[[str], None]) -> AbstractContextManager[None]:
        """A block in which no other process trains this run, see `sole_owner`. Raises UserError."""
        places = dict.fromkeys([self.folder, as_location(self.checkpoints(config))])
        advice = "wait for its end, or end it there; a new run needs another --name"
        return sole_owner(list(places), advice, notice)

    def name_taken(self) -> UserError:
        """What is said of a new run whose name is taken."""
        return UserError(
            f"run {self.name} exists in {self.folder.parent}; give another --name, or --resume {self.name}"
        )

    def write(self, name: str, document: Any) -> Path:
        """Write a JSON file into the folder; returns its path."""
        path = self.folder / name
        write_whole(path, json.dumps(document, indent=1, default=str) + "\n")
        return path

    def read(self, name: str, *keys: str) -> dict[str, Any]:
        """One of its JSON files, with these keys. Raises UserError for a damaged one."""
        return read_record(self.folder / name, "put back a copy of it, or start a new run", *keys)


def new_run(config: RunConfig, name: str | None) -> RunDir:
    """Make the folder of a new run and write its config.json, which `cotrain` writes again once it owns the run.

    Raises UserError for a name that is taken, since the new run would silently go on from the old one's
    checkpoints.
    """
    unique = run_name(config, name)
    run_dir = RunDir(Path(config.storage).expanduser().absolute() / unique)
    try:
        run_dir.folder.mkdir(parents=True)
    except FileExistsError:
        failed_before_it_started = (run_dir.folder / "config.json").exists() and not run_dir.record.exists()
        if not failed_before_it_started:
            raise run_dir.name_taken() from None
        return run_dir  # and leave its config.json: another process may be about to start it
    except OSError as error:
        raise UserError(f"storage={config.storage} cannot be written ({error}); give another folder") from None
    run_dir.write("config.json", config.model_dump(mode="json"))
    return run_dir


def find_run(name_or_path: str, storage: str) -> RunDir:
    """A run by its folder, by its name in `storage`, or by one of its checkpoints. Raises UserError."""
    for path in (Path(name_or_path), Path(storage).expanduser() / name_or_path):
        for folder in (path, path.parent):
            if RunDir(folder).record.is_file() and (folder / "config.json").is_file():
                return RunDir(folder.absolute())
    raise UserError(
        f"--resume {name_or_path}: no such run here or in {storage}; "
        "give the folder that `polyvit cotrain` printed"
    )


def resumed_config(run_dir: RunDir, overrides: Sequence[str]) -> RunConfig:
    """The run's own config, with overrides such as train.workers=1.

    Raises UserError for keys that would make it another run than the one whose checkpoints it goes on from.
    """
    document = with_new_names(run_dir.read("config.json"))
    if other := [o for o in overrides if o.partition("=")[0].split(".")[0] not in RESUMABLE]:
        raise UserError(
            f"--resume cannot change {', '.join(other)}: a run goes on as it began. It may change keys of "
            f"{', '.join(RESUMABLE)}; for anything else start a new run"
        )
    for override in overrides:
        apply_override(document, override)
    try:
        config = validate_config(document)
    except UserError as error:
        where = " with ".join([str(run_dir.folder / "config.json"), *overrides])
        raise UserError(f"{where}: {error.message}", error.problems) from None
    check_installed(config)
    check_no_password("tracking.uri", config.tracking.uri)
    return with_absolute_paths(config)
