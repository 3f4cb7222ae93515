"""What runs on the train workers, and the Ray Train run around it.

Every worker builds the same model, schedule and plan from the config, loads the newest undamaged checkpoint of the
run, and reads its part of every step from its own feed. Rank 0 writes the checkpoints, MLflow's curves and the
progress line.
"""

import json
import logging
import pickle
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.train
import ray.train.torch
import torch

from pipelines.feed import RayFeed
from pipelines.index import load_indexes
from pipelines.runtime import (
    DATASETS,
    PLACEMENT_GROUP_CLEANER,
    POST_EVERY_S,
    FewerCallbacks,
    NoticeHandler,
    ProgressActor,
    ProgressReporter,
    console,
    live_line,
    on_this_node,
    scaling,
    stoppable,
    use_gpu,
)
from pipelines.tracking import Tracker
from pipelines.training.process_group import WorkersOwnGroup, process_group
from pipelines.training.reporting import TrainReporter
from pipelines.training.run_dir import RunDir
from polyvit.checkpoint import (
    LocalStore,
    MetricsLog,
    Point,
    RemoteStore,
    TrainState,
    TrainUnit,
    load_training,
    newest_whole,
    open_store,
)
from polyvit.config import RunConfig
from polyvit.distributed import Communicator, ProcessGroupCommunicator
from polyvit.errors import UserError
from polyvit.model import MultiTaskModel, build_model, fast_kernels, grow_segments
from polyvit.schedule import Plan, schedule_of
from polyvit.storage import read_record, write_whole
from polyvit.training import (
    Callback,
    CallbackList,
    RunInfo,
    build_learner,
    callbacks_of,
    compile_ahead,
    derive_eval_batch,
    derive_microbatches,
    freeze_parts,
    initialise_model,
    train,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")


class _ReportingFeed(RayFeed):
    """A feed that shows on the live line that an evaluation is under way."""

    progress: ProgressReporter | None = None

    def evaluation(self) -> Any:
        """As `RayFeed.evaluation`."""
        for i, minibatch in enumerate(super().evaluation(), start=1):
            if self.progress:
                self.progress({"phase": f"evaluating: {minibatch.task} (minibatch {i}) ..."})
            yield minibatch


def train_fn(arguments: dict[str, Any]) -> dict[str, Any]:
    """What every train worker runs. Returns {"state": the final state}, or the user's mistake that ended the run.

    The state is pickled: Ray Train's controller reads what is returned, and would import torch to know its class.
    A user's mistake is returned and not raised, since Ray Train would restart the workers and meet it again.
    """
    grow_segments()
    try:
        device = ray.train.torch.get_device()
        with process_group(device):
            return {"state": pickle.dumps(_train(arguments, device))}
    except UserError as error:
        return {"error": error.message, "problems": list(error.problems)}


def _train(arguments: dict[str, Any], device: torch.device) -> TrainState:
    config = RunConfig.model_validate(arguments["config"])
    run_dir: RunDir = arguments["run_dir"]
    world = ProcessGroupCommunicator()
    progress = ProgressReporter(arguments["progress"], world.rank)
    for name in ("polyvit", "pipelines"):
        logging.getLogger(name).addHandler(NoticeHandler(arguments["progress"]))
    indexes = load_indexes(config, run_dir.folder / "index")
    schedule = schedule_of(config)
    sizes = {name: len(scan.split("train")) for name, scan in indexes.scans.items()}
    hashes = {"schedule_hash": schedule.digest(), "index_hash": indexes.digests()}
    tracker = on_rank_0(world, lambda: run_tracker(config, run_dir, progress))
    store = open_store(run_dir.checkpoints(config))
    step = newest_step(store, world)
    feed = _ReportingFeed(
        config, Plan(schedule, config.tasks, sizes, config.seed), indexes, world.rank, world.size
    )
    feed.progress = progress
    if (step or 0) < schedule.known:  # else its checkpoint holds the decisions that say which tasks come next
        feed.begin((step or 0) + 1)  # its processes start while the model is built
    progress({"phase": "loading weights ..."}, urgent=True)
    init_report = run_dir.folder / "init.txt"
    learner, state = starting_point(store, step, hashes, config, init_report, device, world, tracker)
    state.microbatches = microbatches(learner.model, config, run_dir, world, device)
    config = with_eval_batch(learner.model, config, run_dir, world, device)
    feed.requests = replace(feed.requests, config=config)
    history = MetricsLog(run_dir.folder / "history")
    past = on_rank_0(world, lambda: history.restart(state.global_step)) or []
    metadata = {**hashes, "classes": {name: list(scan.classes) for name, scan in indexes.scans.items()}}
    callbacks = CallbackList(on_rank_0(world, lambda: _callbacks(config, tracker, past)) or [])
    reporter = TrainReporter(
        config, run_dir.folder, store, learner, metadata, progress, callbacks, history, len(schedule)
    )
    callbacks.start(RunInfo(config, run_dir.folder, len(schedule), state.global_step, past))
    try:
        with fast_kernels(device, config.train.precision):
            compile_ahead(
                learner.model, config, world, state.microbatches,
                lambda text: progress({"phase": text}, urgent=True),
            )  # fmt: skip
            progress({"phase": "starting the feed ..."}, urgent=True)
            state = train(learner, schedule, feed, config, world, state, reporter)
    finally:
        reporter.close()
    on_rank_0(world, callbacks.check)
    if tracker and feed.statistics:
        statistics = run_dir.folder / "feed_statistics.txt"
        write_whole(statistics, "\n".join(feed.statistics))
        tracker.artifact(statistics)
    return state


def _callbacks(config: RunConfig, tracker: Tracker | None, past: list[Point]) -> list[Callback]:
    """MLflow's curves, TensorBoard's, and those that `train.callbacks` names. Raises UserError."""
    own = callbacks_of(config)
    return [tracker.curves(past), *own] if tracker else own


def run_tracker(config: RunConfig, run_dir: RunDir, progress: ProgressReporter) -> Tracker:
    """The MLflow run that the driver opens while the workers start; run.json names it.

    Raises UserError where the driver could not open it, and so told the run to stop.
    """
    while not run_dir.record.exists():
        progress({"phase": "waiting for MLflow ..."}, urgent=True)
        if progress.stop_requested:
            raise UserError("the run was stopped before it began")
        time.sleep(POST_EVERY_S)
    return recorded_tracker(config, run_dir)


def recorded_tracker(config: RunConfig, run_dir: RunDir) -> Tracker:
    """The MLflow run that run.json names, in the store where it began, unless the config names another store."""
    record = run_dir.read(run_dir.record.name, "mlflow_run", "mlflow_uri")
    return Tracker(config.tracking.uri or record["mlflow_uri"], record["mlflow_run"])


def starting_point(
    store: LocalStore | RemoteStore, step: int | None, hashes: dict[str, Any], config: RunConfig, report: Path,
    device: torch.device, world: Communicator, tracker: Tracker | None,
) -> tuple[TrainUnit, TrainState]:  # fmt: skip
    """The model, optimiser and state of the run's newest undamaged checkpoint; without one those of a new run.

    store: the run's checkpoints. step: of the newest undamaged one (`newest_step`). hashes: of schedule and index,
    which must be those of the checkpoint. config: of the run; `init.path` is read where there is no checkpoint
    yet. report: the file that then says what was loaded from there. device: where the model is built.
    world: this worker's rank and its peers. tracker: on rank 0, the MLflow run that gets the report too.
    """
    model = build_model(config, seed=config.seed).to(device)
    freeze_parts(model, config.optim.frozen)
    if step is None and config.init.path:
        initialise_all(model, config, world, report, tracker)
    learner = build_learner(model, config, device, world)
    if step is None:
        return learner, TrainState()
    with store.fetched(step) if world.rank == 0 else nullcontext() as folder:  # the others get it from rank 0
        return learner, load_training(folder, learner, hashes, world)


def newest_step(store: LocalStore | RemoteStore, world: Communicator) -> int | None:
    """The step of the run's newest undamaged checkpoint, the same on every rank; None where it has none.

    Rank 0 looks, and skips a damaged checkpoint with a warning.
    """
    step = None
    if world.rank == 0:
        store.sweep()
        step, damage = newest_whole(store)
        for line in damage:
            start = f"going on from step {step}" if step is not None else "starting anew"
            logger.warning("%s; %s", line, start)
    return world.gather(step)[0]


def on_rank_0(world: Communicator, call: Callable[[], T]) -> T | None:
    """Call on rank 0 alone. Returns what it gives there, None elsewhere.

    Its UserError is raised on all ranks, which would wait for rank 0 otherwise.
    """
    result, failure = None, None
    if world.rank == 0:
        try:
            result = call()
        except UserError as error:
            failure = error
    if failure := world.gather(failure)[0]:
        raise failure
    return result


def microbatches(
    model: MultiTaskModel, config: RunConfig, run_dir: RunDir, world: Communicator, device: torch.device
) -> dict[str, int]:
    """How many examples go through the model at a time, by task.

    They are measured once for a run and a number of workers, and kept in the run's folder: a run that is killed
    before its first checkpoint uses the same ones again, and so ends with the same bits.

    model, config, run_dir: of the run. world: this worker's rank and its peers. device: whose memory is measured.
    """
    record = run_dir.folder / f"microbatches_{world.size}.json"
    advice = "delete it: sizes are measured again, and may differ, so that results differ in the last bits"
    return measured_before(
        record, advice, list(config.tasks), world, lambda: derive_microbatches(model, config, world, device)
    )


def with_eval_batch(
    model: MultiTaskModel, config: RunConfig, run_dir: RunDir, world: Communicator, device: torch.device
) -> RunConfig:
    """The config with the size of evaluation minibatches (`train.eval_batch`), measured once for a run.

    Arguments are those of `microbatches`. On a CPU, and where the config says it: the config as it is.
    """
    if config.train.eval_batch is not None or device.type == "cpu":
        return config
    advice = "delete it, or set train.eval_batch: the size is measured again, and may differ"
    views = measured_before(
        run_dir.folder / "eval_batch.json", advice, ["views"], world,
        lambda: {"views": derive_eval_batch(model, config, world, device)},
    )["views"]  # fmt: skip
    return config.with_train(eval_batch=views)


def measured_before(
    record: Path, advice: str, keys: Sequence[str], world: Communicator, measure: Callable[[], dict[str, int]]
) -> dict[str, int]:
    """What a file of the run holds, or what is measured now on all ranks and then kept in it.

    record: the file, which rank 0 reads and writes. advice: what to do where it is damaged. keys: what it must
    hold. world: this worker's rank and its peers.
    """
    known = record.is_file() if world.rank == 0 else False
    read = on_rank_0(world, lambda: read_record(record, advice, *keys) if known else None)
    sizes: dict[str, int] | None = world.gather(read)[0]
    if sizes is None:
        sizes = measure()
        if world.rank == 0:
            write_whole(record, json.dumps(sizes, indent=1) + "\n")
    return sizes


def initialise_all(
    model: MultiTaskModel, config: RunConfig, world: Communicator, report: Path, tracker: Tracker | None
) -> None:
    """Every rank reads `init.path`; rank 0 writes what was loaded.

    model: gets the weights. config: its `init` section names the file. world: this worker's rank and its peers.
    report: the file to write. tracker: on rank 0, the MLflow run that gets the report too.

    Raises UserError on all ranks where one of them cannot read the file, which may be there on some nodes only.
    """
    failure, table = None, ""
    try:
        table = initialise_model(model, config).table()
    except UserError as error:
        failure = error
    failures = [error for error in world.gather(failure) if error is not None]
    if failures:
        raise UserError(
            f"init.path on {len(failures)} of {world.size} workers: {failures[0].message}", failures[0].problems
        )
    if world.rank == 0:
        write_whole(report, table + "\n")
        if tracker:
            tracker.artifact(report)


class _Trainer(FewerCallbacks, ray.train.torch.TorchTrainer):
    """TorchTrainer without the processes of Ray's that a run does not need."""


def _trial_callbacks() -> list[Any]:
    """What tells Ray Tune how its trial does."""
    from ray.tune.integration.ray_train import TuneReportCallback

    return [TuneReportCallback()]


def fit(
    config: RunConfig, run_dir: RunDir, trial: bool = False, meanwhile: Callable[[], None] = lambda: None,
    later: Callable[[], None] = lambda: None,
) -> tuple[TrainState, int | None]:  # fmt: skip
    """Run `train_fn` on the workers, with the live line. Returns the final state, and the signal that ended the
    run.

    config, run_dir: of the run. trial: whether this process runs a trial of Ray Tune. meanwhile: called while the
    workers start; it writes run.json, for which they wait. later: called when they take steps.

    Raises UserError for the user's mistake. Anything else that ends the run is raised as Ray Train's error.
    """
    progress_actor = ProgressActor.options(**on_this_node()).remote()  # type: ignore[attr-defined]
    trainer = _Trainer(
        train_fn,  # type: ignore[arg-type]
        train_loop_config={
            "config": config.model_dump(mode="json"), "run_dir": run_dir, "progress": progress_actor,
        },
        torch_config=WorkersOwnGroup(),  # type: ignore[arg-type]
        scaling_config=scaling(config, use_gpu(config)),
        run_config=ray.train.RunConfig(
            name=run_dir.name,
            storage_path=str(run_dir.folder.parent),
            failure_config=ray.train.FailureConfig(max_failures=config.train.max_failures),
            callbacks=_trial_callbacks() if trial else [],
        ),
    )  # fmt: skip
    trainer.unused = frozenset({DATASETS} if trial else {DATASETS, PLACEMENT_GROUP_CLEANER})

    def stop() -> None:
        console.print("stopping at the next step, with a checkpoint; once more to stop at once")
        progress_actor.stop.remote()

    def or_stop(call: Callable[[], None]) -> Callable[[], None]:
        """The call; where it fails it tells the run to stop first."""

        def called() -> None:
            try:
                call()
            except Exception:
                progress_actor.stop.remote()
                raise

        return called

    with live_line(progress_actor) as stepping:
        result, signum = stoppable(trainer.fit, stop, or_stop(meanwhile), or_stop(later), stepping)
    outcome = result.return_value  # type: ignore[attr-defined]
    if "error" in outcome:
        raise UserError(outcome["error"], outcome["problems"])
    return pickle.loads(outcome["state"]), signum
