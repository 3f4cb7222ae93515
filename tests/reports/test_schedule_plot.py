"""Schedule pictures of every kind."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from small import small_config, small_plan

from polyvit.reports.schedule_plot import draw_schedule


@pytest.mark.parametrize("kind", ["weighted", "uniform", "alternating", "task_by_task", "accumulating"])
def test_the_schedule_is_drawn_in_the_modalities_colours(kind: str, tmp_path: Path) -> None:
    config = small_config(f"schedule.kind={kind}")
    draw_schedule(small_plan(config).schedule, config, tmp_path / "s.png")
    pixels = (image.imread(tmp_path / "s.png")[..., :3] * 255).round().astype(int)
    assert pixels.shape[1] > 1000
    for colour in ((0x2A, 0x78, 0xB5), (0xD1, 0x49, 0x5B), (0x3F, 0x8F, 0x5F)):
        assert (np.abs(pixels - colour).max(axis=2) <= 2).sum() > 100, colour


def test_steps_that_are_not_decided_are_grey(tmp_path: Path) -> None:
    """An adaptive schedule of 18 steps is known up to step 6: two thirds of the rows are grey."""
    config = small_config("schedule.kind=adaptive", "train.eval_every=6")
    schedule = small_plan(config).schedule
    draw_schedule(schedule, config, tmp_path / "before.png")
    for step in (6, 12):
        schedule.follow([{"step": step, "shares": dict.fromkeys(config.tasks, 0.25)}])
    draw_schedule(schedule, config, tmp_path / "after.png")
    grey = []
    for name in ("before", "after"):
        pixels = (image.imread(tmp_path / f"{name}.png")[..., :3] * 255).round().astype(int)
        grey.append((np.abs(pixels - 240).max(axis=2) <= 1).mean())
    assert grey[0] > 0.4
    assert grey[1] < 0.01


def test_a_long_schedule_is_drawn_from_a_sample(tmp_path: Path) -> None:
    config = small_config("schedule.steps=50000")
    draw_schedule(small_plan(config).schedule, config, tmp_path / "s.png")
    assert 10_000 < (tmp_path / "s.png").stat().st_size < 1_000_000
