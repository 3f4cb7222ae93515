"""torch.compile of the blocks: one graph a modality, none added by tasks, batches or masks; the same numbers."""

import copy
import shutil
from collections.abc import Iterator

import pytest
import torch
from small import ArrayFeed, fresh, small_config
from torch._dynamo.utils import counters

from polyvit.config import RunConfig
from polyvit.data.loading.minibatch import Minibatch
from polyvit.training.step import SingleProcess, StepResult, train_step

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


@pytest.mark.parametrize(
    "keys",
    [
        (),
        pytest.param(("train.activation_checkpointing=true",), marks=pytest.mark.slow),
        pytest.param(("schedule.kind=accumulating",), marks=pytest.mark.slow),
    ],
)
def test_one_graph_a_modality(keys: tuple[str, ...]) -> None:
    """Four tasks of three modalities, with and without drop path, parts of 1 to 9 examples."""
    config = small_config("tasks.word.batch=6", "tasks.clip.batch=5", *keys)
    if config.schedule.kind == "accumulating":
        whole = [step for step, _ in zip(ArrayFeed(config).train(1), range(3), strict=False)]
    else:
        whole = all_tasks(config)
    model, optimiser, _ = fresh(config)
    model.activation_checkpointing = config.train.activation_checkpointing
    model.compile_blocks("aot_eager")
    for minibatches in whole:
        train_step(model, optimiser, minibatches, 0.1, config, SingleProcess())
    assert graphs() == len(config.modalities) == 3
    for minibatches in all_tasks(small_config("tasks.word.batch=6", "tasks.clip.batch=5"), size=2):
        train_step(model, optimiser, minibatches, 0.1, small_config(), SingleProcess())
    assert graphs() == 3
    assert not counters["graph_break"]


@pytest.mark.slow
def test_a_single_example_and_an_evaluation_add_one_each() -> None:
    config = small_config()
    model, _, _ = fresh(config)
    model.compile_blocks("aot_eager")
    tokens = torch.zeros(5, *model.tokenizers["image"].shape)
    found = []
    for batch in (5, 3, 1, 4, 1):
        model({"tokens": tokens[:batch]}, "picture")
        found.append(graphs())
    with torch.no_grad():
        for batch in (5, 3):
            model({"tokens": tokens[:batch]}, "picture")
            found.append(graphs())
    assert found == [1, 1, 2, 2, 2, 3, 3]


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
def test_inductor_makes_one_graph_for_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its backward pass too: a mask whose strides depend on the batch would make one for each batch."""
    monkeypatch.setattr("torch._inductor.config.cpp.simdlen", 1)  # plain loops compile in a fraction of the time
    config = small_config("model.depth=1")
    step = next(step for step in all_tasks(config) if step[0].task == "picture")
    (minibatch,) = step
    part = copy.copy(minibatch)
    object.__setattr__(part, "tokens", minibatch.inputs["tokens"][:4])
    object.__setattr__(part, "labels", minibatch.labels[:4])
    steps = [[minibatch], [part]]
    for eager, compiled in zip(run(config, steps, None), run(config, steps, "inductor"), strict=True):
        assert compiled.losses == pytest.approx(eager.losses, rel=1e-5)
        assert compiled.grad_norm == pytest.approx(eager.grad_norm, rel=1e-4)
    assert graphs() == 1
