"""One finding about the data, as the checks of `findings.py` and of the displays give it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One finding about one task.

    kind: a word to sort by. count: of examples or classes. says: what is wrong. do: what to do about it.
    """

    task: str
    severity: Severity
    kind: str
    count: int
    says: str
    do: str
    examples: tuple[str, ...] = ()


def note_if_many(name: str, kind: str, hits: np.ndarray, words: str, do: str) -> list[Finding]:
    """A note about task `name`, where it concerns a tenth of the examples or more.

    kind, do: see `Finding`. hits: bool [n], one for each example examined. words: what is wrong with them.
    """
    count = int(hits.sum())
    if not count or count < 0.1 * len(hits):
        return []
    return [Finding(name, "note", kind, count, f"{count} of {len(hits)} looked at: {words}", do)]
