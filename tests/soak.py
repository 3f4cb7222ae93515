"""Kill everything that can be killed, again and again, and compare with the run that was left alone.

    python tests/soak.py FOLDER [--runs 4] [--kills 5] [--seed 0] [--steps 400] [--targets worker driver ...]

A head, and a second node where nodes are killed, are started on this machine; the runs are real `polyvit cotrain`
processes that attach to them. Every run must end with the reference's parameters, optimiser state, history and
evaluations, bit for bit; in MLflow every step is there once; nothing is left behind. Writes FOLDER/soak.json.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from mlflow_kit import write_tables

TARGETS = ("worker", "decoder", "driver", "node")
_PROGRESS = re.compile(r"step (\d+)/(\d+)")
PATIENCE_S = 600.0


@dataclass
class Kill:
    """One kill: what, and the last step that had been printed."""

    target: str
    after_step: int


@dataclass
class Cluster:
    """A head and `nodes` further nodes, each a raylet of its own."""

    nodes: int = 1
    inner: Any = None
    extra: list[Any] = field(default_factory=list)

    def __enter__(self) -> "Cluster":
        from ray.cluster_utils import Cluster as Nodes

        from pipelines.runtime.ray_cluster import start_node

        head = {"num_cpus": 3 if self.nodes else 5, "include_dashboard": False}
        self.inner = start_node(lambda: Nodes(initialize_head=True, head_node_args=head))
        for _ in range(self.nodes):
            self.add()
        return self

    @property
    def session(self) -> str:
        """The name of the Ray session, which its processes carry."""
        return Path(self.inner.head_node.get_session_dir_path()).name

    def add(self) -> None:
        """One more node, with room for train workers and decoding."""
        from pipelines.runtime.ray_cluster import start_node

        self.extra.append(start_node(lambda: self.inner.add_node(num_cpus=2)))

    def kill_node(self) -> None:
        """SIGKILL to the raylet of a node that is not the head; a new node takes its place."""
        node = self.extra.pop()
        self.inner.remove_node(node, allow_graceful=False)
        self.add()

    def __exit__(self, *_: object) -> None:
        self.inner.shutdown()


def ray_processes(session: str, *titles: str) -> list[psutil.Process]:
    """The Ray worker processes of a session whose title holds one of these words: never another cluster's."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            wanted = title.startswith("ray::") and any(word in title for word in titles)
            if wanted and session in process.environ().get("RAY_SESSION_DIR", "") + _family(process):
                processes.append(process)
    return processes


def _family(process: psutil.Process) -> str:
    parent = process.parent()
    return " ".join(parent.cmdline()) if parent else ""


class Run:
    """A `polyvit cotrain` process and what it prints."""

    def __init__(self, folder: Path, name: str, address: str, config: Path) -> None:
        self.folder, self.name, self.address, self.config = folder, name, address, config
        self.log = folder / f"{name}.log"
        self.process: subprocess.Popen | None = None

    def start(self, resume: bool = False) -> None:
        """A new run, or the same one gone on with."""
        storage = self.folder / "runs"
        what = ["--resume", self.name] if resume else [str(self.config), "--name", self.name]
        command = [sys.executable, "-m", "pipelines.cotrain", *what, f"storage={storage}"]
        env = {**os.environ, "RAY_ADDRESS": self.address, "PYTHONUNBUFFERED": "1", "POLYVIT_LOG_EVERY_S": "0.5"}
        env.pop("MLFLOW_TRACKING_URI", None)
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)

    def step(self) -> int:
        """The last step that was printed."""
        steps = _PROGRESS.findall(self.log.read_text()) if self.log.exists() else []
        return int(steps[-1][0]) if steps else 0

    def lines(self) -> int:
        """Progress lines so far."""
        return len(_PROGRESS.findall(self.log.read_text())) if self.log.exists() else 0

    def wait_for_progress(self, lines: int) -> bool:
        """Until more progress lines are there than `lines`; False where the run ended first."""
        until = time.monotonic() + PATIENCE_S
        while self.lines() <= lines:
            assert self.process is not None
            if self.process.poll() is not None:
                return False
            if time.monotonic() > until:
                raise TimeoutError(f"{self.name}: no progress for {PATIENCE_S:.0f} s; see {self.log}")
            time.sleep(0.1)
        return True

    def finish(self) -> int:
        """Exit status."""
        assert self.process is not None
        return self.process.wait(timeout=PATIENCE_S * 3)


