"""Where the training loop's news go on a train worker: live line, curves, checkpoints, a stop, an anomaly."""

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
from safetensors.numpy import save_file

from pipelines.runtime import Poster
from pipelines.tracking import Curves
from pipelines.tuning import METRIC, PROGRESS
from polyvit.checkpoint import (
    AsyncCheckpointWriter,
    Keep,
    LocalStore,
    MetricsLog,
    RemoteStore,
    TrainState,
    TrainUnit,
    checkpoint_data,
    training_tensors,
)
from polyvit.config import RunConfig
from polyvit.data.loading import Minibatch

logger = logging.getLogger(__name__)


class RayEvents:
    """On every rank; rank 0 alone has `curves` and `history`, and writes.

    facts: hashes of schedule and index, and class names, for checkpoints. folder: the run's. total: its steps.
    """

    def __init__(
        self, config: RunConfig, folder: Path, store: LocalStore | RemoteStore, learner: TrainUnit,
        facts: Mapping[str, Any], poster: Poster, curves: Curves | None, history: MetricsLog,
        total: int,
    ) -> None:  # fmt: skip
        self.config, self.folder, self.learner, self.facts = config, folder, learner, facts
        self.poster, self.curves, self.history, self.total = poster, curves, history, total
        train = config.train
        keep = Keep(train.keep_checkpoints, train.keep_best, train.best_metric)
        self.checkpointer = AsyncCheckpointWriter(store, keep, before=history.write)

    def progress(self, snapshot: dict[str, Any]) -> None:
        """To the live line."""
        self.poster(snapshot)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """To the run's history and MLflow."""
        if self.curves:
            self.history.add(step, values)
            self.curves.put(step, values)
            if any(key.startswith("eval/") for key in values):
                # A trial that is stopped after an evaluation has no later checkpoint to write it with.
                with contextlib.suppress(OSError):  # then it waits for the next one
                    self.history.write(step)

    def evaluated(self, step: int, scores: dict[str, float]) -> None:
        """To Ray Train, whose callbacks (Tune's) see a trial on its way. A barrier: every rank reports."""
        metrics = {f"eval/{name}": value for name, value in scores.items()}
        metrics |= {"global_step": step, PROGRESS: round(100 * step / self.total)}
        ray.train.report({**metrics, METRIC: self._objective(scores)})

    def _objective(self, scores: Mapping[str, float]) -> float:
        sweep = self.config.sweep
        if sweep.objective == "mean":
            return scores.get("mean", float("nan"))
        return min(scores.get(task, 0.0) - sweep.baselines[task] for task in self.config.tasks)

    def checkpoint(self, state: TrainState, last: bool) -> None:
        """Rank 0 writes, beside the steps that follow; the last one before the run ends."""
        tensors = training_tensors(self.learner)  # every rank: they may be divided among them
        if self.poster.rank != 0:
            return
        document = checkpoint_data(tensors, state, self.config, self.facts)
        if last:
            self.poster({"phase": f"writing the checkpoint of step {state.global_step} ..."}, urgent=True)
            self.checkpointer.finish(document)
        else:
            self.checkpointer.save(document)

    def stop_requested(self) -> bool:
        """Whether the driver was told to stop."""
        return self.poster.stop_requested

    def anomaly(self, minibatch: Minibatch) -> str | None:
        """This rank's part of the minibatch, as tensors, and the keys of its examples."""
        folder = self.folder / "anomaly"
        path = folder / f"step_{minibatch.step:08d}_{minibatch.task}_rank{self.poster.rank}.safetensors"
        try:
            folder.mkdir(exist_ok=True)
            save_file({"tokens": minibatch.tokens.copy(), "labels": minibatch.labels.copy()}, path)
            path.with_suffix(".json").write_text(json.dumps({"keys": minibatch.keys}, indent=1) + "\n")
        except OSError as error:
            logger.warning("the minibatch could not be saved: %s", error)
            return None
        return str(path)

    def close(self) -> None:
        """Wait for the writer and the sender."""
        self.checkpointer.close()
        if self.curves:
            self.curves.close()
