"""The curves on disk: every step once, whatever is cut off and begun again."""

from pathlib import Path

import pytest

from polyvit.checkpoint.metrics_log import MetricsLog, read_metrics_log
from polyvit.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_segments_end_where_checkpoints_are(tmp_path: Path) -> None:
    history = MetricsLog(tmp_path / "history")
    assert history.restart(0) == []
    for step in (2, 4, 6):
        history.add(step, {"x": float(step)})
    history.write(5)
    history.write(9)
    assert names(tmp_path / "history") == ["00000001-00000005.jsonl", "00000006-00000009.jsonl"]
    assert read_metrics_log(tmp_path / "history") == [(2, {"x": 2.0}), (4, {"x": 4.0}), (6, {"x": 6.0})]


def test_a_restart_drops_what_lies_behind_it(tmp_path: Path) -> None:
    first = MetricsLog(tmp_path)
    for step in range(1, 10):
        first.add(step, {"x": float(step)})
        if step % 3 == 0:
            first.write(step)
    again = MetricsLog(tmp_path)
    assert again.restart(6) == [(step, {"x": float(step)}) for step in range(1, 7)]
    assert names(tmp_path) == ["00000001-00000003.jsonl", "00000004-00000006.jsonl"]
    for step in (7, 8):
        again.add(step, {"x": -1.0})
    again.write(8)
    assert [step for step, _ in read_metrics_log(tmp_path)] == list(range(1, 9))


def test_a_restart_inside_a_segment_cuts_it(tmp_path: Path) -> None:
    first = MetricsLog(tmp_path)
    for step in (1, 5, 9):
        first.add(step, {})
    first.write(9)
    assert [step for step, _ in MetricsLog(tmp_path).restart(5)] == [1, 5]
    assert names(tmp_path) == ["00000001-00000005.jsonl"]


def test_what_cannot_be_written_goes_on_waiting(tmp_path: Path) -> None:
    (tmp_path / "history").write_text("in the way")
    history = MetricsLog(tmp_path / "history")
    history.add(1, {"x": 1.0})
    with pytest.raises(OSError):
        history.write(2)
    (tmp_path / "history").unlink()
    history.add(3, {"x": 3.0})
    history.write(4)
    assert names(tmp_path / "history") == ["00000001-00000004.jsonl"]
    assert [step for step, _ in read_metrics_log(tmp_path / "history")] == [1, 3]
    history.write(4)  # again: nothing new
    assert names(tmp_path / "history") == ["00000001-00000004.jsonl"]


@pytest.mark.parametrize(
    "damage", ["", '{"step": 1, "values": {"x": 1.0}, "points": 2}\n', '{"step": 1, "val', "[]\n"]
)
def test_a_damaged_segment_is_named_and_loses_nothing_silently(tmp_path: Path, damage: str) -> None:
    history = MetricsLog(tmp_path)
    for step in (1, 2):
        history.add(step, {"x": float(step)})
    history.write(2)
    path = tmp_path / "00000001-00000002.jsonl"
    path.write_text(damage)
    for read in (lambda: read_metrics_log(tmp_path), lambda: MetricsLog(tmp_path).restart(2)):
        with pytest.raises(UserError, match=r"00000001-00000002\.jsonl is damaged .* put back a copy"):
            read()


def test_a_segment_without_points_and_foreign_names(tmp_path: Path) -> None:
    history = MetricsLog(tmp_path)
    history.write(5)
    history.add(6, {"x": 6.0})
    history.write(6)
    for name in ("00000001-00000005 (copy).jsonl", "a-b.jsonl", "00000001-00000005.jsonl.bak"):
        (tmp_path / name).write_text("foreign")
    assert MetricsLog(tmp_path).restart(6) == [(6, {"x": 6.0})]
