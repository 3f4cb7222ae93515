"""What a train worker does with what the training loop reports: live line, curves, checkpoints, anomalies.

In: the loop's callbacks. Out: files in the run's folder, points in MLflow, Ray Train's reports. It also tells the
loop whether the run was told to stop.
"""

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
from safetensors.numpy import save_file

from pipelines.runtime import ProgressReporter
from polyvit.checkpoint import (
    AsyncCheckpointWriter,
    Keep,
    LocalStore,
    MetricsLog,
    RemoteStore,
    TrainState,
    TrainUnit,
    checkpoint_data,
    folder_name,
    training_tensors,
)
from polyvit.config import RunConfig
from polyvit.data.loading import Minibatch
from polyvit.storage import under
from polyvit.training import CallbackList

logger = logging.getLogger(__name__)

METRIC, PROGRESS = "objective", "percent"
"""What a sweep's trial reports after each evaluation: the sweep's objective, and how much of its steps is done."""


class TrainReporter:
    """The training loop's callbacks on one rank; only rank 0 writes.

    config: of the run. folder: the run's. store: its checkpoints. learner: what is trained.
    metadata: hashes of schedule and index, and class names, for checkpoints.
    progress_reporter: sends the live line. callbacks: MLflow's curves, TensorBoard and the user's; none on other
    ranks than 0. history: the run's own copy of its curves. total: steps of the run.
    """

    def __init__(
        self, config: RunConfig, folder: Path, store: LocalStore | RemoteStore, learner: TrainUnit,
        metadata: Mapping[str, Any], progress_reporter: ProgressReporter, callbacks: CallbackList,
        history: MetricsLog,
        total: int,
    ) -> None:  # fmt: skip
        self.config, self.folder, self.learner, self.metadata = config, folder, learner, metadata
        self._progress, self.callbacks, self.history, self.total = progress_reporter, callbacks, history, total
        train = config.train
        keep = Keep(train.keep_checkpoints, train.keep_best, train.best_metric)
        self.checkpointer = AsyncCheckpointWriter(
            store, keep, before=history.write,
            after=lambda step: callbacks.written(step, under(store.address, folder_name(step))),
        )  # fmt: skip

    def progress(self, snapshot: dict[str, Any]) -> None:
        """Show a snapshot on the live line."""
        self._progress(snapshot)
        self.callbacks.step(snapshot)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Add a point to the run's history, and tell the callbacks."""
        if self._progress.rank == 0:
            self.history.add(step, values)
            self.callbacks.log(step, values)
            if any(key.startswith("eval/") for key in values):
                # A trial may be stopped after an evaluation, and then no later checkpoint writes the history.
                with contextlib.suppress(OSError):  # the next checkpoint writes it
                    self.history.write(step)

    def evaluated(self, step: int, scores: dict[str, float]) -> None:
        """Report to Ray Train, whose callbacks tell Tune how a trial does. A barrier: every rank must report."""
        self.callbacks.evaluation(step, scores)
        metrics = {f"eval/{name}": value for name, value in scores.items()}
        metrics |= {"global_step": step, PROGRESS: round(100 * step / self.total)}
        ray.train.report({**metrics, METRIC: objective_of(self.config, scores)})

    def checkpoint(self, state: TrainState, last: bool) -> None:
        """Rank 0 writes a checkpoint while the next steps run; the last one is written before the run ends."""
        writes = self._progress.rank == 0
        tensors = training_tensors(self.learner, writes)  # every rank: they may be divided among them
        if not writes:
            return
        document = checkpoint_data(tensors, state, self.config, self.metadata)
        if last:
            self._progress({"phase": f"writing the checkpoint of step {state.global_step} ..."}, urgent=True)
            self.checkpointer.finish(document)
        else:
            self.checkpointer.save(document)

    def stop_requested(self) -> bool:
        """Whether the driver was told to stop, or a callback failed."""
        return self._progress.stop_requested or self.callbacks.failure is not None

    def anomaly(self, minibatch: Minibatch) -> str | None:
        """Save this rank's part of the minibatch and the keys of its examples; returns the path, None on
        failure."""
        folder = self.folder / "anomaly"
        path = folder / f"step_{minibatch.step:08d}_{minibatch.task}_rank{self._progress.rank}.safetensors"
        try:
            folder.mkdir(exist_ok=True)
            arrays = {name: array.copy() for name, array in minibatch.inputs.items()}
            save_file({**arrays, "labels": minibatch.labels.copy()}, path)
            path.with_suffix(".json").write_text(json.dumps({"keys": minibatch.keys}, indent=1) + "\n")
        except OSError as error:
            logger.warning("the minibatch could not be saved: %s", error)
            return None
        return str(path)

    def close(self) -> None:
        """Wait until checkpoints are written, and end the callbacks: until curves are sent."""
        self.checkpointer.close()
        self.callbacks.end()


def objective_of(config: RunConfig, scores: Mapping[str, float]) -> float:
    """What a sweep maximises (`sweep.objective`), from an evaluation's metric of each task and their `mean`."""
    sweep = config.sweep
    if sweep.objective == "mean":
        return scores.get("mean", float("nan"))
    return min(scores.get(task, 0.0) - sweep.baselines[task] for task in config.tasks)
