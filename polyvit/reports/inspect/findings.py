"""What is wrong with the data, how bad it is, and what to do about it.

In: the `TaskReport` of every task. Out: `Finding`s, worst first. Severity `error`: a run will stop, or its scores
will mislead. `warning`: some examples are worth less than they seem. `note`: good to know.
"""

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from polyvit.config import RunConfig
from polyvit.data.index import SPLITS
from polyvit.reports.inspect.display import display_of
from polyvit.reports.inspect.examine import SILENT_DB, MediaInfo
from polyvit.reports.inspect.finding import SEVERITIES, Finding, Severity
from polyvit.reports.inspect.task_report import ExampleReport, TaskReport, train_contents

FEW = 5
"""Training examples below which a class is called rare."""
UNEVEN = 10.0
"""The most frequent class over the middle one, from which a task is called uneven."""
LEAK = 0.01
"""Share of held-out examples that are in another split too, from which scores mislead."""
SHOWN = 20
"""Examples that a finding names."""
_LEFT_OUT = {
    "missing": "Get them again, or take them off the list; a run goes on without them.",
    "label": "Correct the labels, or set tasks.{name}.classes to a file of class names in index order.",
    "broken": "Replace or delete them; a run goes on without them.",
    "duplicate": "List each once, in one split; the first of each counts.",
    "stream": "Nothing; or get copies that have both. tasks.{name}.streams says what the task reads.",
}


def find_problems(config: RunConfig, reports: Mapping[str, TaskReport]) -> list[Finding]:
    """All findings, worst first, then in the order of tasks and checks."""
    trained = train_contents(reports)
    findings = []
    for report in reports.values():
        findings += broken(report, config.data.max_bad_fraction)
        for check in _CHECKS:
            findings += check(report)
        findings += other_tasks(report, trained)
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


# ----------------------------------------------------------------------------------------- lists and labels


def left_out(report: TaskReport) -> list[Finding]:
    """Entries that the scan could not use, by kind."""
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for problem in report.problems:
        kinds[problem.kind].append(f"{problem.where}: {problem.reason}")
    words = {
        "missing": "listed, but not on disk",
        "label": "label that is unknown or malformed",
        "broken": "empty, or cannot be read",
        "duplicate": "key listed before, in this split or another",
        "stream": "without a sound track, or without pictures, which the task reads",
    }
    total = sum(report.examples.values())
    findings = []
    for kind, lines in kinds.items():
        severity: Severity = "error" if len(lines) > total else "warning"
        do = _LEFT_OUT[kind].format(name=report.name)
        if kind == "label" and (nearest := _nearest_class(lines, report.classes)):
            do = f"{nearest} {do}"
        says = f"{len(lines)} {_plural('example', lines)} left out: {words[kind]}"
        findings.append(
            Finding(report.name, severity, f"left out: {kind}", len(lines), says, do, tuple(lines[:SHOWN]))
        )
    return findings


def _nearest_class(lines: Sequence[str], classes: Sequence[str]) -> str:
    """The most frequent unknown label with the class that looks like it."""
    unknown = Counter(match[1] for line in lines if (match := re.search(r"unknown label '(.*)'$", line)))
    folded = {re.sub(r"[\W_]+", " ", name).lower().strip(): name for name in classes}
    for label, count in unknown.most_common(1):
        word = re.sub(r"[\W_]+", " ", label).lower().strip()
        if close := difflib.get_close_matches(word, folded, n=1, cutoff=0.75):
            return f"{label!r} ({count}x) may be class {folded[close[0]]!r}."
    return ""


