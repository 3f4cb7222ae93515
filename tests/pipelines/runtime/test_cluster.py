"""Starting Ray on this machine, and how long Ray Train waits for its workers; no Ray is started."""

import os
import subprocess
from typing import Any

import psutil
import pytest
from small import small_config

from pipelines.runtime import placement
from pipelines.runtime.placement import scaling
from pipelines.runtime.ray_cluster import STARTS, start_node
from polyvit.errors import UserError

SLOW = "The current node timed out during startup. This could happen because ..."


class Start:
    """Fails so often, each time with a process left behind."""

    def __init__(self, failures: int, message: str = SLOW) -> None:
        self.failures, self.message, self.left = failures, message, list[subprocess.Popen]()

    def __call__(self) -> str:
        if len(self.left) == self.failures:
            return "address"
        self.left.append(subprocess.Popen(["sleep", "600"]))
        raise Exception(self.message)


def test_a_start_that_took_too_long_is_tried_again_and_leaves_nothing() -> None:
    other = subprocess.Popen(["sleep", "600"])
    try:
        start = Start(STARTS - 1)
        assert start_node(start) == "address"
        assert [process.wait(timeout=60) for process in start.left] == [-9] * (STARTS - 1)
        assert psutil.Process(other.pid).is_running()
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_machine_that_is_too_busy_is_said() -> None:
    start = Start(STARTS)
    with pytest.raises(UserError, match=rf"did not start within 30 s, {STARTS} times: this machine is too busy"):
        start_node(start)
    assert [process.wait(timeout=60) for process in start.left] == [-9] * STARTS


def test_any_other_failure_comes_at_once() -> None:
    start = Start(1, "no such address")
    with pytest.raises(Exception, match="no such address"):
        start_node(start)
    (process,) = start.left
    process.kill()
    process.wait()


def test_the_patience_of_one_run_is_not_the_next_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def patience(**keys: Any) -> str:
        config = small_config()
        scaling(config.model_copy(update={"train": config.train.model_copy(update=keys)}), gpu=False)
        return os.environ[placement._START_TIMEOUT]

    monkeypatch.setenv(placement._START_TIMEOUT, "")
    assert [patience(workers=2, min_workers=1), patience(workers=2)] == ["25", "300"]
    monkeypatch.setattr(placement, "_GIVEN_START_TIMEOUT", "77")
    assert patience(workers=2) == "77"
