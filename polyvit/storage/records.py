"""Small files that a run depends on: whole or absent after a power cut, and named where they are damaged.

In: a path and text. Out: the file, written beside, flushed to the disk and renamed; or its JSON read back.
"""

import json
import os
from pathlib import Path
from typing import Any

from polyvit.errors import UserError

LFS_POINTER = "it is a pointer of git-lfs, not the file itself; run `git lfs pull`"


def is_lfs_pointer(head: bytes) -> bool:
    """Whether a file that begins so stands for one that git-lfs has not fetched."""
    return head.startswith(b"version https://git-lfs")


def write_whole(path: Path, text: str) -> None:
    """Readers see the old file or the new one, whenever the machine stops. Raises OSError."""
    beside = path.with_name(f".{path.name}.writing-{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)  # of a write that failed
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_record(path: Path, advice: str, *keys: str) -> dict[str, Any]:
    """The mapping in a JSON file. advice: what to do where it is damaged. keys: what it must hold.

    Raises UserError that names the file, what is wrong with it, and the advice.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        what = "it is empty" if path.is_file() and not path.stat().st_size else str(error)
        raise UserError(f"{path} cannot be read ({what}); {advice}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} cannot be read (it holds no mapping); {advice}")
    if missing := [key for key in keys if key not in document]:
        raise UserError(f"{path} cannot be read (it has no {missing[0]}); {advice}")
    return document
