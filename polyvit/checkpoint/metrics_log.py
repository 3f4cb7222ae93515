"""A run's curves on disk, each point once: one JSON line a point, in segments that end where checkpoints are.

In: points (step, values). Out: files, and the points read back.

`history/00000501-00001000.jsonl` holds {"step": n, "values": {"train/pets/loss": ...}}. A run that goes on from
step s drops what lies after s and writes it again, so that no step is lost or doubled. A segment's first line says
how many points it has; one without points is an empty line: a file cut short is never taken for a whole one.
`pace/...` values are timings; all others are the same on every repetition of a run.
"""

import json
import re
import threading
from pathlib import Path
from typing import Any

from polyvit.errors import UserError
from polyvit.storage import write_whole

Point = tuple[int, dict[str, float]]
_SEGMENT = re.compile(r"(\d{8,})-(\d{8,})\.jsonl")


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
        rows: list[dict[str, Any]] = [{"step": step, "values": values} for step, values in points]
        if rows:
            rows[0]["points"] = len(rows)
        write_whole(path, "".join(json.dumps(row) + "\n" for row in rows) or "\n")


def read_metrics_log(folder: Path) -> list[Point]:
    """All points of a run's `history` folder, by step; empty where there is none."""
    return [point for path, _, _ in _segments(folder) for point in _read(path)]


def _segments(folder: Path) -> list[tuple[Path, int, int]]:
    names = ((path, _SEGMENT.fullmatch(path.name)) for path in sorted(folder.glob("*-*.jsonl")))
    return [(path, int(name[1]), int(name[2])) for path, name in names if name]  # a copy by hand is none


def _read(path: Path) -> list[Point]:
    """The points of a segment. Raises UserError where some of it is missing."""
    try:
        text = path.read_text()
        rows = [json.loads(line) for line in text.splitlines() if line]
        if not text.endswith("\n") or (rows and rows[0].get("points", len(rows)) != len(rows)):
            raise ValueError("it is cut short" if text else "it is empty")
        return [(int(row["step"]), dict(row["values"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}); put back a copy of it, or delete it "
            "and lose these points of the curves (MLflow may hold them)"
        ) from None
