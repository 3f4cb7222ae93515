"""A line while something takes its time: nothing where it is done at once, the first line within two seconds."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipelines.runtime.command_line import console

FIRST_S, EVERY_S = 1.5, 10.0


@contextmanager
def notices_while(text: Callable[[], str]) -> Iterator[None]:
    """Print `text()` and the seconds so far, after FIRST_S and then every EVERY_S, while the block lasts."""
    over, began = threading.Event(), time.monotonic()

    def say() -> None:
        pause = FIRST_S
        while not over.wait(pause):
            console.print(f"{text()} ({time.monotonic() - began:.0f} s)")
            pause = EVERY_S

    thread = threading.Thread(target=say, name="polyvit-notice", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
