"""How each run of a comparison looks in all its pictures: colour, dash, words.

In: a `Comparison`. Out: colours, dashes and labels by the run's name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from polyvit.reports.compare.comparison import Comparison
from polyvit.reports.compare.settings import SCHEDULE, SEED, key_words
from polyvit.reports.style import OTHER, PALETTE

SCHEDULE_COLOURS = {
    "weighted": PALETTE[0], "uniform": PALETTE[4], "alternating": PALETTE[2], "task_by_task": PALETTE[1],
    "accumulating": PALETTE[3], "adaptive": PALETTE[5],
}  # fmt: skip
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
METRIC_WORDS = {"top1": "top-1", "map": "mAP", "retrieval": "retrieval", "pair_accuracy": "pairs"}


def run_styles(comparison: Comparison) -> dict[str, tuple[str, Any]]:
    """A colour and a dash for each run by name: the same in all pictures, and for runs that differ in seed alone.

    The first key with few enough values decides the colour, and the other keys decide the dash. Where that cannot
    tell the runs apart, the best settings get a colour each and the others are grey.
    """
    names = [run.name for run in comparison.runs]
    settings = {name: settings_words(comparison, name) for name in names}
    for key in [key for key in comparison.keys if key != SEED] or list(comparison.keys):
        values = comparison.keys[key]
        kinds = list(dict.fromkeys(map(str, values.values())))
        rests = {name: settings_words(comparison, name, key) for name in names}
        order = sorted(set(rests.values()))
        looks = {(str(values[name]), rests[name]) for name in names}
        apart = len(looks) == len({(str(values[name]), rests[name], settings[name]) for name in names})
        if len(kinds) <= len(PALETTE) and len(order) <= len(DASHES) and apart:
            known = colours_of(key, kinds)
            return {n: (known[str(values[n])], DASHES[order.index(rests[n])]) for n in names}
    kinds = list(dict.fromkeys(settings.values()))
    colours = dict(zip(kinds, [*PALETTE, *[OTHER] * len(kinds)], strict=False))
    return {name: (colours[settings[name]], "-") for name in names}


def colours_of(key: str, kinds: Sequence[str]) -> Mapping[str, str]:
    """The colour of each value of a key; a schedule has the same one in every comparison. kinds: at most as many
    as `PALETTE` has."""
    return SCHEDULE_COLOURS if key == SCHEDULE else dict(zip(kinds, PALETTE, strict=False))


def settings_words(comparison: Comparison, name: str, key: str | None = None) -> str:
    """A run's label without the seed and without the words for `key`; the seed stays where nothing else would."""
    parts = comparison.labels[name].split(", ")
    left_out = {key_words(k, comparison.keys[k][name]) for k in (SEED, key) if k in comparison.keys}
    kept = ", ".join(part for part in parts if part not in left_out)
    return kept if kept or key else comparison.labels[name]


def two_lines(task: str) -> str:
    """A long name over two lines, at an underscore."""
    head, _, tail = task.partition("_")
    return f"{head}\n{tail}" if tail and len(task) > 11 else task
