"""What runs on the train workers, and the Ray Train run around it.

Every worker builds the same model, schedule and plan from the config, finds the newest whole checkpoint of the
run, and takes its part of every step from its own feed; rank 0 writes checkpoints, MLflow's curves and the
progress line.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import ray.train.torch
import torch

from pipelines.feed import RayFeed
from pipelines.index import load_indexes
from pipelines.runtime import (
    Board,
    NoticeHandler,
    Poster,
    console,
    live_line,
    on_this_node,
    scaling,
    stoppable,
    use_gpu,
)
from pipelines.tracking import Tracker
from pipelines.training.reporting import RayEvents
from polyvit.checkpoint import (
    LocalStore,
    MetricsLog,
    RemoteStore,
    TrainState,
    TrainUnit,
    load_training,
    newest_whole,
    open_store,
)
from polyvit.config import RunConfig
from polyvit.distributed import ProcessGroup, World, shard
from polyvit.errors import UserError
from polyvit.model import PolyViT
from polyvit.schedule import Plan, build_schedule
from polyvit.training import Ema, build_optimiser, derive_microbatches, freeze_parts, initialise_model, train

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from pipelines.cotrain import RunPlace


class _ReportingFeed(RayFeed):
    """A feed that says on the live line that an evaluation is under way."""

    poster: Poster | None = None

    def evaluation(self) -> Any:
        """As RayFeed's."""
        for i, minibatch in enumerate(super().evaluation(), start=1):
            if self.poster:
                self.poster({"phase": f"evaluating: {minibatch.task} (minibatch {i}) ..."})
            yield minibatch


def train_fn(arguments: dict[str, Any]) -> dict[str, Any]:
    """Runs on every train worker. Returns the final state, or the user's mistake that ended the run.

    A mistake is returned, not raised: Ray Train would restart the workers, only to meet it again.
    """
    try:
        return {"state": _train(arguments)}
    except UserError as error:
        return {"error": error.message, "problems": list(error.problems)}


def _train(arguments: dict[str, Any]) -> TrainState:
    config = RunConfig.model_validate(arguments["config"])
    place: RunPlace = arguments["place"]
    world = ProcessGroup()
    device = ray.train.torch.get_device()
    poster = Poster(arguments["board"], world.rank)
    for name in ("polyvit", "pipelines"):
        logging.getLogger(name).addHandler(NoticeHandler(arguments["board"]))
    indexes = load_indexes(config, place.folder / "index")
    schedule = build_schedule(config.schedule, config.tasks, config.seed)
    sizes = {name: len(found.split("train")) for name, found in indexes.scans.items()}
    hashes = {"schedule_hash": schedule.digest(), "index_hash": indexes.digests()}
    tracker = Tracker(arguments["mlflow_uri"], arguments["mlflow_run"]) if world.rank == 0 else None
    poster({"phase": "loading weights ..."}, urgent=True)
    store = open_store(place.checkpoints(config))
    learner, state = starting_point(store, hashes, config, place.folder / "init.txt", device, world, tracker)
    state.microbatches = microbatches(learner.model, config, place, world, device)
    history = MetricsLog(place.folder / "history")
    past = history.restart(state.global_step) if tracker else []
    facts = {**hashes, "classes": {name: list(found.classes) for name, found in indexes.scans.items()}}
    curves = tracker.curves(past) if tracker else None
    events = RayEvents(config, place.folder, store, learner, facts, poster, curves, history, len(schedule))
    plan = Plan(schedule, config.tasks, sizes, config.seed)
    feed = _ReportingFeed(config, plan, indexes, world.rank, world.size)
    feed.poster = poster
    try:
        poster({"phase": "starting the feed ..."}, urgent=True)
        return train(learner, schedule, feed, config, world, state, events)
    finally:
        events.close()


def starting_point(
    store: LocalStore | RemoteStore, hashes: dict[str, Any], config: RunConfig, report: Path, device: torch.device,
    world: World, tracker: Tracker | None,
) -> tuple[TrainUnit, TrainState]:  # fmt: skip
    """As the run's newest whole checkpoint has it; where there is none, anew, from `init.path` if given."""
    step = newest_step(store, world)
    model = PolyViT(config.model, config.tasks, seed=config.seed).to(device)
    freeze_parts(model, config.optim.frozen)
    if step is None and config.init.path:
        initialise_all(model, config, world, report, tracker)
    learner = fit_out(model, config, device, world)
    if step is None:
        return learner, TrainState()
    with store.fetched(step) as folder:
        return learner, load_training(folder, learner, hashes)


