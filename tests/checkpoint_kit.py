"""A checkpoint written at once, for tests; a run writes its own beside training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyvit.checkpoint.state import TrainState, TrainUnit, checkpoint_data, training_tensors
from polyvit.config import RunConfig


def save_checkpoint(
    directory: Path, unit: TrainUnit, state: TrainState, config: RunConfig, metadata: Mapping[str, Any]
) -> None:
    """Write all of it into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    checkpoint_data(training_tensors(unit), state, config, metadata).write(directory)
