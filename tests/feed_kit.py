"""Decoders whose processes die, or that are broken; in a module that Ray's workers can import."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from polyvit.data.minibatch import Decoder, Minibatch, Request


@dataclass(frozen=True)
class KilledOnce(Decoder):
    """A decoder whose process is killed at the first try of step 5."""

    marker: Path = Path()

    def decode(self, request: Request, careful: bool | None = None) -> Minibatch:
        if request.step == 5 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        assert bool(careful) <= self.marker.exists()
        return super().decode(request, careful)


class Broken(Decoder):
    """A decoder with a bug."""

    def decode(self, request: Request, careful: bool | None = None) -> Minibatch:
        raise KeyError("no such thing")
