"""Folders that a command writes into: made, and known to be writable, before the work begins.

In: a path as the user gave it. Out: the folder.
"""

import tempfile
from pathlib import Path

from polyvit.errors import UserError


def output_folder(path: str | Path, given: str) -> Path:
    """The folder, made if absent. given: the flag that it was given with. Raises UserError where it cannot be made
    or written."""
    folder = Path(path).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{given} {folder} cannot be written ({error}); give another folder") from None
    return folder
