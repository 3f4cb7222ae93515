"""Where a run's newest whole checkpoint lies.

In: the folder of a checkpoint or of a run. Out: a checkpoint's folder on this machine.
"""

import logging
import shutil
from pathlib import Path

from polyvit.checkpoint.store import MANIFEST, damage, folder_name, newest_whole, open_store
from polyvit.errors import UserError
from polyvit.storage import read_record

logger = logging.getLogger(__name__)


def find_checkpoint(path: Path) -> Path:
    """A checkpoint's folder, or the newest whole checkpoint of a run's folder.

    A run that keeps its checkpoints elsewhere (`train.checkpoint_dir`) has the newest one copied beside it. Raises
    UserError where there is none, or where the one given is damaged.
    """
    if (path / "state.json").is_file():
        if (path / MANIFEST).is_file() and (problem := damage(path)):
            raise UserError(f"{path} is damaged: {problem}; use another checkpoint")
        return path
    store = open_store(store_of(path))
    step, damaged = newest_whole(store)
    if step is None:
        raise UserError(
            f"{path} is neither a checkpoint nor a run with one; give a folder that `polyvit cotrain` wrote",
            damaged,
        )
    for line in damaged:
        logger.warning("%s; taking %s", line, folder_name(step))
    with store.fetched(step) as folder:
        return folder if folder.parent == Path(store.address) else _copied(folder, path, step)


def store_of(run: Path) -> str:
    """Where a run's checkpoints lie: in the folder given; if there are none, where its record says.

    So a run that was copied or moved is the one in that folder.
    """
    if not (run / "run.json").is_file() or any(run.glob("step_*")):
        return str(run)
    advice = "put back a copy of it, or give a checkpoint's own folder"
    return str(read_record(run / "run.json", advice).get("checkpoints") or run)


def _copied(folder: Path, run: Path, step: int) -> Path:
    target = run / "fetched" / folder_name(step)
    shutil.copytree(folder, target, dirs_exist_ok=True)
    return target
