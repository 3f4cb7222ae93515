"""What we take from Ray under names that it does not promise to keep. All of it is here, and nowhere else.

- `core_worker.get_current_task_attempt_number`: a decoding task that is run again must be careful.
- `DataParallelTrainer._create_default_callbacks`: two callbacks start a process each that no run of ours needs.
- `worker.print_to_stdstream`: what a driver prints of the cluster's errors; when a service ends, Ray kills actors
  that it still asks, and says so with "infinite retries".

Ray 2.60 has no public way to any of them.
`tests/pipelines/runtime/test_ray_private.py` fails, and says which of them, where a new Ray has changed one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray._private.worker

DATASETS = "DatasetsCallback"
"""Splits Ray Data's datasets among the train workers: each of ours has its own feed."""
PLACEMENT_GROUP_CLEANER = "PlacementGroupCleanerCallback"
"""Frees the workers' resources when Tune ends a trial. Those of a run of its own are freed when its driver ends,
and then this callback's process would stay."""


def tried_before() -> bool:
    """Whether Ray runs this task again because the process that ran it before died or was lost."""
    worker = ray._private.worker.global_worker
    return worker.core_worker.get_current_task_attempt_number() > 0  # type: ignore[attr-defined]


class FewerCallbacks:
    """Put before one of Ray Train's trainers: without the callbacks whose classes are named in `unused`."""

    unused: frozenset[str] = frozenset()

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in callbacks if type(callback).__name__ not in self.unused]


class Muted:
    """Whether Ray's messages about the cluster's tasks are kept from the terminal."""

    on = False


@contextmanager
def mutable_messages() -> Iterator[Muted]:
    """A block in which Ray prints nothing of the cluster's tasks once `on` is set; put it around `cluster`."""
    muted, show = Muted(), ray._private.worker.print_to_stdstream

    def print_to_stdstream(*arguments: Any, **keywords: Any) -> None:
        if not muted.on:
            show(*arguments, **keywords)

    ray._private.worker.print_to_stdstream = print_to_stdstream
    try:
        yield muted
    finally:
        ray._private.worker.print_to_stdstream = show
