"""Decoders whose processes die, or that are broken; in a module that Ray's workers can import."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from pipelines.feed.worker_feed import RayFeed
from polyvit.data.loading.minibatch import Decoder, Minibatch, Request


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


@dataclass(frozen=True)
class Noted(Decoder):
    """A decoder that takes its time, and leaves a file for each request that it began, and as it ended."""

    folder: Path = Path()

    def decode(self, request: Request, careful: bool | None = None) -> Minibatch:
        (self.folder / f"{request.step} began").touch()
        end = "was interrupted"
        try:
            until = time.monotonic() + 1
            while time.monotonic() < until:
                time.sleep(0.01)
            end = "ended"
        finally:
            (self.folder / f"{request.step} {end}").touch()
        return super().decode(request, careful)


class Fed:
    """For an actor, which keeps its CPU while it waits, as a train worker does."""

    def steps(self, feed: RayFeed) -> list[int]:
        """Those that the feed brings, in order."""
        return [step[0].step for step in feed.train(1)]
