"""Several Ray nodes on this machine, each with its own raylet, and the project's commands run against them."""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from polyvit.config import load_config
from polyvit.data.loading.minibatch import Decoder, Minibatch, Request

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """A port that nobody listens on, for a process that will take seconds until it does.

    Below those that the kernel gives away by itself: one of them could be anybody's by then.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(20_001, lowest) if lowest > 20_100 else 0
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])


class Nodes:
    """A head, on which drivers run and which is never lost, and nodes that come and go."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(shutdown_at_exit=True)
        self.by_name: dict[str, Any] = {}
        self.commands: list[subprocess.Popen] = []

    def add(self, name: str, cpus: int, labels: Mapping[str, str]) -> None:
        """Start a node. The first is the head."""
        from pipelines.runtime.ray_cluster import start_node

        sizes = {"num_cpus": cpus, "object_store_memory": 200 * 2**20, "include_dashboard": False}
        self.by_name[name] = start_node(lambda: self.cluster.add_node(labels=dict(labels), **sizes))

    def kill(self, name: str) -> None:
        """The machine is gone: kill -9 of its raylet, and of its workers, which would outlive it for a moment."""
        node = self.by_name.pop(name)
        raylet = self.raylet(node)
        for process in [raylet, *raylet.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
                process.kill()
        self.cluster.remove_node(node, allow_graceful=False)

    @staticmethod
    def raylet(node: Any) -> psutil.Process:
        """The process of a node's raylet."""
        return psutil.Process(node.all_processes["raylet"][0].process.pid)

    def processes(self) -> Iterator[tuple[str, str]]:
        """(node, title) of every Ray worker process now alive, such as `ray::MapBatches(pets: decode+augment)`."""
        for name, node in list(self.by_name.items()):
            try:
                for child in self.raylet(node).children():
                    yield name, " ".join(child.cmdline())
            except psutil.Error:
                continue


@contextmanager
def nodes(**made: tuple[int, Mapping[str, str]]) -> Iterator[Nodes]:
    """Nodes by name as (cpus, labels); all their processes are gone afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        # Else every other Ray started on this machine would join this cluster.
        patch.setattr("ray._private.utils.write_ray_address", lambda *_: None)
        # Ray gives a worker of several CPUs as many threads: too many for one real core a node.
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
        group = Nodes()
        try:
            for name, (cpus, labels) in made.items():
                group.add(name, cpus, labels)
            yield group
        finally:
            for process in group.commands:
                process.kill()  # no more than a no-op where it has ended
                process.wait()
            group.cluster.shutdown()


class Command:
    """`polyvit ...` as a process of its own, attached to the nodes."""

    def __init__(self, group: Nodes, folder: Path, *arguments: str) -> None:
        self.group, self.out = group, folder / f"out-{time.monotonic_ns()}.json"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        environment |= {"RAY_ADDRESS": group.cluster.address, "MLFLOW_TRACKING_URI": "", "PYTHONPATH": str(ROOT)}
        self.log = self.out.with_suffix(".log")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", *arguments, "--json", str(self.out)],
            env=environment, cwd=ROOT, stdout=self.log.open("w"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        group.commands.append(self.process)
        self.seen: dict[str, set[str]] = {}
        self.began = time.monotonic()

    def wait(self, until: Callable[[], bool] = lambda: False, limit_s: float = 1200) -> None:
        """Until the process ends or `until` holds, noting which node runs what."""
        while self.process.poll() is None and not until():
            if time.monotonic() - self.began > limit_s:
                self.process.kill()
                raise TimeoutError(self.log.read_text()[-4000:])
            for node, title in self.group.processes():
                self.seen.setdefault(title, set()).add(node)
            time.sleep(0.02)

    def ended(self, limit_s: float = 1200) -> dict[str, Any]:
        """Wait for the end; the command's JSON."""
        self.wait(limit_s=limit_s)
        assert self.process.returncode is not None
        document = json.loads(self.out.read_text()) if self.out.exists() else {}
        return {**document, "status": self.process.returncode, "log": self.log.read_text()}

    def where(self, part: str) -> set[str]:
        """The nodes on which a process with this in its title was seen."""
        return set().union(*(names for title, names in self.seen.items() if part in title), set())


@dataclass(frozen=True)
class WhereDecoder(Decoder):
    """Decodes nothing: the key of its one example is the node that it ran on.

    Its processes wait for each other, as a node that is up first would do all the work: they leave their node's
    name in `folder`, and go on when `nodes` names are there. Long in vain where fewer nodes get any work.
    """

    folder: Path = Path()
    nodes: int = 1

    def decode(self, request: Request, careful: bool | None = None) -> Minibatch:
        import ray

        here = ray.get_runtime_context().get_node_id()
        (self.folder / here).touch()
        until = time.monotonic() + 120
        while len(list(self.folder.iterdir())) < self.nodes and time.monotonic() < until:
            time.sleep(0.02)
        nothing = np.zeros((1, 1, 1), np.uint8)
        return Minibatch(request.step, request.task, nothing, nothing[0], (here,), 0, 1)


def decoded_on(group: Nodes, backend: str, *labels: Mapping[str, str]) -> list[set[str]]:
    """The names of the nodes that decoded, for each of the labels asked for. Seen from a process of its own."""
    environment = os.environ | {"RAY_ADDRESS": group.cluster.address}
    done = subprocess.run(
        [sys.executable, "-m", "nodes_kit", backend, json.dumps(labels)],
        env=environment, cwd=ROOT / "tests", capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {node.node_id: name for name, node in group.by_name.items()}
    return [{names[node] for node in found} for found in json.loads(done.stdout.splitlines()[-1])]


def _print_nodes(backend: str, selectors: list[dict[str, str]], count: int = 24) -> None:
    from pipelines.feed.worker_feed import minibatches
    from pipelines.runtime import cluster, living_nodes

    base, nodes_of = load_config("tiny-nine", [f"feed.backend={backend}"]), []
    requests, inputs = [Request(i, "cifar10", ()) for i in range(count)], {"cifar10": base.model.input("image")}
    with cluster():
        for labels in selectors:
            config = base.model_copy(update={"data": base.data.model_copy(update={"decode_node_labels": labels})})
            number = sum(node.carries(labels) for node in living_nodes())
            with tempfile.TemporaryDirectory(prefix="polyvit-where-") as folder:
                decoder = WhereDecoder(base.tasks, inputs, {}, 0, folder=Path(folder), nodes=number)
                found = list(minibatches(requests, decoder, config))
            assert [minibatch.step for minibatch in found] == list(range(count))
            nodes_of.append([minibatch.keys[0] for minibatch in found])
    print(json.dumps(nodes_of))


if __name__ == "__main__":
    _print_nodes(sys.argv[1], json.loads(sys.argv[2]))
