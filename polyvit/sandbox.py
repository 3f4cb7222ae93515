"""Decode files of unknown origin in a process of its own, which may crash, hang or swell without harm to this one.

In: a file's bytes and the tasks to answer. Out: `Prepared` tokens, or BadMedia with the reason: what the decoder
says, a limit that the file exceeds, a decoder that died, took too long or wanted too much memory. The child is
`python -m polyvit.sandbox`, started ahead of its first file and again after a death; it speaks frames of JSON
and raw bytes over a socket, never pickles, so that a decoder taken over by its input cannot reach past it.
"""

import contextlib
import io
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyvit.config import RunConfig
from polyvit.errors import BadMedia
from polyvit.inputs import Modality
from polyvit.predict import Group, Prepared, prepare

START_SECONDS = 120.0
"""Time for a child to import its decoders; seconds on a quiet machine."""
_FRAME = struct.Struct("<IQ")  # bytes of JSON, bytes of payload


@dataclass(frozen=True)
class Limits:
    """What one file may ask for. Pixels: of a picture or of a video's frame. Seconds: of a video or recording, as
    its header says. decode_seconds: on the clock. memory: bytes that decoding may take. None: only the decoders'
    own limits (67 million pixels, an hour)."""

    pixels: int | None = None
    seconds: float | None = None
    decode_seconds: float = 60.0
    memory: int | None = 4 * 2**30


class OverLimit(BadMedia):
    """A file that asks for more than its `Limits` allow."""


class DecoderDied(BadMedia):
    """A file on which the decoding process crashed, or ran out of time or memory."""


_KINDS: dict[str, type[BadMedia]] = {"media": BadMedia, "limit": OverLimit, "died": DecoderDied}


