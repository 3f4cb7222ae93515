"""A thread that takes an iterator's items ahead of whoever consumes them."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class _End:
    """Nothing comes after it; `error` is why, where it is not the iterator's own end."""

    error: BaseException | None = None


class PrefetchIterator(Iterator[T], Generic[T]):
    """The items in their order; a thread keeps up to `depth` of them ready and works on one more.

    It starts at once. What the iterator raises is raised where its item would have come. `close` ends it: the
    thread closes the iterator (if it is a generator) when it comes back from the item it is waiting for.
    """

    def __init__(self, items: Iterator[T], depth: int, name: str = "polyvit-feed") -> None:
        self._items, self._over = items, False
        self._ready: queue.Queue[T | _End] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        threading.Thread(target=self._read, name=name, daemon=True).start()

    def _read(self) -> None:
        end = _End()
        try:
            for item in self._items:
                if not self._put(item):
                    break
                del item  # the consumer's alone: it may be hundreds of megabytes
        except BaseException as error:  # whatever it is, the consumer must see it
            end = _End(error)
        finally:
            if hasattr(self._items, "close"):
                self._items.close()
        self._put(end)

    def _put(self, item: T | _End) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def __next__(self) -> T:
        """The next item; waits for it."""
        if self._over:
            raise StopIteration
        item = self._ready.get()
        if isinstance(item, _End):
            self._over = True
            if item.error is not None:
                raise item.error
            raise StopIteration
        return item

    def close(self) -> None:
        """Stop reading ahead, and let go of what is ready."""
        self._over = True
        self._stop.set()
        while not self._ready.empty():
            self._ready.get_nowait()
