"""Many small reads of one scan: here in threads, or wherever the caller spreads them, such as over a cluster.

In: a function that can be pickled and many items. Out: its answers, in the order of the items, a few at a time.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from polyvit.storage import pool

Item = TypeVar("Item")
Answer = TypeVar("Answer")
THREADS = min(16, 2 * (os.cpu_count() or 1))
"""Local files that are read at a time; of an object store, as many as it answers (`storage.pool`)."""


class Spread(Protocol):
    """Calls a function for many items elsewhere; answers come in their order, a few in memory at a time."""

    def __call__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """The answers. What the function raises is raised here."""


def spread_over(
    spread: Spread | None, function: Callable[[Item], Answer], items: Sequence[Item], many: int, remote: bool
) -> Iterator[Answer]:
    """The answers of `function`, in the order of `items`.

    spread: used for `many` items and more; None: never. remote: whether the items lie in an object store.
    """
    if spread is not None and len(items) >= many:
        yield from spread(function, items)
    elif remote:
        yield from pool().map(function, items)
    else:
        with ThreadPoolExecutor(THREADS) as threads:
            yield from threads.map(function, items)