def label_map(report: TaskReport) -> list[Finding]:
    """The classes of the data against those of the config."""
    name, task = report.name, report.task
    findings = []
    if report.multi_label and task.loss == "softmax":
        says = f"{report.multi_label} examples have several labels, and the loss is softmax"
        findings.append(Finding(name, "error", "multi-label", report.multi_label, says,
                             f"Set tasks.{name}.loss=sigmoid, and tasks.{name}.metric=map."))  # fmt: skip
    if task.classes is not None and len(report.classes) < task.num_classes:
        says = f"{task.classes} names {len(report.classes)} classes, the config has {task.num_classes}"
        do = f"Complete the file, or set tasks.{name}.num_classes={len(report.classes)}."
        findings.append(Finding(name, "warning", "class file", task.num_classes - len(report.classes), says, do))
    trained, held = report.counts_KS[:, 0] > 0, report.counts_KS[:, SPLITS.index(task.eval_split)] > 0
    if unseen := np.flatnonzero(held & ~trained).tolist():
        says = f"{len(unseen)} {_plural('class', unseen)} of {task.eval_split} without a training example"
        findings.append(_classes(report, "error", "unseen classes", unseen, says,
                              "Nothing can learn them: add training examples, or take them out."))  # fmt: skip
    unused = task.num_classes - int((trained | held).sum())
    if unused:
        empty = np.flatnonzero(~trained & ~held).tolist()
        says = f"{unused} of the {task.num_classes} classes of the config have no example here"
        do = "Fine for a part of a dataset; else data are missing, or num_classes is too large."
        findings.append(_classes(report, "note", "empty classes", empty, says, do, unused))
    if absent := np.flatnonzero(trained & ~held).tolist():
        says = f"{len(absent)} {_plural('class', absent)} of train not in {task.eval_split}"
        findings.append(_classes(report, "note", "not evaluated", absent, says,
                              "Their quality stays unknown."))  # fmt: skip
    return findings


def balance(report: TaskReport) -> list[Finding]:
    """Rare and frequent classes of the training split."""
    counts_K = report.counts_KS[:, 0]
    present = counts_K[counts_K > 0]
    if len(present) < 2:
        return []
    findings = []
    if rare := np.flatnonzero((counts_K > 0) & (counts_K < FEW)).tolist():
        says = f"{len(rare)} {_plural('class', rare)} with fewer than {FEW} training examples"
        findings.append(_classes(report, "warning", "rare classes", rare, says,
                              "Expect little of them; add examples, or take them out."))  # fmt: skip
    most, middle = int(present.max()), float(np.median(present))
    if most >= UNEVEN * middle:
        first = report.classes[int(counts_K.argmax())]
        share = most / max(1, report.examples["train"])
        says = f"uneven: {first!r} has {most} training examples, the middle class {middle:g}"
        do = f"Naming it always scores about {share:.0%}; read scores against that."
        findings.append(Finding(report.name, "note", "uneven", most, says, do))
    return findings


def _classes(
    report: TaskReport, severity: Severity, kind: str, which: Sequence[int], says: str, do: str, count: int = 0
) -> Finding:
    named = tuple(report.classes[k] for k in which[:SHOWN])
    return Finding(report.name, severity, kind, count or len(which), says, do, named)


# ------------------------------------------------------------------------------------------------ content


def leaks(report: TaskReport) -> list[Finding]:
    """The same bytes in two splits, twice in one, or under two labels."""
    across, within, torn = [], 0, []
    for group in report.duplicates:
        if len({example.split for example in group}) > 1:
            across.append(group)
        within += sum(n - 1 for n in Counter(example.split for example in group).values())
        if len({example.labels for example in group}) > 1:
            torn.append(group)
    findings = []
    if across:
        later = sum(sum(example.split != "train" for example in group) for group in across)
        held = sum(example.split != "train" for example in report.examples_read if example.digest is not None)
        severity: Severity = "error" if later >= LEAK * held else "warning"
        says = f"also in another split, byte for byte: {later} of {held} held-out examples"
        do = "Take them out of one of the splits: scores on what was trained on are too high."
        findings.append(Finding(report.name, severity, "leak", later, says, do, _groups(across)))
    if torn:
        says = f"{len(torn)} {_plural('file', torn)} (by content) listed under different labels"
        do = "Keep one label; for several at once use a multi-label list and loss=sigmoid."
        findings.append(Finding(report.name, "warning", "two labels", len(torn), says, do, _groups(torn)))
    if within:
        says = f"{within} {_plural('example', within)} repeated within a split, byte for byte"
        same = [group for group in report.duplicates if len({example.split for example in group}) < len(group)]
        do = "Delete the copies; each counts again in training and in scores."
        findings.append(Finding(report.name, "warning", "repeated", within, says, do, _groups(same)))
    return findings


