"""A sweep whose driver is killed: a real process with a Ray of its own, a real signal."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soak
from mlflow_kit import write_tables
from test_sweep import check_trials

pytestmark = [pytest.mark.ray, pytest.mark.faults]
ROOT = Path(__file__).parents[2]


def test_a_sweep_whose_driver_is_killed_goes_on(tmp_path: Path) -> None:
    """SIGKILL in the second trial; then --resume: the same trials, one MLflow run each, a winner with an alias."""
    storage, config = tmp_path / "runs", soak.write_config(tmp_path, 40)
    write_tables(storage)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
    env |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "pipelines.sweep"]
    first = [
        *command, str(config), "--only", "cifar10", "--only", "pets",
        "--name", "one", f"storage={storage}", "train.workers=1", "train.eval_every=20",
        "sweep.max_concurrent=1", "--over", "schedule.kind=weighted,uniform",
    ]  # fmt: skip
    log = tmp_path / "first.log"
    with log.open("w") as out:
        driver = subprocess.Popen(first, stdout=out, stderr=out, env=env, cwd=ROOT, start_new_session=True)
    until = time.monotonic() + 600
    while "schedule.kind=uniform" not in log.read_text():
        assert driver.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.5)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    as_data = tmp_path / "out.json"
    again = [*command, "--resume", "one", f"storage={storage}", "--json", str(as_data)]
    done = subprocess.run(again, env=env, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    check_trials(json.loads(as_data.read_text()))
