"""What every decoder shares: foreign exceptions become `BadMedia`, and which formats FFmpeg may read."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from polyvit.errors import BadMedia

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

REASON_LENGTH = 160
CONTAINERS = (
    "mov", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc", "ivf", "flv", "asf",
    "dv", "gif", "ogg", "wav", "w64", "mp3", "aac", "ac3", "eac3", "flac", "aiff", "au", "caf", "amr",
)  # fmt: skip
"""FFmpeg's names of the containers that are read: files that hold their media. A playlist or a list of files, that
would have it open other files and addresses, is none of them, nor is a subtitle or a game's format."""

READABLE = {"format_whitelist": ",".join(CONTAINERS)}
"""FFmpeg's options that say so."""


def open_container(data: bytes | BinaryIO) -> "InputContainer":
    """Bytes, or a file to seek in. Raises FFmpeg's error where they are none of `CONTAINERS`."""
    import av

    return av.open(io.BytesIO(data) if isinstance(data, bytes) else data, "r", options=READABLE)


def moving_pictures(container: "InputContainer") -> "list[VideoStream]":
    """The video streams that are no cover art, in the order of the file."""
    import av

    cover = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & cover]


@contextmanager
def bad_media(what: str) -> Iterator[None]:
    """Inside the block, any exception of a decoding library is raised as `BadMedia`: `what: Class: message`.

    The message is the library's first line, cut to 160 characters in all. BadMedia itself and MemoryError
    (a fault of the machine, not of the file) pass unchanged; so does what is not an Exception, such as
    KeyboardInterrupt.
    """
    try:
        yield
    except BadMedia:
        raise
    except Exception as error:
        # FFmpeg's own "out of memory" (PyAV's MemoryError, with an errno) is an absurd size in a damaged file.
        if isinstance(error, MemoryError) and not hasattr(error, "errno"):
            raise
        message = next(iter(str(error).strip().splitlines()), "")
        # Without memory addresses the same file gives the same reason in every run.
        message = re.sub(r" at 0x[0-9a-f]+", "", message)
        raise BadMedia(f"{what}: {type(error).__name__}: {message}"[:REASON_LENGTH]) from error