class Sandbox:
    """One decoding process, for one file at a time; not to be shared by threads."""

    def __init__(self, config: RunConfig, limits: Limits | None = None) -> None:
        self.config, self.limits, self.deaths = config, limits or Limits(), 0
        self._start()

    @property
    def pid(self) -> int:
        """The process id of the child."""
        return self._child.pid

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        package = str(Path(__file__).parents[1])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "polyvit.sandbox", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
        self._socket, self._ready = ours, False
        with contextlib.suppress(OSError):  # a child that died at once is noticed when it is asked
            _send(ours, {"config": self.config.model_dump(mode="json"), "limits": asdict(self.limits)})

    def wait_ready(self) -> None:
        """Until the child can decode. Raises RuntimeError where it cannot be started."""
        if self._ready:
            return
        try:
            _receive(self._socket, time.monotonic() + START_SECONDS)
        except OSError as error:
            self._child.kill()
            raise RuntimeError(f"the decoding process did not start: {error!r}, {self._child.wait()}") from None
        self._ready = True

    def prepare(self, data: bytes, tasks: Sequence[str] = (), modality: Modality | None = None) -> Prepared:
        """As `predict.prepare`. Raises BadMedia; after a death the next call finds a new process."""
        self.wait_ready()
        deadline = time.monotonic() + self.limits.decode_seconds
        try:
            self._socket.settimeout(self.limits.decode_seconds)
            _send(self._socket, {"tasks": list(tasks), "modality": modality}, data)
            header, payload = _receive(self._socket, deadline)
        except TimeoutError:
            self._restart()
            raise DecoderDied(f"decoding took longer than {self.limits.decode_seconds:g} s") from None
        except OSError:
            status = self._restart()
            name = signal.Signals(-status).name if status < 0 else f"status {status}"
            raise DecoderDied(f"the decoder died on it ({name})") from None
        if "error" in header:
            raise _KINDS.get(header["kind"], BadMedia)(str(header["error"]))
        return _prepared(header, payload, self.config)

    def _restart(self) -> int:
        """End the child, start another; returns the exit status (negative: the signal)."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout=0.5)
        self.close()
        self.deaths += 1
        status = self._child.returncode
        self._start()
        return status

    def close(self) -> None:
        """End the child."""
        self._socket.close()
        self._child.kill()
        self._child.wait()


def _prepared(header: dict[str, Any], payload: bytes, config: RunConfig) -> Prepared:
    """Tokens from a frame; what does not fit the config is refused."""
    from polyvit.data.example import token_dtype, token_shape

    modality, groups, start = header["modality"], [], 0
    shape, dtype = token_shape(config.model.input(modality)), token_dtype(modality)
    for group in header["groups"]:
        size = group["views"] * shape[0] * shape[1]
        tokens = np.frombuffer(payload, dtype, size, start).reshape(group["views"], *shape).copy()
        groups.append(Group(tuple(group["tasks"]), tokens))
        start += tokens.nbytes
    return Prepared(modality, tuple(groups))


def _send(connection: socket.socket, header: dict[str, Any], payload: bytes = b"") -> None:
    text = json.dumps(header).encode()
    connection.sendall(_FRAME.pack(len(text), len(payload)) + text)
    connection.sendall(payload)


def _receive(connection: socket.socket, deadline: float | None = None) -> tuple[dict[str, Any], bytes]:
    """One frame. Raises TimeoutError, or OSError where the other side is gone."""
    head, body = _FRAME.unpack(_read(connection, _FRAME.size, deadline))
    return json.loads(_read(connection, head, deadline)), _read(connection, body, deadline)


def _read(connection: socket.socket, size: int, deadline: float | None) -> bytes:
    found = bytearray(size)
    view, done = memoryview(found), 0
    while done < size:
        if deadline is not None:
            connection.settimeout(max(1e-3, deadline - time.monotonic()))
        count = connection.recv_into(view[done:])
        if not count:
            raise ConnectionResetError("the other side is gone")
        done += count
    return bytes(found)


# ------------------------------------------------------------------------------------------- in the child


def check_limits(data: bytes, modality: Modality, limits: Limits) -> None:
    """Raises OverLimit by what the header says; what it does not say, time and memory limit."""
    import av
    from PIL import Image

    if modality == "image":
        try:
            with Image.open(io.BytesIO(data)) as picture:
                _check_pixels(picture.width, picture.height, limits)
        except Image.DecompressionBombError as error:  # Pillow's own limit, 179 million
            raise OverLimit(f"image: {error}") from None
        return
    with av.open(io.BytesIO(data), "r") as container:
        if modality == "video" and container.streams.video:
            context = container.streams.video[0].codec_context
            _check_pixels(context.width, context.height, limits)
        seconds = (container.duration or 0) / av.time_base
        if limits.seconds is not None and seconds > limits.seconds:
            raise OverLimit(f"{modality}: {seconds:.1f} s long; at most {limits.seconds:g} s are taken")


def _check_pixels(width: int, height: int, limits: Limits) -> None:
    if limits.pixels is not None and width * height > limits.pixels:
        raise OverLimit(f"{width} x {height} pixels; at most {limits.pixels} are taken")


def _confine(memory: int | None) -> None:
    """No core dumps, no files, and so much memory more than now."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if memory is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _answer(data: bytes, asked: dict[str, Any], config: RunConfig, limits: Limits) -> tuple[dict[str, Any], bytes]:
    from polyvit.data.sniff import detect_modality

    try:
        if limits.pixels is not None or limits.seconds is not None:
            # A header that cannot be read is the decoder's to name.
            found = detect_modality(data)
            try:
                check_limits(data, asked["modality"] or found, limits)
            except BadMedia:
                raise
            except Exception:
                pass
        prepared = prepare(data, config, asked["tasks"], asked["modality"])
    except OverLimit as error:
        return {"error": error.reason, "kind": "limit"}, b""
    except BadMedia as error:
        return {"error": error.reason, "kind": "media"}, b""
    except MemoryError:
        return {"error": "decoding needs too much memory", "kind": "died"}, b""
    groups = [{"tasks": group.tasks, "views": len(group.tokens)} for group in prepared.groups]
    payload = b"".join(np.ascontiguousarray(group.tokens).tobytes() for group in prepared.groups)
    return {"modality": prepared.modality, "groups": groups}, payload


def serve(descriptor: int) -> None:
    """Answer frames until the parent hangs up."""
    with socket.socket(fileno=descriptor) as connection:
        first, _ = _receive(connection)
        config, limits = RunConfig.model_validate(first["config"]), Limits(**first["limits"])
        for modality in config.modalities:
            __import__(f"polyvit.data.{modality}")
        _confine(limits.memory)
        _send(connection, {"ready": True})
        while True:
            asked, data = _receive(connection)
            _send(connection, *_answer(data, asked, config, limits))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    with contextlib.suppress(ConnectionError):
        serve(int(sys.argv[1]))
