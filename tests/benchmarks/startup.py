"""What our processes cost: seconds until a command answers, until Ray is up, until a run takes its first step.

    python tests/benchmarks/startup.py [--rounds 3] [--json FILE] [--only NAME ...]

Needs a quiet machine: it refuses to begin where the load is above half a core. Each figure is the median of
`--rounds` processes; `cpu_s` is what the process and all it started used until then.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
RAY_START = "import ray; ray.init(address='local', num_cpus=4, include_dashboard=False, log_to_driver=False)"
TRAIN_START = """
import time
from pipelines.runtime import cluster
with cluster(2):
    import ray.train, ray.train.torch
    def first(config): print("first line of a train worker", flush=True)
    begun = time.monotonic()
    ray.train.torch.TorchTrainer(first, scaling_config=ray.train.ScalingConfig(num_workers=2)).fit()
    print("FIGURE", time.monotonic() - begun, flush=True)
"""
CHILD = "import polyvit.data.loading.isolated, polyvit.data.loading.codecs.{}"


class Measured:
    """A command that is timed until it ends, until it prints `until`, or by a figure that it prints itself."""

    def __init__(self, *command: str, until: str | None = None) -> None:
        self.command, self.until = command, until

    def __call__(self, folder: Path) -> tuple[float, float]:
        """Seconds; CPU seconds of the process and of all it started until it printed `until`, else 0."""
        environment = os.environ | {"POLYVIT_LOG_EVERY_S": "0.1", "PYTHONPATH": str(ROOT)}
        begun = time.monotonic()
        with subprocess.Popen(
            self.command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            watched, seconds, cpu = psutil.Process(process.pid), 0.0, 0.0
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("FIGURE"):
                    seconds = float(line.split()[1])
                if self.until and self.until in line:
                    seconds, cpu = time.monotonic() - begun, cpu_of(watched)
                    break
            if self.until:
                process.kill()
            process.wait()
        return seconds or time.monotonic() - begun, cpu


def cpu_of(process: psutil.Process) -> float:
    """CPU seconds of a process and of all below it that live."""
    total = 0.0
    for each in [process, *process.children(recursive=True)]:
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


FIGURES = {
    "polyvit --help": Measured(str(BIN / "polyvit"), "--help"),
    "polyvit recipes": Measured(str(BIN / "polyvit"), "recipes"),
    "import torch": Measured(sys.executable, "-c", "import torch"),
    "import ray": Measured(sys.executable, "-c", "import ray"),
    "import ray.train": Measured(sys.executable, "-c", "import ray.train"),
    "import mlflow": Measured(sys.executable, "-c", "import mlflow.tracking"),
    **{
        f"a decoding child, {name}": Measured(sys.executable, "-c", CHILD.format(name))
        for name in ("image", "video", "audio")
    },
    "start and end Ray": Measured(sys.executable, "-c", RAY_START),
    "Ray Train: 2 workers, from fit() to its end": Measured(sys.executable, "-c", TRAIN_START),
    "polyvit plan demo, with data": Measured(str(BIN / "polyvit"), "plan", "demo"),
    "polyvit cotrain demo: first step": Measured(str(BIN / "polyvit"), "cotrain", "demo", until="step "),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    arguments = parser.parse_args()
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > 0.5 * cores:
        sys.exit(f"load {load:.1f} on {cores} cores: wait until the machine is quiet")
    folder = Path(tempfile.mkdtemp(prefix="polyvit-startup-"))
    rows = {}
    try:
        subprocess.run([BIN / "polyvit", "synth", "demo-data"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        for name in arguments.only or FIGURES:
            times = []
            for _ in range(arguments.rounds):
                times.append(FIGURES[name](folder))
                time.sleep(3)  # what a killed process started ends a little later
            seconds = [each[0] for each in times]
            rows[name] = {"median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds)}
            if FIGURES[name].until:
                rows[name]["cpu_s"] = statistics.median(each[1] for each in times)
            print(name, {key: round(value, 2) for key, value in rows[name].items()}, flush=True)
    finally:
        shutil.rmtree(folder)
    if arguments.json:
        arguments.json.write_text(json.dumps({"load_before": load, "cores": cores, "figures": rows}, indent=1))


if __name__ == "__main__":
    main()