def shared_sources(report: TaskReport) -> list[Finding]:
    """Pieces of one video or recording in several splits."""
    if not report.shared_sources:
        return []
    count = len(report.shared_sources)
    lines = [f"{source}: {', '.join(splits)}" for source, splits in report.shared_sources.items()]
    says = f"{count} {_plural('source', lines)} with pieces in more than one split"
    do = "Keep all pieces of one video or recording in one split; scores may be too high."
    return [Finding(report.name, "warning", "shared source", count, says, do, tuple(lines[:SHOWN]))]


def other_tasks(report: TaskReport, trained: Mapping[bytes, str]) -> list[Finding]:
    """Held-out examples that another task trains on: co-training sees them too."""
    split = report.task.eval_split
    held = [
        (example, trained.get(example.digest or b"")) for example in report.examples_read if example.split == split
    ]
    hits = [(example, other) for example, other in held if other not in (None, report.name)]
    if not hits:
        return []
    others = ", ".join(sorted({str(other) for _, other in hits}))
    says = f"{len(hits)} {_plural('example', hits)} of {split} are training examples of {others}"
    do = "Take them out there: co-training sees them, so this task's scores may be too high."
    lines = tuple(f"{example.path} (trained in {other})" for example, other in hits[:SHOWN])
    return [Finding(report.name, "warning", "leak to a task", len(hits), says, do, lines)]


def broken(report: TaskReport, most: float) -> list[Finding]:
    """Examples that cannot be decoded; an error where a run would stop for them."""
    bad, seen = report.broken, len(report.examined)
    if not bad:
        return []
    share = len(bad) / seen
    reasons = Counter(_reason(example) for example in bad)
    first = "; ".join(f"{reason} ({n})" for reason, n in reasons.most_common(2))
    says = f"{len(bad)} of {seen} looked at cannot be decoded: {first}"
    do = "Replace or delete them; a run puts others in their place."
    severity: Severity = "warning"
    if share > most:
        severity = "error"
        do = f"Replace or delete them: a run stops above data.max_bad_fraction={most:g}, here it is {share:.2g}."
    lines = tuple(f"{example.path}: {_reason(example)}" for example in bad[:SHOWN])
    return [Finding(report.name, severity, "broken", len(bad), says, do, lines)]


def _reason(example: ExampleReport) -> str:
    return example.info.reason if example.info else ""


def empty_content(report: TaskReport) -> list[Finding]:
    """Media that can be decoded, but are silent, of one colour, or still."""
    checks: list[tuple[str, str, str, Callable[[MediaInfo], bool]]] = [
        ("silent", f"silent (RMS below {SILENT_DB:g} dBFS)", "A silent recording teaches its label to silence:"
         " delete them, or look for a broken export.", lambda info: info.silent),
        ("one colour", "of one colour, or black", "Placeholders of a failed download? Delete them.",
         lambda info: info.flat),
        ("still", "the same frame all along", "No motion to learn from; look for a broken export.",
         lambda info: info.still is True and not info.flat),
    ]  # fmt: skip
    findings = []
    for kind, words, do, test in checks:
        if hits := [example for example in report.decoded if example.info and test(example.info)]:
            says = f"{len(hits)} of {len(report.examined)} looked at: {words}"
            lines = tuple(example.path for example in hits[:SHOWN])
            findings.append(Finding(report.name, "warning", kind, len(hits), says, do, lines))
    return findings


# --------------------------------------------------------------------------------- against the model's input


def fit(report: TaskReport) -> list[Finding]:
    """Media that do not fit the model's input: too small, too large, too short."""
    display = display_of(report.spec)
    return display.fit(report) if display else []


_CHECKS: tuple[Callable[[TaskReport], list[Finding]], ...] = (
    leaks, label_map, left_out, empty_content, shared_sources, balance, fit,
)  # fmt: skip


def _groups(groups: Iterable[Sequence[ExampleReport]]) -> tuple[str, ...]:
    return tuple(
        " = ".join(f"{example.split}: {example.path}" for example in group) for group in list(groups)[:SHOWN]
    )


def _plural(word: str, things: Sequence[object] | int) -> str:
    count = things if isinstance(things, int) else len(things)
    return word if count == 1 else word + ("es" if word.endswith("s") else "s")
