"""Helpers of `polyvit bench gpu`: operations counted, callbacks of a loop that nobody watches.

In: what runs. Out: numbers of operations by name.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile
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


def outermost_operations(work: Callable[[], Any]) -> int:
    """ATen operations that no other ATen operation calls, while `work` runs once, forward and backward; of
    compiled graphs those that they leave to libraries, and not their own kernels.

    By torch's profiler: below a TorchDispatchMode such as `Operations` torch gives up a compiled function, for
    good and without a word.
    """
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        work()
    return sum(event.name.startswith("aten::") and not _within_aten(event) for event in profiler.events())


def _within_aten(event: Any) -> bool:
    parent = event.cpu_parent
    while parent is not None and not parent.name.startswith("aten::"):
        parent = parent.cpu_parent
    return parent is not None


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
