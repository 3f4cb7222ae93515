"""What every decoder shares: foreign exceptions become `BadMedia`."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from polyvit.errors import BadMedia

REASON_LENGTH = 160


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
