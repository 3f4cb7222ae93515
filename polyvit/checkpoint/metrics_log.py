"""A run's curves on disk, each point once: one JSON line a point, in segments that end where checkpoints are.

In: points (step, values). Out: files, and the points read back.

`history/00000501-00001000.jsonl` holds {"step": n, "values": {"train/pets/loss": ...}}. A run that goes on from
step s drops what lies after s and writes it again, so that no step is lost or doubled. `pace/...` values are
timings; all others are the same on every repetition of a run.
"""

import json
import threading
from pathlib import Path

Point = tuple[int, dict[str, float]]


class MetricsLog:
    """The curves of one run. Points stay in memory until a segment is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written_to = 0
        self.waiting: list[Point] = []
        self._lock = threading.Lock()

    def restart(self, step: int) -> list[Point]:
        """Keep the points up to `step`, delete the others; returns those that are kept."""
        kept: list[Point] = []
        for path, first, last in _segments(self.folder):
            if first > step:
                path.unlink()
                continue
            points = [point for point in _read(path) if point[0] <= step]
            if last > step:
                path.unlink()
                self._write(first, step, points)
            kept += points
        self.written_to, self.waiting = step, []
        return kept

    def add(self, step: int, values: dict[str, float]) -> None:
        """Add one point."""
        with self._lock:
            self.waiting.append((step, values))

    def write(self, step: int) -> None:
        """Write the points up to `step` as one segment. Raises OSError; then they stay in memory."""
        with self._lock:
            ready = [point for point in self.waiting if point[0] <= step]
            if step > self.written_to:
                self._write(self.written_to + 1, step, ready)
            self.written_to = step
            self.waiting = [point for point in self.waiting if point[0] > step]

    def _write(self, first: int, last: int, points: list[Point]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{first:08d}-{last:08d}.jsonl"
        lines = [json.dumps({"step": step, "values": values}) + "\n" for step, values in points]
        beside = path.with_suffix(".writing")
        beside.write_text("".join(lines))
        beside.rename(path)


def read_metrics_log(folder: Path) -> list[Point]:
    """All points of a run's `history` folder, by step; empty where there is none."""
    return [point for path, _, _ in _segments(folder) for point in _read(path)]


def _segments(folder: Path) -> list[tuple[Path, int, int]]:
    segments = []
    for path in sorted(folder.glob("*-*.jsonl")):
        first, _, last = path.stem.partition("-")
        segments.append((path, int(first), int(last)))
    return segments


def _read(path: Path) -> list[Point]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["step"], line["values"]) for line in lines]