def newest_step(store: LocalStore | RemoteStore, world: World) -> int | None:
    """The step of the run's newest whole checkpoint, the same on every rank; None where it has none.

    Rank 0 looks; a damaged one is passed over with a warning.
    """
    step = None
    if world.rank == 0:
        store.sweep()
        step, passed = newest_whole(store)
        for line in passed:
            going = f"going on from step {step}" if step is not None else "starting anew"
            logger.warning("%s; %s", line, going)
    return world.gather(step)[0]


def fit_out(model: PolyViT, config: RunConfig, device: torch.device, world: World) -> TrainUnit:
    """How the model is run and divided, with the optimiser and the average that the config says."""
    model.activation_checkpointing = config.train.activation_checkpointing
    if config.train.compile or (config.train.compile is None and device.type == "cuda"):
        model.compile_blocks()
    if config.train.sharding == "full" and world.size > 1:
        shard(model)
    optimiser = build_optimiser(dict(model.named_parameters()), config.optim)
    ema = Ema(model, config.optim.ema_decay) if config.optim.ema_decay else None
    return TrainUnit(model, optimiser, ema)


def microbatches(
    model: PolyViT, config: RunConfig, place: "RunPlace", world: World, device: torch.device
) -> dict[str, int]:
    """Examples of one pass, by task: measured once a run and number of workers, then read back.

    A run that is killed before its first checkpoint takes the same ones again, and so ends with the same bits.
    """
    record = place.folder / f"microbatches_{world.size}.json"
    found = json.loads(record.read_text()) if world.rank == 0 and record.is_file() else None
    found = world.gather(found)[0]
    if found is None:
        found = derive_microbatches(model, config, world, device)
        if world.rank == 0:
            place.write(record.name, found)
    return found


def initialise_all(model: PolyViT, config: RunConfig, world: World, report: Path, tracker: Tracker | None) -> None:
    """Every rank reads `init.path`; rank 0 writes what was loaded to `report` and to MLflow.

    Raises UserError on all ranks where one of them cannot read the file: it may be there on some nodes only.
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
        report.write_text(table + "\n")
        if tracker:
            tracker.artifact(report)


class _Trainer(ray.train.torch.TorchTrainer):
    """Without the process that would hand out Ray Data's data sets: workers have feeds of their own."""

    def _create_default_callbacks(self) -> list[Any]:
        made = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in made if type(callback).__name__ != "DatasetsCallback"]


def fit(
    config: RunConfig, place: "RunPlace", mlflow_uri: str, mlflow_run: str,
    callbacks: Sequence[Any] = (), meanwhile: Callable[[], None] = lambda: None,
) -> tuple[TrainState, int | None]:  # fmt: skip
    """Run `train_fn` on the workers, with the live line. Returns the final state, and the signal that ended it.

    `meanwhile` is called while the workers start. Raises UserError for the user's mistake; what else
    ends the run comes as Ray Train's error.
    """
    board = Board.options(**on_this_node()).remote()  # type: ignore[attr-defined]
    trainer = _Trainer(
        train_fn,  # type: ignore[arg-type]
        train_loop_config={
            "config": config.model_dump(mode="json"), "place": place, "board": board,
            "mlflow_uri": mlflow_uri, "mlflow_run": mlflow_run,
        },
        scaling_config=scaling(config, use_gpu(config)),
        run_config=ray.train.RunConfig(
            name=place.name,
            storage_path=str(place.folder.parent),
            failure_config=ray.train.FailureConfig(max_failures=config.train.max_failures),
            callbacks=list(callbacks),
        ),
    )  # fmt: skip

    def stop() -> None:
        console.print("stopping at the next step, with a checkpoint; once more to stop at once")
        board.stop.remote()

    with live_line(board):
        result, signum = stoppable(trainer.fit, stop, meanwhile)
    outcome = result.return_value  # type: ignore[attr-defined]
    if "error" in outcome:
        raise UserError(outcome["error"], outcome["problems"])
    return outcome["state"], signum
