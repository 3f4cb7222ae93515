"""Put small faults into modules, one at a time, and see whether the tests notice.

    python tests/benchmarks/mutations.py [--only NAME] [--whole] [--json FILE]

Each fault is made in a copy of the tracked files. The tests that run are those of `make test` (no slower tier, no
Ray) in the folders named with the fault; `--whole` runs all of them. A fault that no test notices survives. Exit
status 1 where more than one survives.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Fault:
    """What is replaced in which file, once, and the test folders that should notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


FAULTS = (
    Fault(
        "plan: off by one step of the task",
        "polyvit/schedule/plan.py",
        "stream = task_step * config.batch + np.arange",
        "stream = (task_step + 1) * config.batch + np.arange",
        ("tests/schedule",),
    ),
    Fault(
        "plan: pairs are torn between ranks",
        "polyvit/schedule/plan.py",
        "// world_size * 2 for r in",
        "* 2 // world_size for r in",
        ("tests/schedule",),
    ),
    Fault(
        "schedule: task by task in one order for all seeds",
        "polyvit/schedule/schedule.py",
        "blocks = rng.permutation(num_tasks)",
        "blocks = np.arange(num_tasks)",
        ("tests/schedule",),
    ),
    Fault(
        "config: warmup is that of one task",
        "polyvit/config/run.py",
        "return sum(task.warmup_steps for",
        "return max(task.warmup_steps for",
        ("tests/config", "tests/training"),
    ),
    Fault(
        "config: a recipe's tasks are added to the extended one's",
        "polyvit/config/loader.py",
        'for name in child["tasks"]}',
        'for name in merged["tasks"]}',
        ("tests/config",),
    ),
    Fault(
        "augment: the middle window is one off",
        "polyvit/data/transforms/augment.py",
        "return room // 2",
        "return room // 2 + 1",
        ("tests/data/transforms", "tests/data/decode"),
    ),
    Fault(
        "codec: crops of a clip in another order",
        "polyvit/data/loading/codecs/video.py",
        'return ("left", "centre", "right")',
        'return ("right", "centre", "left")',
        ("tests/evaluation", "tests/data/loading"),
    ),
    Fault(
        "codec: the window of a recording is not cut to its segment",
        "polyvit/data/loading/codecs/audio.py",
        "bytes_only(media, task), spec.sample_rate, *segment_s)",
        "bytes_only(media, task), spec.sample_rate)",
        ("tests/data/loading", "tests/data/decode", "tests/data/layouts"),
    ),
    Fault(
        "minibatch: spares are not turned by the slot",
        "polyvit/data/loading/minibatch.py",
        "turn = slot % len(spares) if spares else 0",
        "turn = 0",
        ("tests/data/loading", "tests/data/isolation"),
    ),
    Fault(
        "chunks: the second part of a minibatch has the first's slots",
        "polyvit/data/loading/chunks.py",
        "first_slot=request.first_slot + a,",
        "first_slot=request.first_slot,",
        ("tests/data", "tests/pipelines/feed"),
    ),
    Fault(
        "index: the carve-out of a key is another",
        "polyvit/data/index/io.py",
        'digest()[:8], "big")',
        'digest()[:8], "little")',
        ("tests/data/index", "tests/data/layouts"),
    ),
    Fault(
        "tokenizer: mean of pixels is off",
        "polyvit/model/tokenizer.py",
        "(2.0 / 255.0) - 1.0",
        "(2.0 / 256.0) - 1.0",
        ("tests/model", "tests/training"),
    ),
    Fault(
        "encoder: other examples drop their branches",
        "polyvit/model/encoder.py",
        "return (drawn >= torch.tensor(rates)[:, None, None]).float()",
        "return (drawn > 1 - torch.tensor(rates)[:, None, None]).float()",
        ("tests/model", "tests/training"),
    ),
    Fault(
        "losses: smoothing with K - 1",
        "polyvit/objectives/losses.py",
        "smoothing / labels_BK.shape[-1]",
        "smoothing / (labels_BK.shape[-1] - 1)",
        ("tests/objectives",),
    ),
    Fault(
        "step: the mean is over the local examples",
        "polyvit/training/step.py",
        "losses.sum() / minibatch.global_batch",
        "losses.sum() / len(labels)",
        ("tests/training",),
    ),
    Fault(
        "optim: momentum decays after the gradient is added",
        "polyvit/training/optim.py",
        "torch._foreach_mul_(buffers, self.decay)\n            torch._foreach_add_(buffers, grads)",
        "torch._foreach_add_(buffers, grads)\n            torch._foreach_mul_(buffers, self.decay)",
        ("tests/training",),
    ),
    Fault(
        "reducer: the last bucket loses its numbers",
        "polyvit/distributed/reducer.py",
        "self.extra.copy_(last[len(last) - len(self.extra) :])",
        "pass",
        ("tests/distributed", "tests/training"),
    ),
    Fault(
        "checkpoint: damage of equal size is not seen",
        "polyvit/checkpoint/store.py",
        'if _sha256(path) != expected["sha256"]:',
        "if False:",
        ("tests/checkpoint",),
    ),
    Fault(
        "metrics: precision at equal scores",
        "polyvit/evaluation/metrics.py",
        "np.flatnonzero(np.diff(scores_B))",
        "np.arange(len(scores_B) - 1)",
        ("tests/evaluation",),
    ),
    Fault(
        "evaluation: probabilities of views are summed",
        "polyvit/objectives/losses.py",
        "dim=1) - math.log(logits_BVK.shape[1])",
        "dim=1)",
        ("tests/evaluation", "tests/objectives"),
    ),
    Fault(
        "predict: the least probable classes first",
        "polyvit/deploy/predict.py",
        "logits_K.argsort(descending=True, stable=True)",
        "logits_K.argsort(descending=False, stable=True)",
        ("tests/deploy",),
    ),
)


