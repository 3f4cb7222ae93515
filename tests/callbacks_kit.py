"""A callback that Ray's train workers can import, and TensorBoard's files read without TensorBoard."""

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event

from polyvit import Callback, RunInfo, StepReport


class StepDiary(Callback):
    """Writes what it hears into `heard.txt` in the run's folder, a line each."""

    def on_start(self, run: RunInfo) -> None:
        self.file = (Path(run.folder) / "heard.txt").open("a")

    def on_step(self, report: StepReport) -> None:
        print("step", report.step, file=self.file)

    def on_checkpoint(self, step: int, address: str) -> None:
        print("checkpoint", step, file=self.file)

    def on_end(self) -> None:
        self.file.close()


def events(folder: Path) -> list[Event]:
    """The records of the one event file (TFRecord: length, its checksum, bytes, their checksum)."""
    (path,) = folder.glob("events.out.tfevents.*")
    content, at, read = path.read_bytes(), 0, []
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = Event()
        event.ParseFromString(content[at + 12 : at + 12 + length])
        read.append(event)
        at += 16 + length
    return read


def scalars(folder: Path) -> list[tuple[int, dict[str, float]]]:
    return [(e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in events(folder) if e.summary.value]
