"""Fixtures of several test files."""

import functools
import gc
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import mlflow_kit
import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

for _name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "FORCE_COLOR"):
    os.environ.pop(_name, None)  # of whoever starts the tests: another's cluster, another's store, escape codes


if processes := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # which share the cores with each other
    threads = max(1, (os.cpu_count() or 1) // int(processes))
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes that tests start: threads of torch wait busily
gc.set_threshold(700, 10, 50)  # tests leave much that stays, and to look through all of it takes 0.1 to 0.4 s


def pytest_runtest_setup() -> None:
    """MLflow's tables are made once in a process."""
    mlflow_kit.copy_tables_from_now_on()


TIERS = ("slow", "faults", "gpu", "soak")
"""Markers that take a test out of `make test`; a test has one of them at most."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One tier a test. What starts Ray comes first: it is the longest chain that one process works through."""
    items.sort(key=lambda item: not starts_ray(item.path))
    for item in items:
        tiers = [tier for tier in TIERS if item.get_closest_marker(tier)]
        if len(tiers) > 1:
            raise pytest.UsageError(
                f"{item.nodeid} is of two tiers: {', '.join(tiers)}; leave one of the markers out"
            )


@functools.cache
def starts_ray(file: Path) -> bool:
    """Whether tests of a file start Ray."""
    return bool(re.search(r'mark\.ray\b|"ray_cluster"|ray_cluster: None', file.read_text()))


class RayTogether(LoadScopeScheduling):
    """Files are handed out to the processes of pytest-xdist; those that share `ray_cluster` all go to one process.

    So do those that start clusters of their own, which wait much: for what they killed, for nodes that come.
    xdist's own groups do nothing with pytest 9: a node's id is final there.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        path = Path(__file__).parents[1] / file
        if not starts_ray(path):
            return file
        return "ray" if "ray_cluster" in path.read_text() else "clusters"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than cores, at most four: Ray's tests wait for processes that start, and others go on meanwhile."""
    return min(4, (os.cpu_count() or 1) + 1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> RayTogether:
    """Instead of `--dist`."""
    return RayTogether(config, log)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: for models so tiny that threads cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for all tests that need one, with logical CPUs for three train workers and two for decoding.

    Five on any machine: tests say what fits into them and what fills them.
    """
    from pipelines.runtime.ray_cluster import cluster

    with pytest.MonkeyPatch.context() as patch, ExitStack() as started:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # its workers find the kits too
        with pytest.MonkeyPatch.context() as machine:
            machine.setattr("os.cpu_count", lambda: 2)
            started.enter_context(cluster(workers=3))
        yield


@pytest.fixture(scope="session")
def pair_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shapes` and `sounds`, with one training picture that is no picture."""
    from polyvit.synthetic.write import write_example_pair

    root = tmp_path_factory.mktemp("pair") / "data"
    write_example_pair(root)
    sorted((root / "shapes" / "train").rglob("*.png"))[4].write_bytes(b"no picture")
    return root
