"""Progress from the train workers to the terminal: a small actor that they post to, and one live line.

In: snapshots of a run, from one process of it. Out: a line that a terminal redraws in place, and that a log file
gets every few seconds.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions
from rich.live import Live
from rich.text import Text

from pipelines.runtime.command_line import console

POST_EVERY_S = 0.25
LOG_EVERY_S = float(os.environ.get("POLYVIT_LOG_EVERY_S", "5"))
"""Seconds between lines of progress where the output is not a terminal."""


@ray.remote(num_cpus=0, max_restarts=-1)
class ProgressActor:
    """Holds the newest snapshot of a run, the notices to its user, and whether it was told to stop."""

    def __init__(self) -> None:
        self.snapshot: dict[str, Any] = {}
        self.notices: list[str] = []
        self.stopping = False

    def post(self, snapshot: dict[str, Any]) -> bool:
        """Replace the snapshot; returns whether the run was told to stop."""
        self.snapshot = snapshot
        return self.stopping

    def stop(self) -> None:
        """Tell the run to stop at its next step."""
        self.stopping = True

    def notice(self, line: str) -> None:
        """Add a line that the user should see once."""
        self.notices.append(line)

    def take_notices(self) -> list[str]:
        """The lines since the last call."""
        notices, self.notices = self.notices, []
        return notices

    def read(self) -> dict[str, Any]:
        """The newest snapshot; empty before the first."""
        return self.snapshot


class ProgressReporter:
    """Posts snapshots to the actor from rank 0, at most every POST_EVERY_S seconds, and never waits for it.

    stop_requested: whether the run was told to stop, as the actor answered to the last post that came back.
    """

    def __init__(self, actor: Any, rank: int) -> None:
        self.actor, self.rank, self.last = actor, rank, 0.0
        self.stop_requested = False
        self._answer: Any = None

    def __call__(self, snapshot: dict[str, Any], urgent: bool = False) -> None:
        """Post a snapshot, unless one was posted just now and this one is not urgent."""
        now = time.monotonic()
        if self.rank == 0 and (urgent or now - self.last >= POST_EVERY_S):
            self.last = now
            self._listen()
            self._answer = self.actor.post.remote(snapshot)

    def _listen(self) -> None:
        if self._answer is None or not ray.wait([self._answer], timeout=0)[0]:
            return
        # Where the actor died with its node, no stop is known of, and the run goes on.
        with contextlib.suppress(ray.exceptions.RayError):
            self.stop_requested = self.stop_requested or ray.get(self._answer)


class NoticeHandler(logging.Handler):
    """Sends the warnings of a train worker to the user's terminal, by way of the actor."""

    def __init__(self, actor: Any) -> None:
        super().__init__(logging.WARNING)
        self.actor = actor

    def emit(self, record: logging.LogRecord) -> None:
        """Send one line for each warning; a line that is lost must not end the run."""
        with contextlib.suppress(Exception):
            self.actor.notice.remote(record.getMessage())


def render(snapshot: dict[str, Any]) -> str:
    """The live line of a snapshot."""
    if not snapshot:
        return "starting workers ..."
    if "phase" in snapshot:
        return str(snapshot["phase"])
    step, total = snapshot["step"], snapshot["total"]
    filled = int(20 * step / total)
    return (
        f"{'━' * filled}{'╌' * (20 - filled)} step {step}/{total}  {snapshot['task']:<15} "
        f"loss {snapshot['loss']:<8.4f} {snapshot['examples_per_s']:>6.0f} examples/s  "
        f"data wait {snapshot['data_wait']:>4.0%}  ETA {_clock(snapshot['eta_s'])}"
    )


def _clock(seconds: float) -> str:
    whole = int(seconds + 0.5)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


@contextmanager
def live_line(actor: Any) -> Iterator[threading.Event]:
    """Show the actor's newest snapshot for as long as the block lasts; yields what is set at the first step."""
    stop, stepping = threading.Event(), threading.Event()
    show = _redraw if console.is_terminal else _print_lines
    thread = threading.Thread(target=show, args=(actor, stop, stepping), name="polyvit-progress", daemon=True)
    thread.start()
    try:
        yield stepping
    finally:
        stop.set()
        thread.join(timeout=5)


def _read(actor: Any, stepping: threading.Event) -> dict[str, Any] | None:
    try:
        for line in ray.get(actor.take_notices.remote(), timeout=5):
            console.print(line, style="yellow")
        snapshot: dict[str, Any] = ray.get(actor.read.remote(), timeout=5)
    except Exception:  # display only: the cluster may be on its way out
        return None
    if "step" in snapshot:
        stepping.set()
    return snapshot


def _redraw(actor: Any, stop: threading.Event, stepping: threading.Event) -> None:
    with Live(console=console, refresh_per_second=4) as live:
        while not stop.wait(0.3):
            if (snapshot := _read(actor, stepping)) is not None:
                live.update(Text(render(snapshot), no_wrap=True, overflow="ellipsis"))
        _read(actor, stepping)


def _print_lines(actor: Any, stop: threading.Event, stepping: threading.Event) -> None:
    shown, due = "", 0.0
    while not stop.wait(0.3):
        snapshot = _read(actor, stepping)
        if snapshot is None or time.monotonic() < due:
            continue
        line = render(snapshot)
        if line != shown:
            console.print(line)
            shown, due = line, time.monotonic() + LOG_EVERY_S
    _read(actor, stepping)