def followed(run: Run) -> float:
    """Wait for the end of a run; how many seconds it trained, from its first line of progress to its last."""
    seen: list[float] = []
    while run.wait_for_progress(len(seen)):
        seen.append(time.monotonic())
    return seen[-1] - seen[0] if seen else 0.0


def disturbed(
    run: Run, cluster: Cluster, targets: list[str], rng: random.Random, most_s: float = 2.0
) -> list[Kill]:
    """Run to the end, with one kill after another, each up to `most_s` after training went on."""
    kills: list[Kill] = []
    run.start()
    for target in targets:
        if not run.wait_for_progress(run.lines()):
            break
        time.sleep(rng.uniform(0.0, most_s))
        if run.process is None or run.process.poll() is not None:
            break
        kill = Kill(target, run.step())
        if not _kill(target, run, cluster, rng):
            continue
        kills.append(kill)
        time.sleep(2.0)  # what was printed before it died is no progress
    status = run.finish()
    if status != 0:
        raise AssertionError(f"{run.name} ended with status {status}; see {run.log}")
    return kills


def _kill(target: str, run: Run, cluster: Cluster, rng: random.Random) -> bool:
    assert run.process is not None
    if target == "driver":
        run.process.kill()
        run.process.wait()
        _gone(cluster.session)
        run.start(resume=True)
        return True
    if target == "node":
        cluster.kill_node()
        return True
    title, until = "RayTrainWorker" if target == "worker" else "decode", time.monotonic() + 20
    while not (victims := ray_processes(cluster.session, title)):  # decoding comes and goes with the prefetch
        if time.monotonic() > until or run.process.poll() is not None:
            return False
        time.sleep(0.02)
    with contextlib.suppress(psutil.NoSuchProcess):
        rng.choice(sorted(victims, key=lambda p: p.pid)).send_signal(signal.SIGKILL)
        return True
    return False


def _gone(session: str) -> None:
    """Raises AssertionError where processes of a dead driver live on."""
    until = time.monotonic() + PATIENCE_S
    while left := ray_processes(session, "RayTrainWorker", "decode", "ProgressActor", "Cleaner"):
        if time.monotonic() > until:
            raise AssertionError(f"left behind: {[p.cmdline()[0].strip() for p in left]}")
        time.sleep(0.5)


def differences(folder: Path, reference: str, other: str) -> list[str]:
    """What of a run is not as in the reference: files, state, history, MLflow; empty when all is equal."""
    from polyvit.checkpoint.locate import find_checkpoint
    from polyvit.checkpoint.metrics_log import read_metrics_log
    from polyvit.checkpoint.state import read_document

    one, two = (folder / "runs" / name for name in (reference, other))
    problems = []
    first, second = find_checkpoint(one), find_checkpoint(two)
    problems += [
        f"{name} differs" for name in ("model.safetensors", "optimiser.safetensors")
        if (first / name).read_bytes() != (second / name).read_bytes()
    ]  # fmt: skip
    wanted, state = read_document(first), read_document(second)
    problems += [f"state.json: {key} differs" for key in wanted.keys() - {"config"} if wanted[key] != state[key]]
    curves = [_true(read_metrics_log(run / "history")) for run in (one, two)]
    if curves[0] != curves[1]:
        problems.append("history differs")
    if left := [path.name for path in two.glob(".writing*")]:
        problems.append(f"left behind: {left}")
    problems += _mlflow_problems(two, curves[0])
    return problems


def _true(points: list[tuple[int, dict[str, float]]]) -> list[tuple[int, dict[str, float]]]:
    return [(step, {k: v for k, v in values.items() if not k.startswith("pace/")}) for step, values in points]


