"""What runs on the train workers, and the Ray Train run around it.

Every worker builds the same model, schedule and plan from the config, takes its part of every step from its own
feed, and reports checkpoints; rank 0 writes MLflow's curves and the progress line.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import ray.train.torch
import torch.distributed as dist
from torch import Tensor

from pipelines.cluster import use_gpu
from pipelines.feed import RayDataFeed
from pipelines.index import load_indexes
from pipelines.progress import Board, Poster, live_line
from pipelines.tracking import Tracker
from polyvit.checkpoint import TrainState, load_training, save_checkpoint
from polyvit.config import RunConfig
from polyvit.errors import UserError
from polyvit.loop import train
from polyvit.model.polyvit import PolyViT
from polyvit.model.pretrained import initialise
from polyvit.optim import Optimiser, build_optimiser
from polyvit.plan import Plan
from polyvit.schedule import build_schedule
from polyvit.step import World

if TYPE_CHECKING:
    from pipelines.cotrain import RunPlace


class TorchWorld:
    """The process group that Ray Train set up."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank, self.size = context.get_world_rank(), context.get_world_size()

    def sum_(self, flat: Tensor) -> None:
        """All-reduce, in place."""
        if self.size > 1:
            dist.all_reduce(flat)

    def gather(self, value: object) -> list:
        """The value of every rank, in rank order."""
        if self.size == 1:
            return [value]
        values: list[object] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


class RayEvents:
    """News of the loop: progress to the board, curves to MLflow (both rank 0), checkpoints to Ray Train."""

    def __init__(
        self, config: RunConfig, place: "RunPlace", model: PolyViT, optimiser: Optimiser, hashes: dict[str, Any],
        poster: Poster, tracker: Tracker | None,
    ) -> None:  # fmt: skip
        self.config, self.place, self.model, self.optimiser = config, place, model, optimiser
        self.hashes, self.poster, self.tracker = hashes, poster, tracker

    def progress(self, snapshot: dict[str, Any]) -> None:
        """To the live line."""
        self.poster(snapshot)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """To MLflow."""
        if self.tracker:
            self.tracker.metrics(step, values)

    def checkpoint(self, state: TrainState) -> None:
        """Rank 0 writes; every rank reports, since reporting is a barrier."""
        name = self.place.checkpoint(state.global_step).name
        metrics = {"global_step": state.global_step}
        if self.poster.rank != 0:
            ray.train.report(metrics, checkpoint=None, checkpoint_dir_name=name)
            return
        self.poster({"phase": f"writing checkpoint {name} ..."}, urgent=True)
        if self.tracker:
            self.tracker.flush()
        with tempfile.TemporaryDirectory(prefix="polyvit-checkpoint-") as folder:
            save_checkpoint(Path(folder), self.model, self.optimiser, state, self.config, self.hashes)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)


class _ReportingFeed(RayDataFeed):
    """A feed that says on the live line that an evaluation is under way."""

    poster: Poster | None = None

    def evaluation(self) -> Any:
        """As RayDataFeed's."""
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
    world = TorchWorld()
    device = ray.train.torch.get_device()
    indexes = load_indexes(config, place.folder / "index")
    schedule = build_schedule(config.schedule, config.tasks, config.seed)
    sizes = {name: len(found.split("train")) for name, found in indexes.scans.items()}
    model = PolyViT(config.model, config.tasks, seed=config.seed).to(device)
    optimiser = build_optimiser(dict(model.named_parameters()), config.optim)
    hashes = {"schedule_hash": schedule.digest(), "index_hash": indexes.digests()}
    poster = Poster(arguments["board"], world.rank)
    tracker = Tracker(arguments["mlflow_uri"], arguments["mlflow_run"]) if world.rank == 0 else None
    feed = _ReportingFeed(
        config, Plan(schedule, config.tasks, sizes, config.seed), indexes, world.rank, world.size
    )
    feed.poster = poster
    events = RayEvents(config, place, model, optimiser, hashes, poster, tracker)
    try:
        poster({"phase": "loading weights ..."}, urgent=True)
        state = starting_state(model, optimiser, hashes, config, world, place.folder / "init.txt", tracker)
        poster({"phase": "starting the feed ..."}, urgent=True)
        return train(model, optimiser, schedule, feed, config, world, state, events)
    finally:
        if tracker:
            tracker.flush()


def starting_state(
    model: PolyViT, optimiser: Optimiser, hashes: dict[str, Any], config: RunConfig, world: World, report: Path,
    tracker: Tracker | None,
) -> TrainState:  # fmt: skip
    """Load the run's last checkpoint; where it has none yet, start anew, from `init.path` if given."""
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            return load_training(Path(folder), model, optimiser, hashes)
    if config.init.path:
        initialise_all(model, config, world, report, tracker)
    return TrainState()


def initialise_all(model: PolyViT, config: RunConfig, world: World, report: Path, tracker: Tracker | None) -> None:
    """Every rank reads `init.path`; rank 0 writes what was loaded to `report` and to MLflow.

    Raises UserError on all ranks where one of them cannot read the file: it may be there on some nodes only.
    """
    init, failure, table = config.init, None, ""
    try:
        table = initialise(model, str(init.path), kernel_init=init.kernel_init, grid=init.grid).table()
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


def fit(config: RunConfig, place: "RunPlace", mlflow_uri: str, mlflow_run: str) -> TrainState:
    """Run `train_fn` on the workers to the end, with the live line. Returns the final state.

    Raises UserError for the user's mistake; what else ends the run comes as Ray Train's error.
    """
    train_config = config.train
    gpu = use_gpu(config)
    board = Board.remote()  # type: ignore[attr-defined]
    resources = {"CPU": train_config.cpus_per_worker}
    if gpu:
        resources["GPU"] = train_config.gpus_per_worker
    trainer = ray.train.torch.TorchTrainer(
        train_fn,  # type: ignore[arg-type]
        train_loop_config={
            "config": config.model_dump(mode="json"), "place": place, "board": board,
            "mlflow_uri": mlflow_uri, "mlflow_run": mlflow_run,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=train_config.workers, use_gpu=gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=place.name,
            storage_path=str(place.folder.parent),
            failure_config=ray.train.FailureConfig(max_failures=train_config.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=train_config.keep_checkpoints),
        ),
    )  # fmt: skip
    with live_line(board):
        result = trainer.fit()
    outcome = result.return_value  # type: ignore[attr-defined]
    if "error" in outcome:
        raise UserError(outcome["error"], outcome["problems"])
    return outcome["state"]
