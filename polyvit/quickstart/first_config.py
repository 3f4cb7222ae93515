"""A config for one's own data, written from what the folders hold: `polyvit init`.

In: folders. Out: a commented YAML file that `polyvit plan` takes, and what was not recognised.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from polyvit.config import load_config
from polyvit.config.paper_tasks import KNOWN_TASKS
from polyvit.errors import UserError
from polyvit.quickstart.recognise import TaskGuess, recognise

BATCH = {"image": 64, "video": 16, "audio": 32}
EPOCHS, FEWEST, MOST = 10, 50, 2000
"""A task's steps: this many passes over its data, within these bounds."""
SHOWN_CLASSES = 8


@dataclass(frozen=True)
class FirstConfig:
    """path: the file. tasks: by name. unknown: a sentence for each folder that was not recognised."""

    path: Path
    tasks: dict[str, TaskGuess]
    unknown: tuple[str, ...]

    def __repr__(self) -> str:
        lines = [f"{name}: {summary(guess)}" for name, guess in self.tasks.items()]
        return "\n".join([f"FirstConfig({str(self.path)!r})", *lines, *(f"not taken: {u}" for u in self.unknown)])


def init(*folders: str | Path, out: str | Path = "mine.yaml") -> FirstConfig:
    """Look at folders of data, guess their tasks, and write a config: `init("pair/shapes", "pair/sounds")`.

    folders: data sets, or folders that hold several. out: the YAML file to write, which must not be there.

    Raises UserError where nothing is recognised, where a folder is missing, and where `out` exists or cannot be
    written.
    """
    out = Path(out)
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"{out}: a config's name ends in .yaml")
    if out.exists():
        raise UserError(f"{out} exists, and is left as it is; give another name, or move it away")
    if not folders:
        raise UserError("give one or more folders of data")
    tasks: dict[str, TaskGuess] = {}
    unknown: list[str] = []
    for folder in folders:
        if "://" in str(folder):
            raise UserError(f"{folder}: init looks at folders of this machine; of a bucket see docs/data.md")
        seen = recognise(Path(folder).expanduser())
        unknown += seen.unknown
        for guess in seen.tasks:
            tasks[_name(guess, tasks)] = guess
    if not tasks:
        raise UserError("no data set was recognised, and no config is written:", unknown)
    try:
        out.write_text(config_text(tasks, unknown, [str(folder) for folder in folders]))
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error}); give another path") from None
    load_config(str(out))
    return FirstConfig(out, tasks, tuple(unknown))


def summary(guess: TaskGuess) -> str:
    """Counts and classes in a line."""
    counts = ", ".join(f"{count:,} {split}" for split, count in guess.counts.items() if count)
    names = "; ".join(name.partition(",")[0] for name in guess.classes[:SHOWN_CLASSES])
    more = f" and {len(guess.classes) - SHOWN_CLASSES} more" if len(guess.classes) > SHOWN_CLASSES else ""
    several = ", several a file" if guess.multi_label else ""
    left_out = f"; {guess.left_out:,} listed files cannot be used" if guess.left_out else ""
    named = f": {names}{more}" if names else ""
    return f"{guess.modality}, {guess.layout}; {counts}{left_out}; {guess.num_classes:,} classes{several}{named}"


def config_text(tasks: dict[str, TaskGuess], unknown: Sequence[str], folders: Sequence[str]) -> str:
    """The YAML file."""
    lines = [
        f"# Written by `polyvit init {' '.join(folders)}`. Look it over, then: polyvit plan, inspect, cotrain.",
        "# Every key: `polyvit config keys`, or docs/reference/config.md.",
        "extends: tiny-nine          # a small model and optimiser; `polyvit recipes` lists larger ones",
        "tasks:",
    ]
    for name, guess in tasks.items():
        lines += [f"  # {summary(guess)}", f"  {_yaml(name)}:", *(f"    {line}" for line in _task_lines(guess))]
    lines += [f"# Not recognised: {_one_line(sentence)}" for sentence in unknown]
    return "\n".join(lines) + "\n"


def _task_lines(guess: TaskGuess) -> list[str]:
    train = guess.counts["train"]
    batch = max(1, min(BATCH[guess.modality], train))
    steps = min(MOST, max(FEWEST, EPOCHS * train // batch))
    split = "validation" if guess.counts["validation"] else "test" if guess.counts["test"] else "train"
    passes = steps * batch / max(1, train)
    lines = [
        f"modality: {guess.modality}",
        f"layout: {guess.layout}",
        f"root: {_yaml(str(guess.root))}",
        f"num_classes: {guess.num_classes}",
    ]
    if guess.multi_label:
        lines += ["loss: sigmoid               # several classes a file", "metric: map"]
    lines += [f"steps: {steps:<20} # SGD steps, {passes:.0f} passes over the data; more for a final model"]
    lines += [f"batch: {batch:<20} # examples of one step", f"eval_split: {split}"]
    if guess.options:
        lines += [f"options: {_yaml(guess.options)}"]
    return lines


def _name(guess: TaskGuess, taken: dict[str, Any]) -> str:
    """A task's name: the folder's, but for what PyTorch, a known task of other data or another folder has."""
    name = re.sub(r"\W+", "_", guess.root.absolute().name).strip("_") or "task"
    known = KNOWN_TASKS.get(name, {})
    if hasattr(nn.ModuleDict(), name) or (known and known.get("layout") != guess.layout):
        name += "_task"
    number = next(n for n in range(1, len(taken) + 2) if (name if n == 1 else f"{name}_{n}") not in taken)
    return name if number == 1 else f"{name}_{number}"


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _one_line(text: str) -> str:
    return " ".join(text.split())
