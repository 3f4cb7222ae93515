"""Decode files of unknown origin in a child process, which may crash, hang or fill its memory without harm here.

In: a file's bytes and the tasks to answer. Out: `Prepared` tokens, or BadMedia with the reason: what the decoder
says, a limit that the file exceeds, a decoder that died, took too long or wanted too much memory. The child is
`python -m polyvit.deploy.isolated_predict` (`data/isolation/worker.py`).
"""

import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from polyvit.config import Modality, RunConfig
from polyvit.data.decode import container_size, detect_modality, picture_size
from polyvit.data.isolation import (
    TOO_MUCH_MEMORY,
    Child,
    DecoderDied,
    confine,
    import_uninterrupted,
    receive,
    run_child,
    send,
)
from polyvit.data.loading import from_bytes, to_bytes
from polyvit.deploy.predict import Group, Prepared, prepare
from polyvit.errors import BadMedia


@dataclass(frozen=True)
class Limits:
    """What one file may need.

    pixels: of a picture or of a video's frame. seconds: length of a video or recording, as its header says.
    decode_seconds: time that decoding may take. memory: bytes that decoding may take. None: only the decoders' own
    limits (67 million pixels, an hour).
    """

    pixels: int | None = None
    seconds: float | None = None
    decode_seconds: float = 60.0
    memory: int | None = 4 * 2**30


class OverLimit(BadMedia):
    """A file that asks for more than its `Limits` allow."""


_KINDS: dict[str, type[BadMedia]] = {"media": BadMedia, "limit": OverLimit, "died": DecoderDied}


class IsolatedDecoder:
    """A child process that decodes one file at a time. Threads must not share it."""

    def __init__(self, config: RunConfig, limits: Limits | None = None) -> None:
        self.config, self.limits = config, limits or Limits()
        hello = {"config": config.model_dump(mode="json"), "limits": asdict(self.limits)}
        self._child = Child("polyvit.deploy.isolated_predict", hello, environment={"OMP_NUM_THREADS": "1"})

    @property
    def pid(self) -> int:
        """The process id of the child."""
        return self._child.pid

    @property
    def deaths(self) -> int:
        """How often the child died so far, on a file or while it started."""
        return self._child.deaths

    def wait_ready(self) -> None:
        """Until the child can decode. Raises RuntimeError where it did not start; another is started."""
        self._child.wait_ready()

    def prepare(self, data: bytes, tasks: Sequence[str] = (), modality: Modality | None = None) -> Prepared:
        """As `predict.prepare`. Raises BadMedia; after a death the next call finds a new process."""
        asked = {"tasks": list(tasks), "modality": modality}
        header, payload = self._child.ask(asked, data, self.limits.decode_seconds)
        if "error" in header:
            raise _KINDS.get(header["kind"], BadMedia)(str(header["error"]))
        return _prepared(header, payload, self.config)

    def close(self) -> None:
        """End the child."""
        self._child.close()


def _prepared(header: dict[str, Any], payload: bytes, config: RunConfig) -> Prepared:
    """Tokens from a frame; what does not fit the config is refused."""
    modality, groups, start = header["modality"], [], 0
    spec = config.model.input(modality)
    for group in header["groups"]:
        arrays = {name: a.copy() for name, a in from_bytes(spec, group["views"], payload, start).items()}
        groups.append(Group(tuple(group["tasks"]), arrays))
        start += sum(array.nbytes for array in arrays.values())
    return Prepared(modality, tuple(groups))


# ------------------------------------------------------------------------------------------- in the child


def check_limits(data: bytes, modality: Modality, limits: Limits) -> None:
    """Raises OverLimit by what the header says; what it does not say, time and memory limit."""
    if modality == "image":
        try:
            width, height = picture_size(data)
        except BadMedia as error:  # above Pillow's own limit
            raise OverLimit(error.reason) from None
        _check_pixels(width, height, limits)
        return
    width, height, seconds = container_size(data)
    if modality != "audio":
        _check_pixels(width, height, limits)
    if limits.seconds is not None and seconds > limits.seconds:
        raise OverLimit(f"{modality}: {seconds:.1f} s long; at most {limits.seconds:g} s are taken")


def _check_pixels(width: int, height: int, limits: Limits) -> None:
    if limits.pixels is not None and width * height > limits.pixels:
        raise OverLimit(f"{width} x {height} pixels; at most {limits.pixels} are taken")


def _answer(data: bytes, asked: dict[str, Any], config: RunConfig, limits: Limits) -> tuple[dict[str, Any], bytes]:
    try:
        if limits.pixels is not None or limits.seconds is not None:
            # A header that cannot be read is the decoder's to name.
            detected = detect_modality(data)
            try:
                check_limits(data, asked["modality"] or detected, limits)
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
        return {"error": TOO_MUCH_MEMORY, "kind": "died"}, b""
    groups = [{"tasks": group.tasks, "views": len(next(iter(group.arrays.values())))} for group in prepared.groups]
    payload = b"".join(to_bytes(group.arrays) for group in prepared.groups)
    return {"modality": prepared.modality, "groups": groups}, payload


def serve(descriptor: int) -> None:
    """Answer frames until the parent hangs up."""
    with socket.socket(fileno=descriptor) as connection:
        first, _ = receive(connection)
        config, limits = RunConfig.model_validate(first["config"]), Limits(**first["limits"])
        for modality in config.modalities:
            import_uninterrupted(config.model.input(modality).codec)
        send(connection, {"ready": True, "confined": confine(limits.memory)})
        while True:
            asked, data = receive(connection)
            send(connection, *_answer(data, asked, config, limits))


if __name__ == "__main__":
    run_child(serve)
