"""The real test kit: nine small datasets in their true layouts, in POLYVIT_DATA_DIR, by default ../shared/data.

Tests that need it are marked `needs_data` and skip where it is absent. Another kit of the same layouts may be put
there: derive what you expect from its own lists. Below it, helpers of the tests of layouts.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from polyvit.config import TaskConfig
from polyvit.data.index.io import Scan, key_fraction

DATA_DIR = Path(os.environ.get("POLYVIT_DATA_DIR") or Path(__file__).parents[2] / "shared" / "data")
needs_data = pytest.mark.skipif(not (DATA_DIR / "imagenet").is_dir(), reason=f"no test kit in {DATA_DIR}")


def in_kit(path: str) -> Path:
    """A file or folder of the kit; the test is skipped where this kit lacks it."""
    place = DATA_DIR / path
    if not place.exists():
        pytest.skip(f"the kit lacks {path}")
    return place


TASK: TypeAdapter[TaskConfig] = TypeAdapter(TaskConfig)


def task(layout: str, num_classes: int = 10, modality: str = "image", **keys: Any) -> TaskConfig:
    """A task of a layout, with the least that a config needs."""
    keys = {"modality": modality, "layout": layout, "num_classes": num_classes, "steps": 1, "batch": 1, **keys}
    return TASK.validate_python(keys)


def write(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write files under `root`; returns `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def rows(scan: Scan) -> list[tuple[str, tuple[int, ...], str]]:
    """(path, labels, split) of every example, in order."""
    return [(example.path, example.labels, example.split) for example in scan.examples]


def carved(key: str, train: float, validation: float = 1.0) -> str:
    """The split that a key falls into, from the rule as documented."""
    fraction = key_fraction(key)
    return "train" if fraction < train else "validation" if fraction < validation else "test"
