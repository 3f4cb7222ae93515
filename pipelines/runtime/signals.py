"""Ctrl-C and SIGTERM (preemption, `ray job stop`): checkpoint first, then end."""

import signal
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Outcome = TypeVar("Outcome")


class Stopped(Exception):
    """A run ended by a signal, after a checkpoint. `status`: 128 + the signal's number, as shells have it."""

    def __init__(self, message: str, signum: int, document: dict[str, Any]) -> None:
        super().__init__(message)
        self.status, self.document = 128 + signum, document


def stoppable(
    work: Callable[[], Outcome], on_first: Callable[[], None], meanwhile: Callable[[], None] = lambda: None
) -> tuple[Outcome, int | None]:
    """Run `work` in a thread. The first signal calls `on_first` and waits on; the second raises KeyboardInterrupt.

    `meanwhile` is called here, once `work` has begun. Returns what `work` returned and the signal, if there was
    one. In a thread that cannot have signals (a Tune trial) `meanwhile` and `work` simply run, in this order.
    """
    if threading.current_thread() is not threading.main_thread():
        meanwhile()
        return work(), None
    caught: list[int] = []

    def handler(signum: int, frame: object) -> None:
        caught.append(signum)
        if len(caught) > 1:
            raise KeyboardInterrupt

    box: list[Any] = []
    thread = threading.Thread(target=lambda: box.append(_attempt(work)), name="polyvit-fit", daemon=True)
    before = {signum: signal.signal(signum, handler) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        thread.start()
        meanwhile()
        told = False
        while thread.is_alive():
            thread.join(0.2)
            if caught and not told:
                told = True
                on_first()
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)
    result, error = box[0]
    if error is not None:
        raise error
    return result, caught[0] if caught else None


def _attempt(work: Callable[[], Outcome]) -> tuple[Outcome | None, BaseException | None]:
    try:
        return work(), None
    except BaseException as error:  # carried over to the thread that waits
        return None, error
