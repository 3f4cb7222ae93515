"""How far each task's own steps moved the weights that tasks share (`train.drift`).

In: the parameters before and after each update, and the task that was trained. Out: for each task and group of
parameters the sum of its updates: its norm, and its cosine with the sum over all tasks, which is how far the
weights moved in all. A step's update is what the optimiser did at it: with the momentum of earlier steps and
weight decay.

Sums stay on the device until they are asked for, and nothing in a step waits for it. Of a group with more than
`interference.COORDINATES` parameters a fixed random sample of so many is followed, and norms are scaled up.
Legend: C coordinates of a group.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polyvit.config import RunConfig
from polyvit.model import MultiTaskModel
from polyvit.training.interference import COORDINATES, group_of, sample_of

logger = logging.getLogger(__name__)
SIZES = "parameters"
"""Where a state keeps the sizes of groups: `parameters/GROUP`."""


class Drift:
    """The accounts of a run; parameters are whole on every rank, and so the accounts are the same there.

    It follows the groups of parameters that at least two tasks reach.
    """

    def __init__(self, model: MultiTaskModel) -> None:
        groups = _followed(model)
        self.picks = {group: _picks(group, parameters) for group, parameters in groups.items()}
        self.sizes = {group: sum(p.numel() for p in parameters) for group, parameters in groups.items()}
        self.sums = {
            task: {group: torch.zeros_like(self._now(group)) for group in groups} for task in model.modality
        }
        self.last: dict[str, Tensor] | None = None

    def _now(self, group: str) -> Tensor:
        """[C] what is followed of a group."""
        flat = [(p.detach().reshape(-1), pick) for p, pick in self.picks[group]]
        return torch.cat([values if pick is None else values[pick] for values, pick in flat])

    def before(self) -> None:
        """Before a step's update: at the first step of a process, take the parameters as they are."""
        if self.last is None:
            self.last = {group: self._now(group) for group in self.picks}

    def after(self, task: str) -> None:
        """After the update of a task's step: put it to the task's account."""
        assert self.last is not None
        for group, last in self.last.items():
            now = self._now(group)
            self.sums[task][group] += now - last
            self.last[group] = now

    def points(self) -> dict[str, float]:
        """Of a run's curves: `drift/TASK/norm` and `drift/TASK/cosine` over all shared blocks."""
        rows = drift_by_task(self.state())["tasks"]
        return {
            f"drift/{task}/{key}": value
            for task, row in rows.items() for key, value in row.items() if value is not None
        }  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """Named tensors for a checkpoint: `TASK/GROUP` [C], and the number of parameters, `parameters/GROUP`."""
        sums = {f"{task}/{group}": x for task, of_group in self.sums.items() for group, x in of_group.items()}
        return sums | {f"{SIZES}/{group}": torch.tensor(size) for group, size in self.sizes.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for task, of_group in self.sums.items():
            for group, x in of_group.items():
                x.copy_(state[f"{task}/{group}"])
        self.last = None


def drift_bytes(model: MultiTaskModel, config: RunConfig) -> int:
    """Memory of the accounts on each worker: what is followed of each group, once for each task and once as it was
    before the step. 0 without `train.drift`."""
    if not config.train.drift:
        return 0
    sizes = (sum(p.numel() for p in parameters) for parameters in _followed(model).values())
    return 4 * sum(min(size, COORDINATES) for size in sizes) * (len(config.tasks) + 1)


def _followed(model: MultiTaskModel) -> dict[str, list[nn.Parameter]]:
    """Parameters that at least two tasks reach, by group."""
    reached = [model.touched(task) for task in model.modality]
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if sum(name in each for each in reached) > 1:
            groups.setdefault(group_of(name), []).append(parameter)
    return groups


def _picks(group: str, parameters: list[nn.Parameter]) -> list[tuple[nn.Parameter, Tensor | None]]:
    """The parameters of a group, each with the coordinates of it that are followed; None: all of them."""
    pick = sample_of(group, sum(p.numel() for p in parameters))
    if pick is None:
        return [(p, None) for p in parameters]
    picks: list[tuple[nn.Parameter, Tensor | None]] = []
    first = 0
    for p in parameters:
        inside = pick[(pick >= first) & (pick < first + p.numel())] - first
        picks.append((p, inside.to(p.device)))
        first += p.numel()
    return picks


def drift_by_task(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the accounts of a `Drift.state` say, as data.

    `tasks`: by task, over all shared blocks, `norm` of its summed updates and `cosine` with their sum over tasks
    (None where one is 0). `groups`: `parameters`, `measured`, `norm` of the whole movement, `tasks` as above.
    """
    sizes = {key.removeprefix(f"{SIZES}/"): int(x) for key, x in state.items() if key.startswith(f"{SIZES}/")}
    sums: dict[str, dict[str, Tensor]] = {}
    for key, x in state.items():
        task, _, group = key.rpartition("/")
        if task != SIZES:
            sums.setdefault(task, {})[group] = x
    blocks = [group for group in sizes if group.startswith("shared.blocks.")] or list(sizes)
    squares = {
        group: _squares([of_group[group] for of_group in sums.values()], size) for group, size in sizes.items()
    }
    return {
        "tasks": dict(zip(sums, _rows(sum(squares[group] for group in blocks)), strict=True)),
        "groups": {
            group: {
                "parameters": sizes[group],
                "measured": len(next(iter(sums.values()))[group]),
                "norm": float(square[0, 2]) ** 0.5,
                "tasks": dict(zip(sums, _rows(square), strict=True)),
            }
            for group, square in squares.items()
        },
    }


def _squares(sums: list[Tensor], size: int) -> Tensor:
    """[T, 3] of each task's sum of updates: its square, its product with the sum over tasks, that sum's square; of
    all parameters of the group."""
    sums_TC = torch.stack(sums).double()
    whole_C = sums_TC.sum(0)
    columns = [sums_TC.square().sum(1), sums_TC @ whole_C, whole_C.square().sum().expand(len(sums))]
    return torch.stack(columns, 1).cpu() * (size / sums_TC.shape[1])


def _rows(squares_T3: Any) -> list[dict[str, float | None]]:
    return [
        {"norm": own**0.5, "cosine": product / (own * whole) ** 0.5 if own and whole else None}
        for own, product, whole in squares_T3.tolist()
    ]


def build_drift(model: MultiTaskModel, config: RunConfig) -> Drift | None:
    """Of a new run; None where `train.drift` is not set and, with a warning, where no two tasks share weights."""
    drift = Drift(model) if config.train.drift else None
    if drift and not drift.sizes:
        logger.warning("train.drift: no two tasks of this run train the same weights; no account is kept")
        return None
    return drift
