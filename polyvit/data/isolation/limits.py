"""What keeps a file from taking the feed with it: a time limit that costs nothing, a sandbox for the second try.

A decoding process of the feed may die: Ray starts another. So it decodes in place. A file that crashes a decoder
kills the process; so does one that hangs it, by the kernel's own timer (`TimeLimit`: microseconds an example, no
thread). Ray then gives the request to another process, which decodes it example by example in a child
(`sandboxed`): the one example that kills the child is named and substituted like any other broken one, the rest
come out as they always do.
"""

import importlib
import pickle
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from polyvit.data.index import Example
from polyvit.data.isolation.worker import (
    TOO_MUCH_MEMORY,
    Child,
    DecoderDied,
    Frame,
    confine,
    die_with_parent,
    receive,
    run_child,
    send,
)
from polyvit.data.loading import token_dtype, token_shape
from polyvit.errors import BadMedia

if TYPE_CHECKING:
    from polyvit.data.loading import Decoder

MEMORY = 8 * 2**30
"""Bytes that one example may take in a child; more than any file within the decoders' own limits needs."""
Tokens = Callable[[str, Example, int | None, str], np.ndarray]
"""(task, example, epoch, seed key) -> tokens [views, N, P]; raises BadMedia: see `Decoder.tokens`."""


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


def import_decoders(modality: str) -> None:
    """So that the time of an import is not the first example's, and that no import is cut short.

    Ray cancels a task by KeyboardInterrupt and gives its process other tasks; torch cannot be imported by halves.
    """
    if (name := f"polyvit.data.decode.{modality}") not in sys.modules:
        with uninterrupted():
            importlib.import_module(name)


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


@contextmanager
def sandboxed(decoder: "Decoder", task: str) -> Iterator[Tokens]:
    """`decoder.tokens` for examples of `task`, each run in a child process.

    The function raises what `decoder.tokens` raises, and DecoderDied where the child crashed, took longer than
    `decoder.decode_seconds` (reading not counted) or needed too much memory. RuntimeError where it met a bug.
    """
    child = Child(
        "polyvit.data.isolation.limits", {"modality": decoder.tasks[task].modality}, pickle.dumps(decoder)
    )

    def tokens(task: str, example: Example, epoch: int | None, seed_key: str) -> np.ndarray:
        """`Decoder.tokens` in the child: asks, and raises what it answers."""
        asked = pickle.dumps((task, example, epoch, seed_key))
        answer, payload = child.ask({}, asked, decoder.decode_seconds, reads=True)
        if "bug" in answer:
            raise RuntimeError(f"in the decoding process:\n{answer['bug']}")
        if "error" in answer:
            raise (DecoderDied if answer["kind"] == "died" else BadMedia)(str(answer["error"]))
        shape, dtype = token_shape(decoder.inputs[task]), token_dtype(decoder.tasks[task].modality)
        return np.frombuffer(payload, dtype).reshape(-1, *shape)

    try:
        yield tokens
    finally:
        child.close()


# ------------------------------------------------------------------------------------------- in the child


def _answer(decoder: "Decoder", asked: bytes, read: Callable[[], None]) -> Frame:
    try:
        task, example, epoch, seed_key = pickle.loads(asked)
        tokens = decoder.tokens(task, example, epoch, seed_key, read=read)
    except BadMedia as error:
        return {"error": error.reason, "kind": "media"}, b""
    except MemoryError:
        return {"error": TOO_MUCH_MEMORY, "kind": "died"}, b""
    except Exception:
        return {"bug": traceback.format_exc()}, b""
    return {"tokens": len(tokens)}, np.ascontiguousarray(tokens).tobytes()


def serve(descriptor: int) -> None:
    """Answer frames until the parent hangs up."""
    die_with_parent()
    with socket.socket(fileno=descriptor) as connection:
        hello, payload = receive(connection)
        decoder: Decoder = pickle.loads(payload)
        import_decoders(hello["modality"])
        confine(MEMORY)
        started: dict[str, Any] = {"reading": "done"}
        send(connection, {"ready": True})
        while True:
            _, asked = receive(connection)
            send(connection, *_answer(decoder, asked, lambda: send(connection, started)))


if __name__ == "__main__":
    run_child(serve)
