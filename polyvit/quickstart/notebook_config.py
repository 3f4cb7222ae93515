"""A config from whatever a notebook has at hand."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from polyvit.config import RunConfig, load_config
from polyvit.errors import UserError

ConfigLike = str | Path | Mapping[str, Any] | RunConfig
"""A recipe's name, the path of a YAML file, the same as a dict (`extends` works there too), or a config."""


def as_config(config: ConfigLike, overrides: Sequence[str] = ()) -> RunConfig:
    """The validated config. Raises UserError with every problem.

    overrides: `key.path=value`, as on the command line.
    """
    if isinstance(config, RunConfig):
        if overrides:
            raise UserError("overrides go with a recipe, a file or a dict; a RunConfig is whole: use load_config")
        return config
    if not isinstance(config, Mapping):
        return load_config(str(config), overrides)
    # As a file, so that `extends` and tasks are merged by the same rules.
    document = {"name": "notebook", **json.loads(json.dumps(dict(config), default=str))}
    with tempfile.TemporaryDirectory(prefix="polyvit-config-") as folder:
        path = Path(folder) / "notebook.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return load_config(str(path), overrides)
