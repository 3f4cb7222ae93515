"""A decoder to which some files are fatal: by their content, they crash or hang the process that decodes them.

The damage is real: native code that reads address 0, and native code that sleeps with the interpreter's lock held.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np

from polyvit.data.index.io import Example
from polyvit.data.loading.minibatch import Decoder
from polyvit.errors import BadMedia

CRASH, HANG, GREED, BUG = b"CRASH", b"HANG", b"GREED", b"BUG"


class FragileDecoder(Decoder):
    """A `Decoder` whose native code has bugs."""

    def arrays(
        self,
        task_name: str,
        example: Example,
        epoch: int | None,
        seed_key: str,
        seconds: float | None = None,
        read: Callable[[], None] | None = None,
    ) -> np.ndarray:
        try:
            return super().arrays(task_name, example, epoch, seed_key, seconds, read)
        except BadMedia:
            from polyvit.data.isolation.limits import TimeLimit

            content = (Path(self.roots[task_name]) / example.path).read_bytes()
            with TimeLimit(seconds):
                if content == CRASH:
                    ctypes.string_at(0)
                if content == HANG:
                    ctypes.PyDLL(None).sleep(1000)
                if content == GREED:
                    np.ones(1 << 60, np.uint8)
                if content == BUG:
                    raise KeyError("a bug") from None
            raise
