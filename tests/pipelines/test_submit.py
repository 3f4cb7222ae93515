"""What cluster/README.md has its reader do by hand: two nodes with a token, and a job submitted to them.

The nodes are two raylets on this machine. The job is followed, stopped and gone on with.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow.tracking import MlflowClient
from mlflow_kit import write_tables
from nodes_kit import free_port

from pipelines.runtime.ray_cluster import start_node
from pipelines.tracking.runs import STEP_KEY
from polyvit.synthetic.write import write_synthetic

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
STEPS = 1_500  # more than a tiny run takes in the moment between a printed step and being held
PATIENCE_S = 900.0  # on a machine that others use; alone, the whole file takes about two minutes


class Head:
    """Two `ray start --block` on free ports, with a temporary folder and a token of their own."""

    def __init__(self) -> None:
        self.temp = Path(tempfile.mkdtemp(prefix="pv", dir="/tmp"))  # Ray's sockets need a short path
        token = self.temp / "token"
        token.write_text("a" * 64)
        token.chmod(0o600)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        self.plain = kept | {
            "PATH": f"{BIN}{os.pathsep}{kept['PATH']}", "OMP_NUM_THREADS": "1", "POLYVIT_LOG_EVERY_S": "0.5",
            "RAY_USAGE_STATS_ENABLED": "0",
        }  # fmt: skip
        self.env = self.plain | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self.gcs, self.dashboard = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self.dashboard}"
        self.nodes: list[subprocess.Popen] = []

    def start(self) -> None:
        """The head, labelled as a node that trains, then a node that decodes."""
        ports = ["--port", str(self.gcs), "--dashboard-port", str(self.dashboard)]
        self._ray_start("head", "pool=gpu", "--head", *ports)
        self._wait_for(1)
        self._ray_start("node", "pool=cpu", "--address", f"127.0.0.1:{self.gcs}")
        self._wait_for(2)

    def _ray_start(self, name: str, labels: str, *arguments: str) -> None:
        common = ["--block", "--num-cpus=1", "--labels", labels]
        # In a folder that two nodes share, one removes the job's unpacked code while the other runs it.
        folder = ["--temp-dir", str(self.temp / name)]
        sizes = ["--object-store-memory=200000000", "--dashboard-agent-listen-port", str(free_port())]
        command, log = [BIN / "ray", "start", *common, *sizes, *folder, *arguments], self.temp / f"{name}.log"

        def start() -> subprocess.Popen:
            with log.open("w") as out:
                node = subprocess.Popen(
                    command, env=self.env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
                )
            while node.poll() is None and "Ray runtime started" not in log.read_text():
                time.sleep(0.2)
            if node.poll() is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(node.pid, signal.SIGKILL)
                raise RuntimeError(log.read_text())
            return node

        self.nodes.append(start_node(start))

    def _wait_for(self, nodes: int) -> None:
        command = [sys.executable, "cluster/wait_for_nodes.py", self.address, str(nodes), "--timeout=240"]
        done = subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr + (self.temp / "head.log").read_text()

    def job(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """`ray job ...`, to its end."""
        command = [BIN / "ray", "job", arguments[0], "--address", self.address, *arguments[1:]]
        return subprocess.run(
            command, cwd=ROOT, env=env or self.env, capture_output=True, text=True, timeout=PATIENCE_S
        )

    def submit(self, name: str, *entrypoint: str) -> subprocess.Popen:
        """`ray job submit`, which prints the job's log as it comes, into the file `name`."""
        place = ["--submission-id", name, "--working-dir", ".", "--runtime-env", "cluster/job-env.yaml"]
        with (self.temp / name).open("w") as log:
            return subprocess.Popen(
                [BIN / "ray", "job", "submit", "--address", self.address, *place, "--", *entrypoint],
                cwd=ROOT, env=self.env, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The train workers stand still: `ray job stop` takes seconds to start, in which a run could end."""
        family = [p for node in self.nodes for p in psutil.Process(node.pid).children(recursive=True)]
        workers = [p for p in family if "RayTrainWorker" in _title(p)]
        assert len(workers) == 1
        for worker in workers:
            worker.suspend()
        try:
            yield
        finally:
            for worker in workers:
                worker.resume()

    def close(self) -> None:
        """All processes that these two brought forth, and no others."""
        alive = [node for node in self.nodes if node.poll() is None]
        family = [p for node in alive for p in psutil.Process(node.pid).children(recursive=True)]
        for node in reversed(alive):
            node.terminate()
        psutil.wait_procs(family, timeout=10)
        for process in [*family, *(psutil.Process(node.pid) for node in alive if node.poll() is None)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for node in self.nodes:
            node.wait(timeout=30)
        shutil.rmtree(self.temp, ignore_errors=True)


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):  # it ended meanwhile
        return " ".join(process.cmdline())
    return ""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    head = Head()
    try:
        head.start()
        yield head
    finally:
        head.close()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run that trains on nodes labelled gpu and decodes on nodes labelled cpu."""
    folder = tmp_path_factory.mktemp("submit")
    tasks = ["cifar10", "audioset"]
    write_synthetic(folder / "data", tasks=tasks, train=12, evaluation=4)
    document = {
        "extends": "demo",
        "model": {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32, "l_adapt": 0},
        "tasks": {name: {"steps": STEPS // 2, "batch": 2} for name in tasks},
        "data": {"root": str(folder / "data"), "decode_node_labels": {"pool": "cpu"}},
        "train": {
            "workers": 1, "worker_node_labels": {"pool": "gpu"}, "use_gpu": False, "checkpoint_every": STEPS,
            "log_every": 20,
        },
    }  # fmt: skip
    path = folder / "submitted.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_cluster_with_a_token_refuses_a_client_without(head: Head) -> None:
    refused = head.job("list", env=head.plain | {"RAY_AUTH_MODE": "disabled"})
    assert refused.returncode != 0
    assert "Unauthorized" in refused.stdout + refused.stderr


def test_a_job_is_submitted_followed_stopped_and_gone_on_with(head: Head, config: Path) -> None:
    storage = config.parent / "runs"
    write_tables(storage)
    entrypoint = ["python", "-m", "pipelines.cotrain", str(config), "--name", "job", f"storage={storage}"]
    following = head.submit("first", *entrypoint)
    log = head.temp / "first"
    _wait_for(rf"step [1-9]\d*/{STEPS}", following, log)
    with ThreadPoolExecutor(1) as beside:
        with head.held():
            stopping = beside.submit(head.job, "stop", "first")
            _wait_for("stopping at the next step", following, log)
        stopped = stopping.result()
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    following.wait(timeout=PATIENCE_S)
    (step,) = re.findall(r"stopped by SIGTERM after step (\d+), checkpoint written", log.read_text())
    assert 0 < int(step) < STEPS
    assert [path.name for path in storage.glob("job/step_*")] == [f"step_{int(step):08d}"]
    client = MlflowClient(tracking_uri=f"sqlite:///{storage}/mlflow.db")
    assert _the_run(client).info.status == "KILLED"

    again = head.submit("again", "bash", "cluster/start-or-resume.sh", "job", str(storage), str(config))
    assert again.wait(timeout=PATIENCE_S) == 0, (head.temp / "again").read_text()
    assert f"job: {STEPS} steps on 1 workers" in (head.temp / "again").read_text()
    run = _the_run(client)
    assert run.info.status == "FINISHED"
    assert {"eval/cifar10/top1", "eval/audioset/map"} <= set(run.data.metrics)
    logged = [point.step for point in client.get_metric_history(run.info.run_id, STEP_KEY)]
    assert sorted(logged) == sorted(set(logged)), "a step was logged twice"
    assert set(range(20, STEPS + 1, 20)) <= set(logged)


def test_the_upload_holds_the_code_and_nothing_that_grows(head: Head) -> None:
    """What Ray unpacks for a job."""
    assert head.submit("upload", "python", "-c", "import pipelines.cotrain").wait(timeout=PATIENCE_S) == 0
    unpacked = {path.parents[1] for path in (head.temp / "head").rglob("_ray_pkg_*/pipelines/cotrain.py")}
    assert unpacked
    for folder in unpacked:
        files = [path for path in folder.rglob("*") if path.is_file()]
        names = {path.relative_to(folder).parts[0] for path in files}
        assert {"pipelines", "polyvit", "cluster"} <= names
        assert not names & {".venv", ".git", "runs", "demo-data", "mlruns", "tests", "docs"}
        assert sum(path.stat().st_size for path in files) < 8 * 2**20


def _wait_for(pattern: str, following: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while not re.search(pattern, log.read_text()):
        assert following.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.2)


def _the_run(client: MlflowClient) -> object:
    experiment = client.get_experiment_by_name("polyvit")
    (run,) = client.search_runs([experiment.experiment_id])
    return run
