"""Evaluation of contrastive pre-training: retrieval among negatives and pairs, in sums that ranks add up.

In: minibatches of a contrastive task. Out: `loss`, and the means of `polyvit.objectives.MEASURES`. The clips of
one evaluation minibatch are each other's negatives, and what is drawn follows from the seed and the minibatch's
place in the split: two evaluations of a run compare. With more workers minibatches of a small split are smaller,
and so is the pool: `chance` says what a guess would score.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from polyvit.config import AudiovisualTask, RunConfig
from polyvit.data.loading import Minibatch
from polyvit.distributed import SingleProcess
from polyvit.model import MultiTaskModel
from polyvit.objectives import MEASURES, measured, pretrain, results

SEED_STEP = 1_000_003
"""Draws of evaluations lie apart from each other, and from those of training, whose seeds are hashes."""


class ContrastiveState:
    """Running totals of one contrastive task on one rank; `merge` adds another rank's."""

    def __init__(self) -> None:
        self.examples, self.loss = 0, 0.0
        self.table = torch.zeros(2, len(MEASURES), dtype=torch.float64)

    def update(
        self, model: MultiTaskModel, inputs: Mapping[str, Tensor], task: AudiovisualTask, minibatch: Minibatch,
        config: RunConfig,
    ) -> None:  # fmt: skip
        """Add a minibatch, a global batch of its own; one example alone is left out. inputs: normalised."""
        if minibatch.rows < 2:
            return
        seed = config.seed * SEED_STEP + minibatch.first_slot
        loss, table = pretrain(
            model, inputs, task, minibatch.task, (0, minibatch.rows), seed, SingleProcess(),
            precision=config.train.precision,
        )  # fmt: skip
        self.examples += minibatch.rows
        self.loss += float(loss) * minibatch.rows
        self.table += table.double().cpu()

    def merge(self, other: "ContrastiveState") -> None:
        """Add the totals of another rank."""
        self.examples += other.examples
        self.loss += other.loss
        self.table += other.table

    def results(self) -> dict[str, float]:
        """`loss`, `retrieval`, and every measure; nothing where no example counted."""
        if not self.examples:
            return {}
        return {"loss": self.loss / self.examples, **results(measured(self.table))}
