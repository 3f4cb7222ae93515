"""What happens to a run when its processes are killed, or it is told to stop: real processes, real signals."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import soak
from mlflow_kit import write_tables

from polyvit.checkpoint.locate import find_checkpoint
from polyvit.checkpoint.metrics_log import read_metrics_log
from polyvit.checkpoint.state import read_document

pytestmark = [pytest.mark.ray, pytest.mark.faults]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def config(folder: Path) -> Path:
    """160 steps, a checkpoint every 20, two workers."""
    write_tables(folder / "runs")
    return soak.write_config(folder, 160)


def test_a_run_whose_processes_are_killed_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    """A train worker and the driver; `tests/soak.py` kills more. A decoding process: `test_feed`, a node:
    `test_nodes`. The run's schedule is adaptive, and takes the same decisions."""
    options = ["--runs", "1", "--kills", "2", "--steps", "240", "--targets", "worker", "driver"]
    command = [sys.executable, "tests/soak.py", str(tmp_path / "soak"), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, env=_plain_env())
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "soak" / "soak.json").read_text())
    (run,) = report["runs"]
    assert run["differences"] == []
    undisturbed = tmp_path / "soak" / "runs" / "reference"
    decisions = read_document(find_checkpoint(undisturbed))["decisions"]
    assert [decision["step"] for decision in decisions] == [60, 120, 180]
    assert len({tuple(decision["shares"].values()) for decision in decisions}) > 1  # it reacted
    points = read_metrics_log(undisturbed / "history")
    assert {step for step, values in points if "interference/cifar10/pets/cosine" in values} == {120, 240}
    assert {kill["target"] for kill in run["kills"]} == {"worker", "driver"}


def _plain_env() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


class Driver:
    """`polyvit cotrain` with a local Ray of its own, in a session and on a terminal of its own."""

    def __init__(self, folder: Path, config: Path, name: str) -> None:
        self.run, self.log = folder / "runs" / name, folder / f"{name}.log"
        self.leader, self.follower = pty.openpty()
        command = [
            sys.executable, "-m", "pipelines.cotrain", str(config), "--name", name, f"storage={folder / 'runs'}",
            "--only", "cifar10", "schedule.steps=2000",
        ]  # fmt: skip
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdin=self.follower, stdout=log, stderr=log, start_new_session=True, cwd=ROOT,
                env={**_plain_env(), "PYTHONUNBUFFERED": "1", "POLYVIT_LOG_EVERY_S": "0.5"},
            )  # fmt: skip

    def wait_for(self, words: str, patience_s: float = 600) -> None:
        until = time.monotonic() + patience_s
        while words not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.2)

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def close(self) -> None:
        for process in self.family() if self.process.poll() is None else []:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
                process.kill()
        self.process.kill()  # no more than a no-op where it has ended
        os.close(self.leader)
        os.close(self.follower)


@pytest.fixture
def driver(folder: Path, config: Path, request: pytest.FixtureRequest) -> Iterator[Driver]:
    driver = Driver(folder, config, request.node.name.split("[")[0][-24:] + str(time.time_ns() % 1000))
    yield driver
    driver.close()


def gone(processes: list[psutil.Process], patience_s: float = 300) -> None:
    """All of them end. Patience is for Ray's agents where the machine is too busy for Ray to end them in order."""
    _, left = psutil.wait_procs(processes, timeout=patience_s)
    assert not left, [shown(process) for process in left]


def shown(process: psutil.Process) -> list[str]:
    """Its command line, empty where it has ended meanwhile."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def is_agent(process: psutil.Process) -> bool:
    """One of Ray's two agents of a node, which have other titles before they have imported all that they need."""
    scripts, titles = ("/dashboard/agent.py", "/agent/main.py"), ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
    return any(word.endswith(scripts) or word.startswith(titles) for word in shown(process))


def test_ctrl_c_and_then_nothing_is_left_but_a_checkpoint(driver: Driver) -> None:
    """Ctrl-C reaches the whole foreground process group, as a terminal sends it."""
    driver.wait_for("/2000")
    family = driver.family()
    os.killpg(driver.process.pid, signal.SIGINT)
    assert driver.process.wait(timeout=300) == 128 + signal.SIGINT
    text = driver.log.read_text()
    assert "stopping at the next step, with a checkpoint" in text
    stopped = text.partition("stopped by SIGINT after step ")[2]
    step = int(stopped.split(",")[0])
    assert (driver.run / f"step_{step:08d}" / "manifest.json").is_file()
    assert "--resume" in stopped
    assert "Traceback" not in text
    gone(family)


def test_a_killed_driver_leaves_no_process(driver: Driver) -> None:
    driver.wait_for("/2000")
    family = driver.family()
    assert len(family) > 5
    # Ray's two agents of a node look for their raylet now and then: they end within about two minutes.
    agents = [p for p in family if is_agent(p)]
    assert len(agents) == 2
    driver.process.kill()
    driver.process.wait()
    gone([p for p in family if p not in agents])
    left: list[Any] = list(driver.run.glob(".writing-*"))
    assert len(left) <= 1  # a checkpoint that was being written; the next start sweeps it
