"""Starting Ray on this machine, and how long Ray Train waits for its workers; no Ray is started."""

import os
import socket
import subprocess
from typing import Any

import psutil
import pytest
import ray.exceptions
from small import small_config

from pipelines.runtime import placement
from pipelines.runtime.placement import scaling
from pipelines.runtime.ray_cluster import STARTS, cluster, start_node, unreachable
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


def test_a_cluster_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert unreachable(f"127.0.0.1:{port}", 5) == unreachable(f"ray://127.0.0.1:{port}", 5) == ""
    assert "refused" in unreachable(f"127.0.0.1:{port}", 0.1)
    assert unreachable("auto", 5) == ""
    monkeypatch.setattr("pipelines.runtime.ray_cluster.ANSWER_S", 0.1)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)  # of the cluster that other tests share
    with pytest.raises(UserError, match=rf"RAY_ADDRESS=127.0.0.1:{port}: nothing answers there .* unset it"):
        with cluster():
            pass


def test_a_cluster_that_refuses_us_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**keys: Any) -> None:
        raise ray.exceptions.AuthenticationError("Unauthorized: wrong token")

    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)  # of the cluster that other tests share
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(UserError, match=r"RAY_ADDRESS=auto: this cluster cannot be used \(Unauthorized"):
        with cluster():
            pass


@pytest.mark.parametrize(("folder", "used"), [("/tmp", None), ("/var/" + "long" * 20, "/tmp")])
def test_sockets_have_short_paths(monkeypatch: pytest.MonkeyPatch, folder: str, used: str | None) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)  # of the cluster that other tests share
    seen: list[str | None] = []
    monkeypatch.setattr("ray.init", lambda **keys: seen.append(os.environ.get("RAY_TMPDIR")))
    with cluster():
        pass
    assert seen == [used]
