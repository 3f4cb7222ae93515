"""What is in one task's data: counts, classes, distributions, duplicates.

In: the task's config, its scan, and an `ExampleReport` of each example that was read. Out: a `TaskReport`, from
which `findings` says what is wrong, and which the pages and pictures show.
"""

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyvit.config import InputSection, TaskConfig
from polyvit.data.index import SPLITS, Example, Problem, Scan
from polyvit.reports.inspect.examine import MediaInfo

MEASURES = {
    "image": ("width", "height", "bytes"),
    "video": ("width", "height", "seconds", "fps", "frames", "bytes"),
    "audio": ("seconds", "sample_rate", "channels", "level_db", "bytes"),
    "audiovisual": ("width", "height", "seconds", "fps", "frames", "sample_rate", "channels", "level_db", "bytes"),
}
"""The fields of `MediaInfo` that are drawn as distributions, by modality."""
_IDS = {"kinetics": 11, "kinetics_sounds": 11, "audioset": 11, "vggsound": 11}
"""Layouts whose file names begin with a YouTube id of so many letters."""


@dataclass(frozen=True)
class ExampleReport:
    """One example that was read. digest: of its content; None: unreadable. info: None where it was only hashed."""

    key: str
    path: str
    split: str
    labels: tuple[int, ...]
    digest: bytes | None = None
    info: MediaInfo | None = None


@dataclass(frozen=True)
class TaskReport:
    """One task. counts_KS: int64, examples of each of K classes in each of SPLITS. hashed: how many examples were.

    duplicates: groups of examples with one content. shared_sources: sources (a video's id, a file that is cut into
    segments) that several splits have, with those splits.
    """

    name: str
    task: TaskConfig
    spec: InputSection
    root: str
    classes: tuple[str, ...]
    problems: tuple[Problem, ...]
    examples: Mapping[str, int]
    counts_KS: np.ndarray
    multi_label: int
    examples_read: tuple[ExampleReport, ...]
    hashed: int
    duplicates: tuple[tuple[ExampleReport, ...], ...]
    shared_sources: Mapping[str, tuple[str, ...]]

    @property
    def examined(self) -> list[ExampleReport]:
        """Examples that were to be decoded, with those that could not be."""
        return [example for example in self.examples_read if example.info is not None]

    @property
    def decoded(self) -> list[ExampleReport]:
        """Examples that were decoded without a complaint."""
        return [example for example in self.examined if example.info and not example.info.reason]

    @property
    def broken(self) -> list[ExampleReport]:
        """Examples that could not be read or decoded."""
        return [example for example in self.examined if example.info and example.info.reason]

    def values(self, measure: str) -> np.ndarray:
        """float64 [n]: a measure of the n examples that were decoded and have it."""
        known = [getattr(example.info, measure) for example in self.decoded]
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
            "decoded": len(self.examined),
            "broken": [
                {"key": example.key, "path": example.path, "split": example.split, "reason": example.info.reason}
                for example in self.broken
                if example.info
            ],
            "formats": dict(
                Counter(example.info.form for example in self.examined if example.info and example.info.form)
            ),
            "distributions": {
                name: distribution(values)
                for name in MEASURES[self.task.modality]
                if len(values := self.values(name))
            },
        }


def distribution(values: np.ndarray) -> dict[str, float]:
    """Smallest, 5 %, middle, 95 % and largest of `values`, float [n] with n > 0."""
    names = ("min", "p5", "median", "p95", "max")
    return {n: round(float(v), 4) for n, v in zip(names, np.percentile(values, (0, 5, 50, 95, 100)), strict=True)}


def report_task(
    name: str, task: TaskConfig, spec: InputSection, root: str, scan: Scan, examples_read: Iterable[ExampleReport]
) -> TaskReport:
    """Put together what the scan and the examples that were read tell about a task.

    name, task, spec, root: the task, its config, the model's input for it, and where its data lie. scan: its
    index. examples_read: in any order; the report has them by split and key.
    """
    counts_KS = np.zeros((len(scan.classes), len(SPLITS)), dtype=np.int64)
    sources: defaultdict[str, set[str]] = defaultdict(set)
    multi_label = 0
    examples: dict[str, int] = {}
    for column, split in enumerate(SPLITS):
        in_split = scan.split(split)
        examples[split] = len(in_split)
        labels: Counter[int] = Counter()
        for example in in_split:
            labels.update(example.labels)
            multi_label += len(example.labels) > 1
            if source := _source(task.layout, example):
                sources[source].add(split)
        for label, count in labels.items():
            counts_KS[label, column] = count
    order: dict[str, int] = {split: i for i, split in enumerate(SPLITS)}
    kept = sorted(examples_read, key=lambda example: (order[example.split], example.key))
    return TaskReport(
        name=name,
        task=task,
        spec=spec,
        root=root,
        classes=tuple(scan.classes),
        problems=tuple(scan.problems),
        examples=examples,
        counts_KS=counts_KS,
        multi_label=multi_label,
        examples_read=tuple(kept),
        hashed=sum(example.digest is not None for example in kept),
        duplicates=same_content(kept),
        shared_sources={key: tuple(sorted(splits)) for key, splits in sorted(sources.items()) if len(splits) > 1},
    )


def _source(layout: str, example: Example) -> str | None:
    """What an example is a piece of: a YouTube video, or a file of which it is a segment; None: of nothing."""
    if layout in _IDS:
        return posixpath.basename(example.key)[: _IDS[layout]]
    return example.path if example.start > 0 or example.end >= 0 else None


def same_content(examples: Sequence[ExampleReport]) -> tuple[tuple[ExampleReport, ...], ...]:
    """Groups of examples whose bytes are the same, in their order."""
    groups: defaultdict[bytes, list[ExampleReport]] = defaultdict(list)
    for example in examples:
        if example.digest is not None:
            groups[example.digest].append(example)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def train_contents(reports: Mapping[str, TaskReport]) -> dict[bytes, str]:
    """Digest of each training example to the (first) task that has it."""
    task_of: dict[bytes, str] = {}
    for name, report in reports.items():
        for example in report.examples_read:
            if example.digest is not None and example.split == "train":
                task_of.setdefault(example.digest, name)
    return task_of
