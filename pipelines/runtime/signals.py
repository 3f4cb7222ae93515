"""Ctrl-C and SIGTERM (preemption, `ray job stop`): write a checkpoint first, then end.

In: work that takes long, and what to do at the first signal. Out: the work's result and the signal that came.
"""

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


class StoppedAtOnce(KeyboardInterrupt):
    """The second signal: the run ends without a checkpoint."""

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


def stoppable(
    work: Callable[[], Outcome], on_first: Callable[[], None], meanwhile: Callable[[], None] = lambda: None,
    later: Callable[[], None] = lambda: None, at: threading.Event | None = None,
) -> tuple[Outcome, int | None]:  # fmt: skip
    """Run `work` in a thread. The first signal calls `on_first`; the second raises StoppedAtOnce.

    `meanwhile` is called in this thread once `work` has begun, and `later` once `at` is set or `work` has ended
    well. Where one of them fails, it must have told `work` to end: its error is raised then. Returns what `work`
    returned, and the signal if there was one. A thread that cannot receive signals (a Tune trial) runs
    `meanwhile`, `later` and then `work`, and nothing else.
    """
    if threading.current_thread() is not threading.main_thread():
        meanwhile()
        later()
        return work(), None
    caught: list[int] = []

    def handler(signum: int, frame: object) -> None:
        caught.append(signum)
        if len(caught) > 1:
            raise StoppedAtOnce(signum)

    outcomes: list[Any] = []
    thread = threading.Thread(target=lambda: outcomes.append(_attempt(work)), name="polyvit-fit", daemon=True)
    before = {signum: signal.signal(signum, handler) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        thread.start()
        try:
            meanwhile()
            announced = done = False
            while thread.is_alive():
                thread.join(0.2)
                if caught and not announced:
                    announced = True
                    on_first()
                if at is not None and at.is_set() and not done:
                    done = True
                    later()
            if not done and outcomes[0][1] is None:
                later()
        except Exception:
            thread.join()
            raise
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)
    result, error = outcomes[0]
    if error is not None:
        raise error
    return result, caught[0] if caught else None


def _attempt(work: Callable[[], Outcome]) -> tuple[Outcome | None, BaseException | None]:
    try:
        return work(), None
    except BaseException as error:  # raised in the thread that waits
        return None, error
