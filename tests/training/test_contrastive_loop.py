"""A contrastive task in the training loop beside another: curves, evaluation, and resume to the bit."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from avbert_small import TINY, minibatch
from small import Heard

from polyvit.checkpoint.state import TrainState, TrainUnit
from polyvit.config import RunConfig, validate_config
from polyvit.data.loading import Minibatch
from polyvit.distributed import SingleProcess
from polyvit.model import build_model
from polyvit.schedule.schedule import Schedule, build_schedule
from polyvit.training.loop import train
from polyvit.training.optim import build_optimiser

pytestmark = pytest.mark.usefixtures("one_thread")


def config() -> RunConfig:
    changed: dict[str, Any] = copy.deepcopy(TINY)
    changed["tasks"]["one"] |= {"loss": "contrastive", "metric": "retrieval", "steps": 3}
    changed["tasks"]["two"] |= {"steps": 2}
    changed["optim"] = {"kind": "adamw", "amsgrad": True, "lr": 1e-2}
    changed["train"] = {"log_every": 1, "checkpoint_every": 2}
    return validate_config(changed)


class MadeUpFeed:
    """Minibatches that follow from the step."""

    def __init__(self, run: RunConfig, schedule: Schedule) -> None:
        self.run, self.schedule = run, schedule

    def train(self, start_step: int) -> Iterator[list[Minibatch]]:
        for step in range(start_step, len(self.schedule) + 1):
            yield [minibatch(self.run, task, step) for task, _ in self.schedule.tasks_at(step)]

    def evaluation(self) -> Iterator[Minibatch]:
        for task in self.run.tasks:
            yield minibatch(self.run, task, 99)


def run_from(unit: TrainUnit, state: TrainState, run: RunConfig) -> tuple[TrainState, Heard]:
    schedule, heard = build_schedule(run.schedule, run.tasks, run.seed), Heard()
    return train(unit, schedule, MadeUpFeed(run, schedule), run, SingleProcess(), state, heard), heard


def fresh(run: RunConfig) -> TrainUnit:
    model = build_model(run, seed=run.seed)
    return TrainUnit(model, build_optimiser(dict(model.named_parameters()), run.optim))


def test_a_run_that_was_stopped_ends_with_the_same_bits() -> None:
    """After step 2 a new process takes parameters, optimiser and running averages, and goes on."""
    run = config()
    whole, resumed = fresh(run), fresh(run)
    state, _ = run_from(whole, TrainState(), run)

    kept: dict[str, Any] = {}

    class Until2(Heard):
        def checkpoint(self, state: TrainState, last: bool) -> None:
            if state.global_step == 2:
                unit = first
                kept["model"] = {n: t.clone() for n, t in unit.model.state_dict().items()}
                kept["optimiser"] = {n: t.clone() for n, t in unit.optimiser.state().items()}

    first = fresh(run)
    schedule = build_schedule(run.schedule, run.tasks, run.seed)
    train(first, schedule, MadeUpFeed(run, schedule), run, SingleProcess(), TrainState(), Until2())
    resumed.model.load_state_dict(kept["model"])
    resumed.optimiser.load_state(kept["optimiser"])
    again, _ = run_from(resumed, TrainState(global_step=2), run)
    assert again.evaluations[-1] == state.evaluations[-1]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_curves_and_the_row_of_the_table() -> None:
    """The measures are in the curves of training and evaluation; the row's chance is the evaluation's."""
    run = config()
    state, heard = run_from(fresh(run), TrainState(), run)
    curves = {key for _, values in heard.points for key in values}
    for when in ("train", "eval"):
        names = ("retrieval_visual", "pair_accuracy", "negative_similarity")
        assert {f"{when}/one/{name}" for name in names} <= curves
    assert "train/two/retrieval_visual" not in curves
    result = state.evaluations[-1]["tasks"]["one"]
    assert 0 < result["chance"] < result["value"] + 1
    assert result["metric"] == "retrieval"
