"""What a run's index.json says of one task's index.

In: a `Scan`. Out: counts of splits and classes, and what was left out.
"""

from dataclasses import asdict
from typing import Any

from polyvit.data.index.io import Scan


def report_of(scan: Scan, root: str, digest: str, reused: bool) -> dict[str, Any]:
    """Counts of splits, classes seen, problems by kind and each of them.

    root: where the data are. digest: the index's hash. reused: whether it was read from the cache.
    """
    kinds: dict[str, int] = {}
    for problem in scan.problems:
        kinds[problem.kind] = kinds.get(problem.kind, 0) + 1
    return {
        "root": root,
        **scan.counts(),
        "classes": len(scan.classes),
        "classes_present": classes_present(scan),
        "examples_of_class": examples_of_class(scan),
        "left_out": kinds,
        "problems": [asdict(problem) for problem in scan.problems],
        "hash": digest,
        "reused": reused,
    }


def classes_present(scan: Scan) -> int:
    """How many classes have at least one example."""
    return int((scan.examples.label_counts(0) > 0).sum())


def examples_of_class(scan: Scan) -> dict[str, int]:
    """Examples of every class, all splits together, by its name, in label order."""
    counts = scan.examples.label_counts(len(scan.classes)).tolist()
    return dict(zip(scan.classes, counts, strict=True))
