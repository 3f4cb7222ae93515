"""Which task a schedule trains at which step, for a look at it without a config."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from polyvit.config import ImageTask, ScheduleConfig
from polyvit.errors import UserError
from polyvit.schedule import Schedule, build_schedule


@dataclass(frozen=True)
class TaskOrder(Sequence[str]):
    """The task of every step: a sequence of names, step 1 first; of `accumulating` all names, joined by " + ".

    schedule: what a run of the same seed follows.
    """

    schedule: Schedule

    @property
    def counts(self) -> dict[str, int]:
        """Minibatches of each task."""
        return self.schedule.counts()

    @property
    def shares(self) -> dict[str, float]:
        """The part of all minibatches that is each task's, 0 to 1."""
        total = sum(self.counts.values())
        return {name: count / total for name, count in self.counts.items()}

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        step = range(1, len(self) + 1)[index]
        return " + ".join(name for name, _ in self.schedule.tasks_at(step))

    def __repr__(self) -> str:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in self.shares.items())
        return f"TaskOrder({self.schedule.kind}, {len(self)} steps: {shares})"


def task_schedule(
    kind: str, updates: Mapping[str, int], steps: int | None = None, seed: int = 0, **options: Any
) -> TaskOrder:
    """The sequence of tasks that a schedule gives: `task_schedule("weighted", {"pets": 150, "kinetics400": 240})`.

    kind: weighted, uniform, alternating, task_by_task or accumulating (docs/training.md). updates: the SGD steps
    of each task alone, U_j, which decide the shares. steps: minibatches in all; None: the sum of the updates.
    seed: of the run. options: other keys of the config's `schedule` section, such as replacement=True.

    Raises UserError for a kind, an option or a number that a config does not allow.
    """
    if wrong := [
        name for name, number in updates.items() if not isinstance(number, int | np.integer) or number < 1
    ]:
        raise UserError(f"updates[{wrong[0]!r}] is {updates[wrong[0]]!r}; give steps of each task, 1 or more")
    if kind == "adaptive":
        raise UserError("kind='adaptive' is decided at the evaluations of a run; see schedule.png of one")
    if not updates:
        raise UserError('updates is empty; give steps of each task, such as {"pets": 150, "audioset": 200}')
    try:
        section = ScheduleConfig(kind=kind, steps=steps, **options)  # type: ignore[arg-type]
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise UserError("the schedule has problems:", problems) from None
    tasks = {
        name: ImageTask(layout="imagefolder", num_classes=1, steps=int(number), batch=1)
        for name, number in updates.items()
    }
    return TaskOrder(build_schedule(section, tasks, seed))
