"""A process that answers questions about files of unknown origin, and may crash, hang or swell on one.

In: a module to run as a program with a socket's descriptor, and what it is told at its start. What it may do is in
`confinement.py`. It is started ahead of its
first question and again after a death. It speaks frames of JSON and raw bytes over a socket; its answers are never
pickles, so that a decoder taken over by its input cannot reach past it.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyvit.data.isolation.confinement import NAMES, confine, environment, places_of_code
from polyvit.errors import BadMedia

logger = logging.getLogger(__name__)

START_SECONDS = 120.0
"""Time for a child to import its decoders; seconds on a quiet machine."""
ENDING_SECONDS = 10.0
"""Time for a child that has closed its connection to end by itself, so that its exit status tells why."""
_FRAME = struct.Struct("<IQ")  # bytes of JSON, bytes of payload
_START = "from polyvit.data.isolation.confinement import main; main()"
Frame = tuple[dict[str, Any], bytes]


_DIED = "the decoder died on it"
_TOO_LONG = "decoding took longer than"
TOO_MUCH_MEMORY = "decoding needs too much memory"


class DecoderDied(BadMedia):
    """A file on which the decoding process crashed, or ran out of time or memory."""


def is_fatal(reason: str) -> bool:
    """Whether the reason is one of a `DecoderDied`."""
    return reason.startswith((_DIED, _TOO_LONG, TOO_MUCH_MEMORY))


class Child:
    """One such process, for one question at a time; not to be shared by threads.

    module, hello, payload: what it is and is told. environment: variables that it gets besides `KEPT`.
    readable: folders that it reads besides Python's own. confined: what of `NAMES` holds for it, once it is ready.
    """

    def __init__(
        self,
        module: str,
        hello: dict[str, Any],
        payload: bytes = b"",
        environment: Mapping[str, str] | None = None,
        readable: Sequence[str] = (),
    ) -> None:
        self.deaths, self._module, self._hello, self._payload = 0, module, hello, payload
        self._environment = dict(environment or {})
        self._readable: list[str] = [*readable, *places_of_code()]
        self.confined: dict[str, bool] = {}
        self._start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        # It finds the modules that this process finds, in a Ray worker those of its driver too.
        path = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, sys.path)])
        readable = json.dumps(self._readable)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, self._module, str(theirs.fileno()), readable],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment(PYTHONPATH=path, CUDA_VISIBLE_DEVICES="", **self._environment),
            )
        self._socket, self._ready = ours, False
        with contextlib.suppress(OSError):  # a child that died at once is noticed when it is asked
            send(ours, self._hello, self._payload)

    def wait_ready(self) -> None:
        """Until the child can answer. Raises RuntimeError where it did not start; another is started."""
        if self._ready:
            return
        try:
            ready, _ = receive(self._socket, time.monotonic() + START_SECONDS)
        except OSError as error:
            status = self._end(0 if isinstance(error, TimeoutError) else ENDING_SECONDS)
            if status > 0 and self._readable:
                # An exception before any file was seen: perhaps part of this Python lies where it may not read.
                readable, self._readable = self._readable, []
                self._start()
                try:
                    self.wait_ready()
                except RuntimeError:
                    self._readable = readable  # it was something else
                    raise
                logger.warning("decoding processes may read every file: they do not start where they may not")
                return
            self.deaths += 1
            self._start()
            raise RuntimeError(f"the decoding process did not start: {error!r}, {status}") from None
        self._ready, self.confined = True, ready.get("confined", {})

    def ask(self, header: dict[str, Any], payload: bytes, seconds: float | None, reads: bool = False) -> Frame:
        """The answer to one question, within `seconds`; after a death the next call finds a new process.

        reads: the child first sends a frame to say that it has read what it needs; only from there time counts,
        so that a slow disk is not the file's fault. Raises DecoderDied.
        """
        self.wait_ready()
        try:
            if reads:
                self._socket.settimeout(None)
                send(self._socket, header, payload)
                first = receive(self._socket)
                if "reading" not in first[0]:
                    return first
                return receive(self._socket, seconds and time.monotonic() + seconds)
            deadline = seconds and time.monotonic() + seconds
            self._socket.settimeout(seconds)
            send(self._socket, header, payload)
            return receive(self._socket, deadline)
        except TimeoutError:
            self._restart(0)
            raise DecoderDied(f"{_TOO_LONG} {seconds:g} s") from None
        except OSError:
            status = self._restart(ENDING_SECONDS)
            name = signal.Signals(-status).name if status < 0 else f"status {status}"
            raise DecoderDied(f"{_DIED} ({name})") from None

    def _restart(self, patience_s: float) -> int:
        """End the child, start another; returns the exit status (negative: the signal)."""
        status = self._end(patience_s)
        self.deaths += 1
        self._start()
        return status

    def _end(self, patience_s: float) -> int:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=patience_s)
        self.close()
        return self._process.returncode

    def close(self) -> None:
        """End the child."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


def send(connection: socket.socket, header: dict[str, Any], payload: bytes = b"") -> None:
    """One frame."""
    text = json.dumps(header).encode()
    connection.sendall(_FRAME.pack(len(text), len(payload)) + text)
    connection.sendall(payload)


def receive(connection: socket.socket, deadline: float | None = None) -> Frame:
    """One frame. Raises TimeoutError, or OSError where the other side is gone."""
    head, body = _FRAME.unpack(_read(connection, _FRAME.size, deadline))
    return json.loads(_read(connection, head, deadline)), _read(connection, body, deadline)


def _read(connection: socket.socket, size: int, deadline: float | None) -> bytes:
    received = bytearray(size)
    view, done = memoryview(received), 0
    while done < size:
        if deadline is not None:
            connection.settimeout(max(1e-3, deadline - time.monotonic()))
        count = connection.recv_into(view[done:])
        if not count:
            raise ConnectionResetError("the other side is gone")
        done += count
    return bytes(received)


# ------------------------------------------------------------------------------------------- in the child


def run_child(serve: Callable[[int], None]) -> None:
    """What a child's module does as a program: `serve` the descriptor given to it, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    with contextlib.suppress(ConnectionError):
        serve(int(sys.argv[1]))


def isolation_report() -> str:
    """What holds for decoding processes on this machine, and what it does not have, in one line."""
    child = Child("polyvit.data.isolation.worker", {})
    try:
        child.wait_ready()
        have = [words for name, words in NAMES.items() if child.confined.get(name)]
        lack = [words for name, words in NAMES.items() if not child.confined.get(name)]
    except RuntimeError as error:
        return str(error)
    finally:
        child.close()
    missing = f"; not possible here: {', '.join(lack)}" if lack else ""
    return f"decoding processes have their own environment, limits, {', '.join(have)}{missing}"


def _serve_nothing(descriptor: int) -> None:
    with socket.socket(fileno=descriptor) as connection:
        receive(connection)
        send(connection, {"ready": True, "confined": confine(None)})
        receive(connection)


if __name__ == "__main__":
    run_child(_serve_nothing)
