"""torch.compile of the blocks: all graphs before the first step, none after it; the same numbers."""

import copy
import shutil
from collections.abc import Iterator

import pytest
import torch
from small import ArrayFeed, Heard, fresh, small_config
from torch._dynamo.utils import counters

from polyvit.checkpoint.state import TrainState, TrainUnit
from polyvit.config import RunConfig
from polyvit.data.loading.minibatch import Minibatch
from polyvit.evaluation import evaluate
from polyvit.model.polyvit import PolyViT
from polyvit.training.loop import train
from polyvit.training.optim import Optimiser
from polyvit.training.step import SingleProcess, StepResult, train_step
from polyvit.training.warm_up import compile_ahead, compiled_graphs

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def all_tasks(config: RunConfig, size: int = 1) -> list[list[Minibatch]]:
    """One step of every task, as every rank of a world has it: parts of several sizes."""
    schedule = fresh(config)[2]
    steps = [int(schedule.steps_of(task)[0]) for task in config.tasks]
    feeds = [ArrayFeed(config, rank, size) for rank in range(size)]
    return [[feed.minibatch(b) for b in feed.plan.at(n, feed.rank, size)] for feed in feeds for n in steps]


def run(config: RunConfig, whole: list[list[Minibatch]], backend: str | None) -> list[StepResult]:
    model, optimiser, _ = fresh(config)
    model.activation_checkpointing = config.train.activation_checkpointing
    if backend:
        model.compile_blocks(backend)
    return [train_step(model, optimiser, minibatches, 0.1, config, SingleProcess()) for minibatches in whole]


def compiled(config: RunConfig) -> tuple[PolyViT, Optimiser]:
    model, optimiser, _ = fresh(config)
    model.activation_checkpointing = config.train.activation_checkpointing
    model.compile_blocks("aot_eager")
    return model, optimiser


ALIKE = ("tasks.word.batch=8", "tasks.sound.batch=8", "tasks.word.drop_path=0.1")
"""Both tasks of audio in batches of one size, with stochastic depth, as in the official recipe."""


@pytest.mark.parametrize(
    "keys", [(), pytest.param(("train.activation_checkpointing=true",), marks=pytest.mark.slow)]
)
def test_one_graph_a_modality_and_grad_mode(keys: tuple[str, ...]) -> None:
    """All are there before the first step; training, evaluation and a short last minibatch add none."""
    config = small_config(*ALIKE, *keys)
    model, optimiser = compiled(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    said: list[str] = []
    assert compile_ahead(model, config, SingleProcess(), {}, said.append) == graphs() == 2 * 3
    assert said[0] == "compiling 1 of 6: picture, 7 examples ..."
    assert len(said) == 6
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    for minibatches in all_tasks(config):
        train_step(model, optimiser, minibatches, 0.1, config, SingleProcess())
    evaluate(model, ArrayFeed(config).evaluation(), config, SingleProcess())  # 10 examples, of at most 64
    assert graphs() == compiled_graphs() == 6
    assert not counters["graph_break"]


@pytest.mark.slow
def test_microbatches_and_ranks_have_their_forms_ahead() -> None:
    """Parts of uneven size: each is compiled before the first step on the rank that has it."""
    config = small_config("train.microbatch=4")
    for rank in (0, 1):
        torch._dynamo.reset()
        counters.clear()
        model, optimiser = compiled(config)
        world = Twin(rank)
        ahead = compile_ahead(model, config, world, {})
        for minibatches in [[ArrayFeed(config, rank, 2).minibatch(b) for b in step] for step in
                            (ArrayFeed(config, rank, 2).plan.at(n, rank, 2) for n in range(1, 19))]:  # fmt: skip
            train_step(model, optimiser, minibatches, 0.1, config, world)
        assert ahead == graphs()


class Twin(SingleProcess):
    """One of two ranks whose other rank has nothing to add."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank


def test_a_run_says_how_often_it_compiled_again() -> None:
    """None after the warm-up; without one, what the first steps compile."""
    config = small_config(*ALIKE, "train.log_every=18")
    for ahead, number in ((True, 0.0), (False, 3.0)):
        torch._dynamo.reset()
        counters.clear()
        model, optimiser = compiled(config)
        heard = Heard()
        if ahead:
            compile_ahead(model, config, SingleProcess(), {})
        schedule = fresh(config)[2]
        train(
            TrainUnit(model, optimiser), schedule, ArrayFeed(config), config, SingleProcess(), TrainState(), heard
        )
        assert heard.points[-1][1]["pace/recompilations"] == number


def test_nothing_is_compiled_where_nothing_is_to_be() -> None:
    config = small_config()
    assert compile_ahead(fresh(config)[0], config, SingleProcess(), {}) == 0
    assert graphs() == 0


def test_a_padded_evaluation_measures_the_same() -> None:
    config = small_config()
    eager, padded = fresh(config)[0], compiled(config)[0]
    results = [evaluate(m, ArrayFeed(config).evaluation(), config, SingleProcess())[0] for m in (eager, padded)]
    for task, result in results[0].items():
        assert results[1][task]["examples"] == result["examples"] == 10
        assert results[1][task]["loss"] == pytest.approx(result["loss"], rel=1e-5)
        assert results[1][task]["value"] == result["value"]


def test_no_mask_is_multiplied_where_none_drops() -> None:
    """A task without stochastic depth has two multiplications less a block, compiled or not."""
    config = small_config()
    model = compiled(config)[0]
    with torch.no_grad():
        masks = []
        model._run = lambda block, x, keep, modality: masks.append(keep) or x  # type: ignore[method-assign]
        tokens = torch.zeros(2, *model.tokenizers["video"].shape)
        model({"tokens": tokens}, "clip")
    assert masks == [None] * 3


@pytest.mark.parametrize(
    "keys",
    [
        (),
        pytest.param(("train.precision=bfloat16",), marks=pytest.mark.slow),
        pytest.param(("train.activation_checkpointing=true",), marks=pytest.mark.slow),
    ],
)
def test_the_numbers_are_those_of_eager_mode(keys: tuple[str, ...]) -> None:
    config = small_config(*keys)
    whole = all_tasks(config)
    for eager, compiled in zip(run(config, whole, None), run(config, whole, "aot_eager"), strict=True):
        assert compiled.losses == pytest.approx(eager.losses, rel=1e-5)
        assert compiled.grad_norm == pytest.approx(eager.grad_norm, rel=1e-3)


def test_names_and_copies_are_as_without_it() -> None:
    config = small_config()
    model, _, _ = fresh(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.compile_blocks("aot_eager")
    assert list(model.state_dict()) == list(before)
    model.load_state_dict(copy.deepcopy(before))


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_gives_the_numbers_of_eager_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.simdlen", 1)  # plain loops compile in a fraction of the time
    config = small_config("model.depth=1")
    steps = [next(step for step in all_tasks(config) if step[0].task == "picture")]
    for eager, inductor in zip(run(config, steps, None), run(config, steps, "inductor"), strict=True):
        assert inductor.losses == pytest.approx(eager.losses, rel=1e-5)
        assert inductor.grad_norm == pytest.approx(eager.grad_norm, rel=1e-4)
    assert graphs() == 1
