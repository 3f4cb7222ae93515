"""Compiled ahead of the first step: every form of a pass that a run has, with blank examples.

In: a model whose blocks are compiled (`compile_blocks`). Out: nothing; its graphs are there, parameters, gradients
and running averages as they were. A form is what shapes and branches follow from: the modality, how many examples,
whether branches are dropped, whether gradients are wanted.
"""

import sys
from collections.abc import Callable, Mapping

import numpy as np
import torch

from polyvit.config import RunConfig
from polyvit.data.loading import Minibatch, blank_arrays, eval_rows
from polyvit.distributed import Communicator, SingleProcess, buffers_of, is_sharded
from polyvit.evaluation import evaluate
from polyvit.model import MultiTaskModel, autocast, device_of
from polyvit.schedule import mixes, rank_slice
from polyvit.training.step import is_contrastive, most_examples, parts, run_pass


def compiled_graphs() -> int:
    """Graphs that torch has compiled in this process so far."""
    utils = sys.modules.get("torch._dynamo.utils")
    return 0 if utils is None else utils.counters["stats"]["unique_graphs"]


def compile_ahead(
    model: MultiTaskModel, config: RunConfig, world: Communicator, microbatches: Mapping[str, int],
    say: Callable[[str], None] = lambda text: None,
) -> int:  # fmt: skip
    """Have every form of a pass compiled, of training and of evaluation. Returns how many graphs there are.

    world: rank 0 goes first, so that the others find its graphs in inductor's cache; where the model is divided
    all go together. microbatches: of the run. say: is told what is being compiled. Does nothing to a model that is
    not compiled.
    """
    if not model.compiled:
        return 0
    kept = {name: buffer.clone() for name, buffer in buffers_of(model).items()}
    together = is_sharded(model)
    for turn in (0, 1):
        if together or (world.rank == 0) is (turn == 0):
            _compile(model, config, world, microbatches, say)
        world.gather(None)
        if together:
            break
    with torch.no_grad():
        for name, buffer in buffers_of(model).items():
            buffer.copy_(kept[name])
    model.zero_grad(set_to_none=True)
    return compiled_graphs()


def _compile(
    model: MultiTaskModel, config: RunConfig, world: Communicator, microbatches: Mapping[str, int],
    say: Callable[[str], None],
) -> None:  # fmt: skip
    passes, device = training_passes(config, microbatches, world, every=is_sharded(model)), device_of(model)
    evaluations = list({_form(config, name, 0): name for name in config.tasks}.values())
    for i, part in enumerate(passes, start=1):
        say(f"compiling {i} of {len(passes) + len(evaluations)}: {part.task}, {part.rows} examples ...")
        with autocast(device, config.train.precision):
            run_pass(model, part, config, device, SingleProcess())
    for i, name in enumerate(evaluations, start=len(passes) + 1):
        say(f"compiling {i} of {len(passes) + len(evaluations)}: evaluation of {name} ...")
        blank = blank_minibatch(config, name, eval_rows(config, name))
        evaluate(model, [blank], config, SingleProcess())


def _form(config: RunConfig, name: str, rows: int) -> tuple[object, ...]:
    """What a task's pass over so many examples is compiled for; of an evaluation (0 rows) the views too."""
    task = config.tasks[name]
    drops = rows > 0 and task.drop_path > 0
    rows = rows or eval_rows(config, name)
    return task.modality, is_contrastive(config, name), drops, getattr(task, "reads", ""), rows


def training_passes(
    config: RunConfig, microbatches: Mapping[str, int], world: Communicator, every: bool = False
) -> list[Minibatch]:
    """A blank pass of each form that this rank has. every: all passes of every task, the same number on each rank,
    which wait for each other."""
    passes: dict[tuple[object, ...], Minibatch] = {}
    for name, task in config.tasks.items():
        start, stop = rank_slice(task.batch, world.rank, world.size, mixes(task))
        whole = blank_minibatch(config, name, stop - start, start)
        cut = parts(whole, most_examples(name, config, microbatches), config, world.size)
        for i, part in enumerate(cut):
            if every or part.rows:
                passes.setdefault((name, i) if every else _form(config, name, part.rows), part)
    return list(passes.values())


def blank_minibatch(config: RunConfig, name: str, rows: int, first: int = 0) -> Minibatch:
    """`rows` examples of a task with nothing in them, each of the first class, at their slots."""
    task = config.tasks[name]
    labels = np.zeros((rows, task.num_classes), np.uint8)
    labels[:, :1] = 1
    inputs = blank_arrays(config.model.input(task.modality), rows)
    return Minibatch(1, name, inputs, labels, ("",) * rows, first, task.batch)
