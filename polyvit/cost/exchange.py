"""What the ranks sum in a step besides gradients: embeddings of a contrastive task, batch norm's statistics.

In: a config and a task. Out: bytes of the messages and their number, exact (tests count a real step's). Nothing
hides these sums: a step waits for each of them. A model without batch norm has none. What is drawn for a step
(masks, pairs, negatives) costs no communication: every rank draws it for the whole batch.
"""

from typing import NamedTuple

import torch

from polyvit.config import AudiovisualTask, AVBertConfig, RunConfig
from polyvit.model import build_model

FLOAT = 4
"""Bytes of a number that is exchanged: float32 at any `train.precision`."""


class Exchanged(NamedTuple):
    """Messages that all ranks sum in one step. bytes: of all of them. sums: how many."""

    bytes: int
    sums: int


def exchanged(config: RunConfig, name: str) -> Exchanged:
    """Those of a step of one task on two workers or more."""
    model, task = config.model, config.tasks[name]
    if not isinstance(model, AVBertConfig) or not isinstance(task, AudiovisualTask):
        return Exchanged(0, 0)
    with torch.device("meta"):
        buffers = dict(build_model(config).named_buffers())
    # The running averages are averaged after every step (`polyvit.distributed.average_buffers`).
    numbers, sums = sum(buffer.numel() for buffer in buffers.values()), 1
    if task.loss != "contrastive":
        return Exchanged(FLOAT * numbers, sums)
    clips, width = model.audiovisual.clips, model.width
    heard, targets = task.batch * (1 + clips) * width, 2 * task.batch * clips * width
    ways = 1 if task.contrastive.detach_targets else 2  # their gradients come back in the same way
    numbers += 2 * heard + ways * targets
    sums += 2 + ways
    if task.contrastive.sync_batch_norm:
        # Forward a sum for each channel and a count, then squares; backward the same; a block's forward once more
        # where it is run again for its gradient.
        again = config.train.activation_checkpointing
        for key, buffer in buffers.items():
            if key.endswith("running_mean"):
                passes = 3 if again and ".stages." in key else 2
                numbers, sums = numbers + passes * (2 * buffer.numel() + 1), sums + passes * 2
    return Exchanged(FLOAT * numbers, sums)
