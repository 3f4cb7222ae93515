"""Minibatches of an evaluation measured where their logits are; the numbers are read seldom.

In: logits and labels on a device. Out: what `MetricState` adds up. On a GPU the host runs ahead of the device, as
it does in training: it waits once in READ_EVERY minibatches. Legend: B examples, K classes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polyvit.config import TaskConfig
from polyvit.evaluation.metrics import TOP_K, MetricState
from polyvit.objectives import example_losses

READ_EVERY = 32
"""Minibatches whose numbers (and logits, where scores are kept) stay on the device."""


class DeviceTotals:
    """Adds minibatches of one task to `state`, later."""

    def __init__(self, task: TaskConfig, state: MetricState) -> None:
        self.task, self.state = task, state
        self._waiting: list[tuple[np.ndarray, Tensor, Tensor | None, Sequence[str]]] = []

    def add(
        self, logits_BK: Tensor, labels_BK: np.ndarray, device_labels_BK: Tensor, keys: Sequence[str] = ()
    ) -> None:
        """A minibatch: float32 logits, its 0/1 labels on the host and on the logits' device; keys to be kept."""
        losses_B = example_losses(logits_BK, device_labels_BK, self.task.loss, margin=self.task.margin)
        ranked_BK = torch.where(logits_BK.isnan(), -torch.inf, logits_BK)
        best = torch.sort(ranked_BK, dim=1, descending=True, stable=True).indices[:, :TOP_K]
        hits = device_labels_BK.gather(1, best) > 0
        measured_B3 = torch.stack([losses_B, hits[:, 0], hits.any(dim=1)], dim=1)
        kept_BK = logits_BK if self.state.keep_scores else None
        self._waiting.append((labels_BK, measured_B3, kept_BK, keys))
        if len(self._waiting) == READ_EVERY:
            self.read()

    def read(self) -> None:
        """Wait for what was added and add it to the state."""
        for labels_BK, measured_B3, logits_BK, keys in self._waiting:
            scores_BK = None if logits_BK is None else logits_BK.cpu().numpy()
            self.state.add(labels_BK, measured_B3.cpu().numpy(), scores_BK, keys)
        self._waiting = []
