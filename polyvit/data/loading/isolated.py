"""The second try of a request whose first try killed its process: every example in a child process.

The one example that kills the child is named and substituted like any other broken one; the others come out with
the same bytes as ever. The child is `python -m polyvit.data.loading.isolated` (`data/isolation/worker.py`); its
answers are arrays as raw bytes, never pickles.
"""

import os
import pickle
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from polyvit.config import InputSection
from polyvit.data.index import Example
from polyvit.data.isolation import (
    TOO_MUCH_MEMORY,
    Child,
    DecoderDied,
    Frame,
    confine,
    die_with_parent,
    import_uninterrupted,
    receive,
    run_child,
    send,
)
from polyvit.data.layouts.scanning import inside
from polyvit.data.loading.example import Arrays, Media, from_bytes, to_bytes
from polyvit.data.loading.reader import load_for_decoding
from polyvit.errors import BadMedia
from polyvit.storage import Location, is_url

MEMORY = 8 * 2**30
"""Bytes that one example may take in a child; more than any file within the decoders' own limits needs."""
ArraysOf = Callable[[str, Example, int | None, str], Arrays]
"""(task, example, epoch, seed key) -> named arrays [views, ...]; raises BadMedia: see `Decoder.arrays`."""


class ExampleDecoder(Protocol):
    """What of a `Decoder` is used here; `minibatch.py` imports this file."""

    @property
    def inputs(self) -> Mapping[str, InputSection]:
        """Input section of each task."""

    @property
    def roots(self) -> Mapping[str, Location]:
        """Where each task's data lie."""

    @property
    def decode_timeout_s(self) -> float | None:
        """Seconds for one example."""

    def arrays(
        self, task_name: str, example: Example, epoch: int | None, seed_key: str,
        seconds: float | None = None, read: Callable[[], None] | None = None, media: Media | Arrays | None = None,
    ) -> Arrays:  # fmt: skip
        """See `Decoder.arrays`."""


@contextmanager
def isolated_arrays(decoder: ExampleDecoder, task: str, examples: Sequence[Example] = ()) -> Iterator[ArraysOf]:
    """`decoder.arrays` for examples of `task`, each run in a child process.

    examples: those that will be asked for, where some lie behind links that lead out of the root.

    The function raises what `decoder.arrays` raises, and DecoderDied where the child crashed, took longer than
    `decoder.decode_timeout_s` (reading not counted) or needed too much memory. RuntimeError where it met a bug.
    """
    spec = decoder.inputs[task]
    place = decoder.roots[task]
    readable = [] if is_url(place) else _folders(Path(place), examples)
    child = Child("polyvit.data.loading.isolated", {"codec": spec.codec}, pickle.dumps(decoder), readable=readable)

    def arrays(task: str, example: Example, epoch: int | None, seed_key: str) -> Arrays:
        """`Decoder.arrays` in the child: asks, and raises what it answers."""
        # The child has neither network nor credentials.
        media = load_for_decoding(example, place) if is_url(place) else None
        question = pickle.dumps((task, example, epoch, seed_key, {} if media is None else {"media": media}))
        answer, payload = child.ask({}, question, decoder.decode_timeout_s, reads=True)
        if "bug" in answer:
            raise RuntimeError(f"in the decoding process:\n{answer['bug']}")
        if "error" in answer:
            raise (DecoderDied if answer["kind"] == "died" else BadMedia)(str(answer["error"]))
        return from_bytes(spec, answer["views"], payload)

    try:
        yield arrays
    finally:
        child.close()


def _folders(root: Path, examples: Sequence[Example]) -> list[str]:
    """The root and what links in it lead to, for these examples: a dataset often is links to a shared disk."""
    paths = dict.fromkeys(inside(example.path) for example in examples)
    linked = {str(Path(os.path.realpath(root / path)).parent) for path in paths if path}
    return sorted({str(root), os.path.realpath(root), *linked})


# ------------------------------------------------------------------------------------------- in the child


def _answer(decoder: ExampleDecoder, question: bytes, read: Callable[[], None]) -> Frame:
    try:
        task, example, epoch, seed_key, given = pickle.loads(question)
        arrays = decoder.arrays(task, example, epoch, seed_key, read=read, **given)
    except BadMedia as error:
        return {"error": error.reason, "kind": "media"}, b""
    except MemoryError:
        return {"error": TOO_MUCH_MEMORY, "kind": "died"}, b""
    except Exception:
        return {"bug": traceback.format_exc()}, b""
    return {"views": len(next(iter(arrays.values())))}, to_bytes(arrays)


def serve(descriptor: int) -> None:
    """Answer frames until the parent hangs up."""
    die_with_parent()
    with socket.socket(fileno=descriptor) as connection:
        hello, payload = receive(connection)
        decoder: ExampleDecoder = pickle.loads(payload)
        import_uninterrupted(hello["codec"])
        reading_done: dict[str, Any] = {"reading": "done"}
        send(connection, {"ready": True, "confined": confine(MEMORY)})
        while True:
            _, question = receive(connection)
            send(connection, *_answer(decoder, question, lambda: send(connection, reading_done)))


if __name__ == "__main__":
    run_child(serve)