def _mlflow_problems(run: Path, points: list[tuple[int, dict[str, float]]]) -> list[str]:
    from mlflow.tracking import MlflowClient

    from pipelines.tracking.runs import measured_once

    record = json.loads((run / "run.json").read_text())
    client = MlflowClient(tracking_uri=record["mlflow_uri"])
    problems, points = [], [(step, measured_once(values)) for step, values in points]
    for key in sorted({key for _, values in points for key in values}):
        wanted = [(step, values[key]) for step, values in points if key in values]
        held = sorted((point.step, point.value) for point in client.get_metric_history(record["mlflow_run"], key))
        if held != wanted:
            problems.append(f"MLflow {key}: {len(held)} points instead of {len(wanted)}")
    if client.get_run(record["mlflow_run"]).info.status != "FINISHED":
        problems.append("the MLflow run is not FINISHED")
    return problems


def write_config(folder: Path, steps: int, reacting: bool = False) -> Path:
    """A small run on synthetic pictures, clips and sounds, with frequent checkpoints.

    reacting: its schedule reacts to what is measured, and it measures interference and drift on the way.
    """
    from polyvit.synthetic.write import write_synthetic

    tasks = ["cifar10", "pets", "kinetics400", "audioset"]
    write_synthetic(folder / "data", tasks=tasks, train=12, evaluation=4)
    each = steps // len(tasks)
    document: dict[str, Any] = {
        "extends": "demo",
        "model": {"width": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64, "l_adapt": 1},
        "tasks": {name: {"steps": each, "batch": 6, "drop_path": 0.1} for name in tasks},
        "data": {"root": str(folder / "data")},
        "feed": {"segment_steps": 40},
        "train": {
            "workers": 2, "checkpoint_every": 20, "eval_every": steps // 4, "log_every": 5, "max_failures": -1,
        },
    }  # fmt: skip
    if reacting:
        document["schedule"] = {"kind": "adaptive", "adaptive": {"exponent": 8}}
        document["train"] |= {"interference_every": steps // 2, "drift": True}
    path = folder / "soak.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def soak(
    folder: Path, runs: int, kills: int, seed: int, steps: int, kinds: tuple[str, ...] = TARGETS
) -> dict[str, Any]:
    """The whole of it. Raises AssertionError where a run ends otherwise than the reference.

    kinds: what is killed, in turn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(folder / "runs")
    config = write_config(folder, steps, reacting=True)
    rng = random.Random(seed)
    report: dict[str, Any] = {"seed": seed, "steps": steps, "runs": []}
    with Cluster(nodes=1 if "node" in kinds else 0) as cluster:
        reference = Run(folder, "reference", cluster.inner.address, config)
        reference.start()
        lasted = followed(reference)
        assert reference.finish() == 0, f"the reference failed: {reference.log}"
        for i in range(runs):
            targets = [kinds[(i * kills + j) % len(kinds)] for j in range(kills)]
            rng.shuffle(targets)
            run = Run(folder, f"disturbed-{i}", cluster.inner.address, config)
            # On a fast machine sooner: else the run ends before it is killed.
            done = disturbed(run, cluster, targets, rng, min(2.0, lasted / 8))
            problems = differences(folder, "reference", run.name)
            entry = {"run": run.name, "kills": [asdict(kill) for kill in done], "differences": problems}
            report["runs"].append(entry)
            print(json.dumps(entry), flush=True)
            (folder / "soak.json").write_text(json.dumps(report, indent=1))
        session = cluster.session
    _gone(session)
    report["equal"] = all(not entry["differences"] for entry in report["runs"])
    (folder / "soak.json").write_text(json.dumps(report, indent=1))
    return report


def main() -> int:
    """Exit status 0 where every run is equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    kinds = tuple(arguments.targets)
    report = soak(folder, arguments.runs, arguments.kills, arguments.seed, arguments.steps, kinds)
    count = sum(len(entry["kills"]) for entry in report["runs"])
    print(f"{len(report['runs'])} runs, {count} kills, all equal: {report['equal']}")
    return 0 if report["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
