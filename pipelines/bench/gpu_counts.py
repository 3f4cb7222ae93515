"""Helpers of `polyvit bench gpu`: operations counted, callbacks of a loop that nobody watches.

In: what runs. Out: numbers of operations by name.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from polyvit.checkpoint import TrainState
from polyvit.data.loading import Minibatch


class Operations(TorchDispatchMode):
    """Counts the operations that are run while it is on, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """All of them."""
        return self.by_name.total()

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run the operation and count it."""
        self.by_name[func._schema.name] += 1  # type: ignore[attr-defined]
        return func(*args, **(kwargs or {}))


class SilentCallbacks:
    """Callbacks of the training loop that keep nothing."""

    def progress(self, snapshot: dict[str, Any]) -> None:
        """Nothing."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Nothing."""

    def evaluated(self, step: int, scores: dict[str, float]) -> None:
        """Nothing."""

    def checkpoint(self, state: TrainState, last: bool) -> None:
        """Nothing."""

    def stop_requested(self) -> bool:
        """Never."""
        return False

    def anomaly(self, minibatch: Minibatch) -> str | None:
        """Nowhere."""
        return None
