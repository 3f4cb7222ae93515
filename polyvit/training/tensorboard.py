"""A run's curves for TensorBoard, beside MLflow's: `tensorboard --logdir runs`.

In: points of the curves. Out: one event file in the run's folder `tensorboard`, each point once: a run that goes
on writes the points up to its checkpoint anew, from its history, and drops what lies behind.
"""

import logging
import time
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from polyvit.training.callbacks import Callback, RunInfo

logger = logging.getLogger(__name__)
FOLDER = "tensorboard"
FLUSH_S = 10.0
"""Seconds after which points are flushed to the storage; a page that is open shows them then."""


class TensorBoard(Callback):
    """Writes event files. Storage that is full or away costs a warning, and the next point tries again."""

    def __init__(self) -> None:
        self.folder = Path()
        self.points: list[tuple[int, dict[str, float]]] = []
        self.file: RecordWriter | None = None
        self.warned, self.flushed_at = False, 0.0

    def on_start(self, run: RunInfo) -> None:
        """Begin anew with the points that the run keeps."""
        self.folder, self.points = run.folder / FOLDER, list(run.past)
        self._write_anew()

    def on_log(self, step: int, values: dict[str, float]) -> None:
        """Add a point."""
        self.points.append((step, values))
        if self.file is None:  # the file may end within a record
            self._write_anew()
            return
        try:
            self._add(self.file, step, values)
            if time.monotonic() - self.flushed_at > FLUSH_S:
                self.file.flush()
                self.flushed_at = time.monotonic()
        except OSError as error:
            self._lost(error)

    def on_end(self) -> None:
        """Close the file."""
        if self.file:
            try:
                self.file.close()
            except OSError as error:
                self._lost(error)

    def _write_anew(self) -> None:
        """All points into a new file, whose name sorts behind those of the old ones, which are deleted."""
        try:
            self.folder.mkdir(exist_ok=True)
            for old in self.folder.glob("events.out.tfevents.*"):
                old.unlink()
            file = RecordWriter(str(self.folder / f"events.out.tfevents.{time.time_ns():020d}.polyvit"))
            file.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
            # A page that is open forgets what it read from a deleted file.
            start = SessionLog(status=SessionLog.START)
            file.write(Event(wall_time=time.time(), step=0, session_log=start).SerializeToString())
            for step, values in self.points:
                self._add(file, step, values)
            file.flush()
        except OSError as error:
            self._lost(error)
        else:
            self.file, self.warned = file, False

    def _add(self, file: RecordWriter, step: int, values: dict[str, float]) -> None:
        entries = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=entries))
        file.write(event.SerializeToString())

    def _lost(self, error: OSError) -> None:
        self.file = None
        if not self.warned:
            logger.warning(
                "TensorBoard's curves cannot be written to %s (%s); the next point tries again", self.folder, error
            )
        self.warned = True
