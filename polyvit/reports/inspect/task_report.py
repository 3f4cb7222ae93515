"""What an inspection found in one task: counts, classes, distributions, doubles; as data.

In: the task's config, its scan, and a `Look` at each example that was read. Out: a `TaskReport`, from which
`inspection_findings` says what is wrong, and which pages and pictures show.
"""

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyvit.config import ModelInput, TaskConfig
from polyvit.data.index import SPLITS, Example, Problem, Scan
from polyvit.reports.inspect.examine import Facts

MEASURES = {
    "image": ("width", "height", "bytes"),
    "video": ("width", "height", "seconds", "fps", "frames", "bytes"),
    "audio": ("seconds", "sample_rate", "channels", "level_db", "bytes"),
}
"""The facts of a modality that are drawn as distributions."""
_IDS = {"kinetics": 11, "audioset": 11, "vggsound": 11}
"""Layouts whose file names begin with a YouTube id of so many letters."""


@dataclass(frozen=True)
class Look:
    """One example that was read: `digest` of its content (None: unreadable), `facts` if it was decoded too."""

    key: str
    path: str
    split: str
    labels: tuple[int, ...]
    digest: bytes | None = None
    facts: Facts | None = None


@dataclass(frozen=True)
class TaskReport:
    """One task. counts_KS: examples of each class in each of SPLITS. hashed, decoded: how many were.

    doubles: groups of examples with one content. shared_sources: sources (a video's id, a file that is cut into
    segments) that several splits have, with those splits.
    """

    name: str
    task: TaskConfig
    spec: ModelInput
    root: str
    classes: tuple[str, ...]
    problems: tuple[Problem, ...]
    examples: Mapping[str, int]
    counts_KS: np.ndarray
    multi_label: int
    looks: tuple[Look, ...]
    hashed: int
    doubles: tuple[tuple[Look, ...], ...]
    shared_sources: Mapping[str, tuple[str, ...]]

    @property
    def seen(self) -> list[Look]:
        """Examples that were decoded, or could not be."""
        return [look for look in self.looks if look.facts is not None]

    @property
    def broken(self) -> list[Look]:
        """Examples that could not be read or decoded."""
        return [look for look in self.seen if look.facts and look.facts.reason]

    def values(self, measure: str) -> np.ndarray:
        """A measure of every example that was decoded and has it."""
        known = [getattr(look.facts, measure) for look in self.seen if look.facts and not look.facts.reason]
        return np.array([value for value in known if value is not None], dtype=float)

    def document(self) -> dict[str, Any]:
        """As data, for `--json`."""
        columns = [int(n) for n in self.counts_KS.sum(axis=1)]
        return {
            "root": self.root,
            "modality": self.task.modality,
            **self.examples,
            "num_classes": self.task.num_classes,
            "classes_found": len(self.classes),
            "classes_present": sum(map(bool, columns)),
            "multi_label_examples": self.multi_label,
            "classes": {
                name: dict(zip(SPLITS, map(int, row), strict=True))
                for name, row in zip(self.classes, self.counts_KS, strict=True)
            },
            "left_out": dict(Counter(problem.kind for problem in self.problems)),
            "hashed": self.hashed,
            "decoded": len(self.seen),
            "broken": [
                {"key": look.key, "path": look.path, "split": look.split, "reason": look.facts.reason}
                for look in self.broken
                if look.facts
            ],
            "formats": dict(Counter(look.facts.form for look in self.seen if look.facts and look.facts.form)),
            "distributions": {
                name: distribution(values)
                for name in MEASURES[self.task.modality]
                if len(values := self.values(name))
            },
        }


def distribution(values: np.ndarray) -> dict[str, float]:
    """Smallest, 5 %, middle, 95 % and largest."""
    names = ("min", "p5", "median", "p95", "max")
    return {n: round(float(v), 4) for n, v in zip(names, np.percentile(values, (0, 5, 50, 95, 100)), strict=True)}


def report_task(
    name: str, task: TaskConfig, spec: ModelInput, root: str, found: Scan, looks: Iterable[Look]
) -> TaskReport:
    """Put together what a scan and the looks tell about a task; looks are sorted by split and key."""
    counts_KS = np.zeros((len(found.classes), len(SPLITS)), dtype=np.int64)
    sources: defaultdict[str, set[str]] = defaultdict(set)
    multi_label = 0
    examples: dict[str, int] = {}
    for column, split in enumerate(SPLITS):
        listed = found.split(split)
        examples[split] = len(listed)
        labels: Counter[int] = Counter()
        for example in listed:
            labels.update(example.labels)
            multi_label += len(example.labels) > 1
            if source := _source(task.layout, example):
                sources[source].add(split)
        for label, count in labels.items():
            counts_KS[label, column] = count
    order: dict[str, int] = {split: i for i, split in enumerate(SPLITS)}
    kept = sorted(looks, key=lambda look: (order[look.split], look.key))
    return TaskReport(
        name=name,
        task=task,
        spec=spec,
        root=root,
        classes=tuple(found.classes),
        problems=tuple(found.problems),
        examples=examples,
        counts_KS=counts_KS,
        multi_label=multi_label,
        looks=tuple(kept),
        hashed=sum(look.digest is not None for look in kept),
        doubles=same_content(kept),
        shared_sources={key: tuple(sorted(splits)) for key, splits in sorted(sources.items()) if len(splits) > 1},
    )


def _source(layout: str, example: Example) -> str | None:
    """What an example is a piece of: a YouTube video, or a file of which it is a segment; None: of nothing."""
    if layout in _IDS:
        return posixpath.basename(example.key)[: _IDS[layout]]
    return example.path if example.start > 0 or example.end >= 0 else None


def same_content(looks: Sequence[Look]) -> tuple[tuple[Look, ...], ...]:
    """Groups of examples whose bytes are the same, in their order."""
    groups: defaultdict[bytes, list[Look]] = defaultdict(list)
    for look in looks:
        if look.digest is not None:
            groups[look.digest].append(look)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def train_contents(reports: Mapping[str, TaskReport]) -> dict[bytes, str]:
    """Digest of each training example to the (first) task that has it."""
    found: dict[bytes, str] = {}
    for name, report in reports.items():
        for look in report.looks:
            if look.digest is not None and look.split == "train":
                found.setdefault(look.digest, name)
    return found
