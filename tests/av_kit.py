"""Read an AVBert parity kit: the official code's weights, inputs, outputs and gradients.

A kit is the folder POLYVIT_PARITY_AV_DIR (default: shared/parity-av beside the repository). Sizes, modes and lists
of cases come from its info file, since other kits hold other numbers.
"""

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

DIR = Path(os.environ.get("POLYVIT_PARITY_AV_DIR") or Path(__file__).parents[2] / "shared" / "parity-av")


@cache
def info() -> dict[str, Any]:
    """The kit's info file; empty without a kit (parametrised tests then have no cases)."""
    path = DIR / "info.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def files(prefix: str) -> list[str]:
    """Names of the kit's files that begin so, as its info lists them."""
    return [name for name in info().get("files", {}) if name.startswith(prefix)]


@cache
def arrays(name: str) -> Mapping[str, np.ndarray]:
    """One npz of the kit; skips the test where there is none."""
    path = DIR / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"the parity kit has no {path.name}")
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def document(name: str) -> Any:
    """A JSON file of the kit; skips the test where there is none."""
    path = DIR / name
    if not path.is_file():
        pytest.skip(f"the parity kit has no {name}")
    return json.loads(path.read_text())


def under(name: str, prefix: str) -> dict[str, Tensor]:
    """The arrays of a file whose names begin with `prefix`, which is cut off, as tensors."""
    return {
        key.removeprefix(prefix): torch.from_numpy(np.array(value))
        for key, value in arrays(name).items()
        if key.startswith(prefix)
    }


def close(found: Any, expected: Any, tolerance: float, what: str = "", floor: float = 1.0) -> None:
    """Every entry within `tolerance` of max(floor, largest expected magnitude)."""
    found = np.asarray(found.detach() if isinstance(found, Tensor) else found, dtype=np.float64)
    expected = np.asarray(expected, dtype=np.float64)
    assert found.shape == expected.shape, f"{what}: {found.shape} is not {expected.shape}"
    error = np.abs(found - expected).max(initial=0.0)
    limit = tolerance * max(floor, np.abs(expected).max(initial=0.0))
    assert error <= limit, f"{what}: off by {error:.2e}, more than {limit:.2e}"
