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

from polyvit.config import AVBertConfig, RoleSharing
from polyvit.model.avbert.convert import official_name

DIR = Path(os.environ.get("POLYVIT_PARITY_AV_DIR") or Path(__file__).parents[2] / "shared" / "parity-av")

ROLES = {
    (False, False): "none",
    (False, True): "low_rank_alone",
    (True, False): "full",
    (True, True): "low_rank",
}
"""(transformers shared, low rank) as the kit says it -> `model.sharing.roles`."""


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


def model_config(sizes: Mapping[str, Any], fusion: str, mode: str, **more: Any) -> AVBertConfig:
    """The AVBert of a kit's sizes (`tf` or `av`) in one of its sharing modes."""
    said = info()["modes"][mode]
    roles = ROLES[said["transformers_shared"], said["low_rank"]]
    return AVBertConfig(
        width=sizes.get("hidden", sizes.get("hidden_size")),
        depth=sizes.get("layers", sizes.get("num_hidden_layers")),
        num_heads=sizes.get("heads", sizes.get("num_attention_heads")),
        mlp_dim=sizes.get("ffn", sizes.get("intermediate_size")),
        positions=sizes.get("maxpos", sizes.get("max_position_embeddings")),
        fusion=fusion,
        sharing=RoleSharing(
            layers="all" if said["layers_shared"] else "none",
            roles=roles,
            rank=sizes.get("rank", sizes.get("orthogonal_size")),
        ),
        dropout=0.0,
        norm_eps=info()["layer_norm_eps"],
        **more,
    )


def gradients_close(
    model: torch.nn.Module, name: str, config: AVBertConfig, tolerance: float, prefix: str = "grad/"
) -> None:
    """Every gradient of a model that the file holds, each within `tolerance` of its own largest entry.

    A key's bias adds the same to all scores of a query, so its gradient is zero and what is stored is rounding.
    Nothing the file holds may be missing in ours, nor the other way round.
    """
    expected = under(name, prefix)
    seen = set()
    for ours, parameter in model.named_parameters():
        theirs = official_name(ours, config)
        if theirs not in expected:
            assert parameter.grad is None, f"{ours} has a gradient, the official code none"
            continue
        seen.add(theirs)
        noise = theirs.endswith(("key.bias", "factor_key.s_linear.bias"))
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        close(found, expected[theirs], 1e-5 if noise else tolerance, theirs, 1.0 if noise else 1e-2)
    idle = set(info()["parameters_without_gradient"].get(name.removeprefix("transformer_"), []))
    assert expected.keys() - seen <= idle, sorted(expected.keys() - seen - idle)[:5]
    assert all(not expected[theirs].any() for theirs in expected.keys() - seen)
