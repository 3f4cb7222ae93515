"""What the shell scripts of cluster/ do, with stand-ins for the commands that they call."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CLUSTER = Path(__file__).parents[2] / "cluster"


def _fake(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def _entrypoint(tmp_path: Path, *arguments: str) -> list[str]:
    """What start-or-resume.sh executes, by a `python` that prints its arguments."""
    _fake(tmp_path, "python", 'printf "%s\\n" "$@"')
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(CLUSTER / "start-or-resume.sh"), *arguments], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_run_is_started_once_and_then_gone_on_with(tmp_path: Path) -> None:
    given = [
        "mine",
        str(tmp_path),
        "tiny-nine",
        "optim.lr=0.5",
        "data.decode_node_labels={pool: cpu}",
        "train.workers=2",
    ]
    module, storage = ["-m", "pipelines.cotrain"], f"storage={tmp_path}"
    assert _entrypoint(tmp_path, *given) == [*module, *given[2:], storage, "--name", "mine"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")  # it failed before it had begun
    assert _entrypoint(tmp_path, *given) == [*module, *given[2:], storage, "--name", "mine"]
    (tmp_path / "mine" / "run.json").write_text("{}")
    assert _entrypoint(tmp_path, *given) == [*module, *given[4:], storage, "--resume", "mine"]
    assert _entrypoint(tmp_path, *given[:4]) == [*module, storage, "--resume", "mine"]


def test_the_keys_that_it_keeps_are_those_that_a_resumed_run_may_change() -> None:
    from pipelines.training.run_dir import RESUMABLE

    (kept,) = re.findall(r"^ +(train.+)\) kept", (CLUSTER / "start-or-resume.sh").read_text(), re.MULTILINE)
    assert {part.strip().removesuffix(".*") for part in kept.split("|")} == {*RESUMABLE} - {"storage"}


_SCONTROL = """
case $1 in
  show) printf "n1\\nn2\\nn3\\n" ;;
  requeue) echo "scontrol $*" >>"$CALLS" ;;
esac"""
_PYTHON = f"""
if [[ $1 == -c ]]; then exec {sys.executable} "$@"; fi
while (($(grep -c "^srun --" "$CALLS") < $3)); do sleep 0.02; done
echo "python $*" >>"$CALLS" """
_SRUN = """
trap 'echo "srun ended" >>"$CALLS"; exit 0' TERM
echo "srun $*" >>"$CALLS"
while sleep 0.05; do :; done"""
_RAY = """
echo "ray $2 $RAY_AUTH_MODE $(stat -c %a "$RAY_AUTH_TOKEN_PATH") $(wc -c <"$RAY_AUTH_TOKEN_PATH") $*" >>"$CALLS"
case $2 in
  submit) [[ $JOB == long ]] && while [[ ! -f $CALLS.stop ]]; do sleep 0.05; done; [[ $JOB != fails ]] ;;
  stop) touch "$CALLS.stop" ;;
esac"""


def _sbatch(tmp_path: Path, job: str) -> tuple[subprocess.Popen, Path]:
    """The script in an allocation of three nodes, with stand-ins for its commands that note their calls."""
    tools, calls = tmp_path / ".venv" / "bin", tmp_path / "calls"
    tools.mkdir(parents=True)
    for name, body in {"scontrol": _SCONTROL, "python": _PYTHON, "srun": _SRUN, "ray": _RAY}.items():
        _fake(tools, name, body)
    calls.touch()
    slurm = {
        "SLURM_SUBMIT_DIR": tmp_path, "SLURM_JOB_ID": 7, "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_CPUS_PER_TASK": 32,
    }  # fmt: skip
    # Without what an allocation that the tests themselves run in would say, and the ports of whoever runs them.
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "POLYVIT_"))}
    env = {**ours, **{k: str(v) for k, v in slurm.items()}, "CALLS": str(calls), "JOB": job}
    arguments = ["demo", f"storage={tmp_path}/runs", "train.workers=8"]
    script = subprocess.Popen(["bash", str(CLUSTER / "slurm.sbatch"), *arguments], env=env, stderr=subprocess.PIPE)
    return script, calls


def _wait_for(calls: Path, words: str) -> None:
    until = time.monotonic() + 120
    while words not in calls.read_text():
        assert time.monotonic() < until, calls.read_text()
        time.sleep(0.05)


@pytest.mark.parametrize(("job", "status"), [("ends", 0), ("fails", 1)])
def test_slurm_starts_a_head_then_the_nodes_then_the_job(tmp_path: Path, job: str, status: int) -> None:
    script, calls = _sbatch(tmp_path, job)
    assert script.wait(timeout=120) == status, script.stderr.read()
    lines = calls.read_text().splitlines()
    starts = sorted((line for line in lines if line.startswith("srun --")), key=lambda line: "--head" not in line)
    assert starts[0] == lines[0]
    nodes = [re.search(r"--nodelist=(\w+)", line).group(1) for line in starts]
    assert (nodes[0], set(nodes[1:])) == ("n1", {"n2", "n3"})
    assert all("ray start --block --num-cpus=32 --temp-dir=/tmp/ray-7" in line for line in starts)
    assert "--head --port=6379" in starts[0]
    assert all("--address=n1:6379" in line for line in starts[1:])
    assert [line for line in lines if line.startswith("python")] == [
        f"python cluster/wait_for_nodes.py http://n1:8265 {count}" for count in (1, 3)
    ]
    (submitted,) = [line for line in lines if line.startswith("ray submit")]
    assert submitted.startswith(
        "ray submit token 600 64 job submit --address http://n1:8265 --submission-id slurm-7-0"
    )
    assert submitted.endswith(f"start-or-resume.sh slurm-7 {tmp_path}/runs demo train.workers=8")
    assert lines.count("srun ended") == 3
    assert not list((tmp_path / "runs").glob(".ray-token*"))


@pytest.mark.parametrize(("name", "requeued"), [("USR1", True), ("TERM", False)])
def test_slurm_stops_the_run_with_a_checkpoint_before_its_time_is_up(
    tmp_path: Path, name: str, requeued: bool
) -> None:
    script, calls = _sbatch(tmp_path, "long")
    _wait_for(calls, "ray submit")
    script.send_signal(signal.Signals[f"SIG{name}"])
    assert script.wait(timeout=120) == 0, script.stderr.read()
    lines = calls.read_text().splitlines()
    assert any(line.endswith("job stop --address http://n1:8265 slurm-7-0") for line in lines)
    assert ("scontrol requeue 7" in lines) == requeued
    assert lines.count("srun ended") == 3
    assert not list((tmp_path / "runs").glob(".ray-token*"))
