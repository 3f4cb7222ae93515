"""Limits for a process that decodes files of unknown origin: time, and interrupts that wait.

A decoding process of the feed may die: Ray starts another. So it decodes in place. A file that crashes a decoder
kills the process; so does one that hangs it, by the kernel's own timer (`TimeLimit`: microseconds an example, no
thread). Ray then gives the request to another process, which decodes it example by example in a child process
(`data/loading/isolated.py`).
"""

import importlib
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TimeLimit:
    """Inside the block this process has `seconds` (None: no limit), then the kernel ends it with SIGALRM.

    Nothing in Python runs at that moment, so a decoder that never gives back the interpreter's lock is ended too.
    Only for processes that may die, and for one block at a time.
    """

    __slots__ = ("seconds",)

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        if self.seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_: object) -> None:
        if self.seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)


def import_uninterrupted(module: str) -> None:
    """Import a decoder before it is used, so that its import takes none of the first example's time.

    Ray cancels a task by KeyboardInterrupt and then gives its process other tasks. An import of torch that was
    interrupted halfway cannot be repeated in the same process, so the interrupt waits.
    """
    if module not in sys.modules:
        with uninterrupted():
            importlib.import_module(module)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Inside the block, a KeyboardInterrupt waits for its end."""
    if threading.current_thread() is not threading.main_thread():  # others get none
        yield
        return
    waiting: list[int] = []
    before = signal.signal(signal.SIGINT, lambda signum, _: waiting.append(signum))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
    if waiting:
        raise KeyboardInterrupt
