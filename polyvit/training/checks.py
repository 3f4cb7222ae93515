"""What ends a run between steps: a loss that is not finite, and broken files in too large numbers.

In: a step's numbers, the same on every rank. Out: counts in the `TrainState`, or a UserError on all ranks at once.
"""

import math
from collections.abc import Callable

from polyvit.checkpoint import TrainState
from polyvit.config import RunConfig
from polyvit.data.loading import Minibatch, Quarantined
from polyvit.errors import UserError
from polyvit.schedule import SPARES
from polyvit.training.readback import StepResult
from polyvit.training.step import Communicator

JUDGED_FROM = 100
"""Examples of a task that must have been read before its undecodable share can end the run."""
NAMED = 8
"""Broken files that the message of such an end names."""


def check_finite(
    minibatches: list[Minibatch],
    result: StepResult,
    lr: float,
    config: RunConfig,
    world: Communicator,
    keep: Callable[[Minibatch], str | None],
) -> None:
    """Raises UserError where a loss or the gradient is not finite, with the examples' keys and what was saved."""
    broken = [m.task for m, loss in zip(minibatches, result.losses, strict=True) if not math.isfinite(loss)]
    if not broken and math.isfinite(result.grad_norm):
        return
    suspects = [m for m in minibatches if not broken or m.task in broken]
    gathered = world.gather([(m.keys, keep(m)) for m in suspects])
    step, task = minibatches[0].step, suspects[0].task
    what = f"loss of task {task} is {result.losses[[m.task for m in minibatches].index(task)]}"
    if not broken:
        what = f"the gradient's norm is {result.grad_norm} for task {task}"
    keys = [key for entries in gathered for part, _ in entries for key in part]
    saved = [path for entries in gathered for _, path in entries if path]
    raise UserError(
        f"{what} at step {step} (learning rate {lr:g}). Lower the task's learning rate "
        f"(tasks.{task}.lr_coef={config.tasks[task].lr_coef}) or lengthen optim.warmup_steps; the checkpoints "
        "before this step are whole",
        [f"examples: {', '.join(keys[:8])}{f' and {len(keys) - 8} more' if len(keys) > 8 else ''}",
         *(f"minibatch saved: {path}" for path in saved)],
    )  # fmt: skip


def count_examples(
    state: TrainState, step: int, minibatches: list[Minibatch], result: StepResult, config: RunConfig,
    world: Communicator, fresh: list[Quarantined],
) -> None:  # fmt: skip
    """Count what a step read. Raises UserError, see `judge`, and where a step lacks examples.

    state: whose counts grow. step, minibatches, result: of the step. fresh: broken files since the last
    checkpoint.
    """
    for minibatch, bad in zip(minibatches, result.bad, strict=True):
        task = minibatch.task
        state.read[task] = state.read.get(task, 0) + minibatch.global_batch
        state.bad[task] = state.bad.get(task, 0) + bad
    judge(state, config, world, fresh, judged_from=JUDGED_FROM)
    if missing := sum(minibatch.global_batch for minibatch in minibatches) - result.examples:
        # Later examples have moved up: pairs and draws of this step are not those of the plan.
        tasks = " and ".join(minibatch.task for minibatch in minibatches)
        raise UserError(
            f"task {tasks}: {missing} examples of step {step} cannot be decoded, nor can any of the "
            f"step's {SPARES} substitutes. Repair or remove the task's broken files; the checkpoints before this "
            "step are whole",
            _first_broken(world, fresh),
        )


def judge(
    state: TrainState, config: RunConfig, world: Communicator, fresh: list[Quarantined], judged_from: int
) -> None:
    """Raises UserError where too large a share of a task's planned examples could not be decoded.

    Every rank holds the same counts, so all of them come to the same end at the same step.
    """
    allowed = config.data.max_bad_fraction
    for task, read in state.read.items():
        if read >= judged_from and state.bad[task] > allowed * read:
            raise UserError(
                f"task {task}: {state.bad[task]} of the {read} examples read so far cannot be decoded, above "
                f"data.max_bad_fraction={allowed}. Repair or remove them, or raise the limit; some of them:",
                _first_broken(world, [*state.quarantine, *fresh], task),
            )


def _first_broken(world: Communicator, fresh: list[Quarantined], task: str | None = None) -> list[str]:
    """`path: reason` of the first few that all ranks together have met; called by all of them."""
    entries = sorted(
        {(entry.task, entry.path, entry.reason) for entries in world.gather(fresh) for entry in entries}
    )
    lines = [f"{name}: {path}: {reason}" for name, path, reason in entries if task in (None, name)]
    more = [f"and {len(lines) - NAMED} more"] if len(lines) > NAMED else []
    return [*lines[:NAMED], *more]
