"""The commands and environment of cluster/compose.yaml without containers: PostgreSQL, an S3 server, MLflow."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import soak
import yaml
from mlflow.tracking import MlflowClient
from moto.server import ThreadedMotoServer
from nodes_kit import free_port
from small import small_config

from pipelines.tracking.runs import Tracker

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
BIN = Path(sys.executable).parent
SERVICES = yaml.safe_load((CLUSTER / "compose.yaml").read_text())["services"]
PASSWORD = "not-a-secret"


def _postgres_tools() -> Path | None:
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    elsewhere = [Path(path).resolve().parent for path in [shutil.which("initdb")] if path]
    return next(iter([*debian, *elsewhere]), None)


TOOLS = _postgres_tools()
pytestmark = pytest.mark.skipif(TOOLS is None, reason="PostgreSQL is not installed (Debian: postgresql)")


def _postgres(tool: str, *arguments: str) -> None:
    """PostgreSQL refuses to run as root."""
    switch = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    environment = os.environ | {"PGPASSWORD": PASSWORD}
    command = [*switch, str((TOOLS or Path()) / tool), *arguments]
    subprocess.run(command, check=True, cwd="/tmp", env=environment, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """HOST:PORT of a PostgreSQL with the compose file's user and database."""
    folder, port = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp")), free_port()  # its socket needs a short path
    (folder / "password").write_text(PASSWORD)
    if os.geteuid() == 0:
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres", "postgres")
    data, user = str(folder / "data"), SERVICES["postgres"]["environment"]["POSTGRES_USER"]
    _postgres("initdb", "-D", data, "-U", user, "--pwfile", str(folder / "password"), "-A", "scram-sha-256")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    _postgres("pg_ctl", "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        name = SERVICES["postgres"]["environment"]["POSTGRES_DB"]
        _postgres("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", user, name)
        yield f"127.0.0.1:{port}"
    finally:
        _postgres("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """HOST:PORT of an S3 server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "{}:{}".format(*server.get_host_and_port())
    server.stop()


def _environment(service: str, database: str, store: str) -> dict[str, str]:
    """The service's environment with the addresses of ours."""
    given = {
        "POSTGRES_PASSWORD": PASSWORD,
        "STORE_KEY_ID": "key",
        "STORE_SECRET_KEY": "secret",
        "MLFLOW_HOSTS": "",
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "AWS_"))}
    for key, value in SERVICES[service]["environment"].items():
        filled = re.sub(r"\$\{(\w+)(?::[-?][^}]*)?\}", lambda match: given[match.group(1)], value)
        environment[key] = filled.replace("store:8333", store).replace("@postgres/", f"@{database}/")
    return environment | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def _bucket(database: str, store: str) -> None:
    environment = _environment("bucket", database, store)
    subprocess.run(SERVICES["bucket"]["command"], cwd=CLUSTER, env=environment, check=True, timeout=600)


@pytest.fixture(scope="module")
def server(database: str, store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the compose file's MLflow server, once its own health check passes."""
    _bucket(database, store)
    _bucket(database, store)  # the bucket may be there
    folder, port = tmp_path_factory.mktemp("mlflow"), str(free_port())
    here = {"5000": port, "0.0.0.0": "127.0.0.1"}
    command = [here.get(word, word) for word in SERVICES["mlflow"]["command"]]
    environment = _environment("mlflow", database, store)
    with (folder / "log").open("w") as log:
        running = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    check = [word.replace("5000", port) for word in SERVICES["mlflow"]["healthcheck"]["test"][1:]]
    until = time.monotonic() + 600
    try:
        while subprocess.run(check, env=environment, capture_output=True).returncode:
            assert running.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        running.wait(timeout=60)


@pytest.mark.slow
def test_a_run_goes_to_postgres_and_its_files_to_the_store(server: str, store: str, tmp_path: Path) -> None:
    """From a client that knows the server's address and no keys."""
    tracker = Tracker.start(small_config(f"storage={tmp_path}", f"tracking.uri={server}"), "a-run")
    curves = tracker.curves()
    for step in range(1, 51):
        curves.put(step, {"loss": 1 / step})
    assert curves.close() == 0
    (tmp_path / "note.txt").write_text("kept")
    tracker.artifact(tmp_path / "note.txt")
    tracker.finish("FINISHED")

    client = MlflowClient(tracking_uri=server)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert [point.value for point in client.get_metric_history(tracker.run_id, "loss")] == [
        1 / s for s in range(1, 51)
    ]
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    held = boto3.client("s3", endpoint_url=f"http://{store}", **keys).list_objects_v2(Bucket="mlflow")["Contents"]
    assert [entry["Key"].rpartition(f"{tracker.run_id}/artifacts/")[2] for entry in held] == ["note.txt"]


@pytest.mark.ray
@pytest.mark.soak
def test_a_sweep_with_two_trials_at_a_time_logs_each_once(server: str, tmp_path: Path) -> None:
    """Concurrent trials, stopped early or not: one run each below the sweep's, every step of it once."""
    config = soak.write_config(tmp_path, 40)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
    as_data = tmp_path / "out.json"
    command = [
        sys.executable, "-m", "pipelines.sweep", str(config), "--name", "two", f"storage={tmp_path / 'runs'}",
        f"tracking.uri={server}", "train.workers=1", "train.eval_every=10", "sweep.max_concurrent=2",
        "sweep.early_stopping=true", "--over", "optim.lr=0.00001,0.003,0.002", "--json", str(as_data),
    ]  # fmt: skip
    env |= {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(as_data.read_text())
    states = {trial["changes"]["optim.lr"]: trial["state"] for trial in document["trials"]}
    assert len(states) == 3
    assert set(states.values()) <= {"finished", "stopped"}
    assert document["best"]["state"] == "finished"
    client = MlflowClient(tracking_uri=server)
    parent = client.get_run(document["mlflow_run"])
    runs = client.search_runs([parent.info.experiment_id])
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len({run.data.tags["polyvit.trial"] for run in children}) == 3
    assert sorted(run.info.status for run in children) == sorted(
        "FINISHED" if state == "finished" else "KILLED" for state in states.values()
    )
    for run in children:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "global_step")]
        assert steps == sorted(set(steps))
    version = client.get_model_version_by_alias("polyvit", "champion")
    assert version.run_id in {run.info.run_id for run in children}