def copy_of_the_project(folder: Path) -> Path:
    """The tracked files, and a link to what lies beside the project."""
    target = folder / "project"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    shared = ROOT.parent / "shared"
    if shared.exists():
        (folder / "shared").symlink_to(shared)
    return target


def caught(project: Path, fault: Fault, whole: bool) -> tuple[bool, str]:
    """Whether a test fails with the fault, and the first that does."""
    path = project / fault.file
    text = path.read_text()
    if text.count(fault.old) != 1:
        raise SystemExit(
            f"{fault.name}: {fault.file} holds the text to replace {text.count(fault.old)} times, not once"
        )
    path.write_text(text.replace(fault.old, fault.new))
    tests = ["tests"] if whole else list(fault.tests)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m",
               "not (ray or slow or faults or gpu or soak)", *tests]  # fmt: skip
    try:
        ran = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=1800, check=False)
    finally:
        path.write_text(text)
    failed = [line for line in ran.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return ran.returncode == 1, failed[0] if failed else f"exit status {ran.returncode}"


def main() -> int:
    """Every fault in turn."""
    parser = argparse.ArgumentParser(description="Which of some small faults do the tests notice?")
    parser.add_argument("--only", default="", help="faults whose name has this text")
    parser.add_argument(
        "--whole", action="store_true", help="run all quick tests for each fault, not its folders'"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        project = copy_of_the_project(Path(folder))
        for fault in FAULTS:
            if arguments.only in fault.name:
                began = time.monotonic()
                noticed, by = caught(project, fault, arguments.whole)
                results[fault.name] = {"caught": noticed, "by": by, "seconds": round(time.monotonic() - began, 1)}
                print(f"{'caught' if noticed else 'SURVIVED':9} {fault.name}: {by}", flush=True)
    survived = [name for name, result in results.items() if not result["caught"]]
    print(f"{len(results) - len(survived)} of {len(results)} caught")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(len(survived) > 1)


if __name__ == "__main__":
    sys.exit(main())
