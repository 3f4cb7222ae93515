"""Co-training in this process: no Ray, no MLflow, one device, for notebooks and small data.

In: a config. Out: a run's folder as `polyvit cotrain` leaves it (config, indexes, history, checkpoints, result),
but for what Ray and MLflow write. The loop, the minibatches and the checkpoints are those of a run on one worker.
"""

import json
import logging
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from polyvit.checkpoint import (
    AsyncCheckpointWriter,
    Keep,
    MetricsLog,
    TrainState,
    TrainUnit,
    best_step,
    checkpoint_data,
    folder_name,
    open_store,
    training_tensors,
)
from polyvit.config import RunConfig, run_name
from polyvit.data.index import Scan, index_hash, read_index, report_of
from polyvit.data.layouts import scan_task, split_problems, task_roots
from polyvit.data.loading import Decoder, InlineFeed, Minibatch, PrefetchIterator, Requests, check_readable
from polyvit.deploy import TrainedModel, load
from polyvit.distributed import SingleProcess
from polyvit.errors import UserError
from polyvit.evaluation import result_rows
from polyvit.model import build_model, fast_kernels, parameters_of
from polyvit.quickstart.notebook_config import ConfigLike, as_config
from polyvit.schedule import Plan, Schedule, schedule_of
from polyvit.storage import write_whole
from polyvit.training import (
    Callback,
    CallbackList,
    RunInfo,
    build_learner,
    callbacks_of,
    checked_callbacks,
    compile_ahead,
    derive_eval_batch,
    derive_microbatches,
    freeze_parts,
    how_it_ended,
    initialise_model,
)
from polyvit.training import train as train_loop

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalRun:
    """What came of a run.

    folder: the run's, which every command takes. history: points of the curves, such as
    {"step": n, "train/pets/loss": ...}. results: of the last
    evaluation, {task: {"metric", "value", "chance", ...}}.
    stopped: whether it was interrupted, and ended after a checkpoint. ended: why it ended and at which step, such
    as {"reason": "all_steps", "step": 28}.
    """

    folder: Path
    history: list[dict[str, float]]
    results: dict[str, dict[str, Any]]
    stopped: bool = False
    ended: dict[str, Any] | None = None

    @cached_property
    def model(self) -> TrainedModel:
        """The trained model, as `polyvit.load` gives it."""
        return load(self.folder)

    def __repr__(self) -> str:
        values = ", ".join(
            f"{name} {row['metric']} -" if row["value"] is None else f"{name} {row['metric']} {row['value']:.3f}"
            for name, row in self.results.items()
        )
        return f"LocalRun({str(self.folder)!r}{', stopped' if self.stopped else ''}: {values})"


def train(
    config: ConfigLike, overrides: Sequence[str] = (), *, name: str | None = None, device: str | None = None,
    progress: bool = True, callbacks: Sequence[Callback] = (),
) -> LocalRun:  # fmt: skip
    """Co-train one model on all tasks of a config, in this process: `train("mine.yaml").model.predict("a.jpg")`.

    config: a recipe's name, a YAML file's path, the same as a dict, or a `RunConfig`. overrides: `key.path=value`,
    as on the command line. name: of the run's folder in `storage`; None: from the config's name and the time.
    device: such as "cpu" or "cuda:0"; None: a GPU where there is one. progress: show a bar. callbacks: hear of
    steps, evaluations and checkpoints, with those of `train.callbacks`.

    One interrupt (the notebook's stop button) ends the run after the step, with a checkpoint; a second at once.
    Media are decoded in a thread of this process. For more than minutes: `polyvit cotrain`, which decodes on all
    cores, survives files that kill their decoder, and goes on after a crash.

    Raises UserError for mistakes in the config and the data, with every problem, and of a callback that failed.
    """
    config = as_config(config, overrides)
    hearing = CallbackList([*checked_callbacks(callbacks), *callbacks_of(config)])
    config = config.with_train(workers=1)
    check_readable(config)
    roots = task_roots(config)
    there = torch.cuda.is_available() and config.train.use_gpu is not False
    where = torch.device(device or ("cuda" if there else "cpu"))
    folder = _new_folder(config, name)
    try:
        scans, reused = _scan(config, roots, folder)
        run = _Run(config, folder, scans, reused, roots, where, hearing)
    except UserError:
        shutil.rmtree(folder)  # nothing was trained: no run
        raise
    return run.train(progress)


def _new_folder(config: RunConfig, name: str | None) -> Path:
    unique = run_name(config, name, "name=")
    folder = Path(config.storage).expanduser().absolute() / unique
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"run {unique} exists in {folder.parent}; give another name") from None
    except OSError as error:
        raise UserError(f"storage={config.storage} cannot be written ({error}); give another folder") from None
    return folder


def _scan(config: RunConfig, roots: Mapping[str, Any], folder: Path) -> tuple[dict[str, Scan], set[str]]:
    """The index of every task, and the tasks of which it is the cache's in `storage`: their data are unchanged."""
    cache, problems, scans, reused = folder.parent / "index-cache", [], {}, set[str]()
    for name, task in config.tasks.items():
        target = folder / "index" / f"{name}.parquet"
        again, problem = scan_task(task, roots[name], name, target, cache)
        if problem:
            problems.append(problem)
        else:
            scans[name] = read_index(target)
            reused |= {name} if again else set()
    if problems := [*problems, *split_problems(config, scans)]:
        raise UserError("the data do not fit the config:", problems)
    return scans, reused


class _ThreadedFeed(InlineFeed):
    """Decodes in a thread, ahead of the step."""

    def train(self, start_step: int) -> Iterator[list[Minibatch]]:
        """As `InlineFeed.train`."""
        with closing(PrefetchIterator(super().train(start_step), depth=2)) as ready:
            yield from ready


class _Run:
    """One run: the loop's callbacks, and what is written before and after it."""

    def __init__(
        self, config: RunConfig, folder: Path, scans: Mapping[str, Scan], reused: Set[str],
        roots: Mapping[str, Any], device: torch.device, callbacks: CallbackList,
    ) -> None:  # fmt: skip
        self.callbacks = callbacks
        self.config, self.folder, self.scans, self.device = config, folder, scans, device
        self.schedule: Schedule = schedule_of(config)
        if words := config.long_warmup(len(self.schedule)):
            logger.warning(words)
        model = build_model(config, seed=config.seed).to(device)
        freeze_parts(model, config.optim.frozen)
        if config.init.path:
            write_whole(folder / "init.txt", initialise_model(model, config).table() + "\n")
        self.learner: TrainUnit = build_learner(model, config, device, SingleProcess())
        sizes = {task: len(scan.split("train")) for task, scan in scans.items()}
        plan = Plan(self.schedule, config.tasks, sizes, config.seed)
        inputs = {task: config.model.input(section.modality) for task, section in config.tasks.items()}
        decoder = Decoder(config.tasks, inputs, roots, config.seed)
        self.feed = _ThreadedFeed(Requests.of(config, plan, scans, 0, 1), decoder)
        hashes = {task: index_hash(scan) for task, scan in scans.items()}
        self.report = {
            task: report_of(scan, str(roots[task]), hashes[task], task in reused) for task, scan in scans.items()
        }
        self.metadata = {
            "schedule_hash": self.schedule.digest(), "index_hash": hashes,
            "classes": {task: list(scan.classes) for task, scan in scans.items()},
        }  # fmt: skip
        self.log = MetricsLog(folder / "history")
        self.store = open_store(folder)
        keep = Keep(config.train.keep_checkpoints, config.train.keep_best, config.train.best_metric)
        self.writer = AsyncCheckpointWriter(self.store, keep, before=self.log.write, after=self._checkpointed)
        self.history: list[dict[str, float]] = []
        self.interrupted = False
        self.bar: Progress | None = None

    def train(self, progress: bool) -> LocalRun:
        """All steps, and what the folder holds then."""
        self._write("config.json", self.config.model_dump(mode="json"))
        self._write("index.json", self.report)
        write_whole(
            self.folder / "config.yaml", yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        )
        table = parameters_of(self.config)
        self._write("parameters.json", {**table, "total": sum(table.values())})
        world, state = SingleProcess(), TrainState()
        state.microbatches = derive_microbatches(self.learner.model, self.config, world, self.device)
        self._measure_eval_batch()
        with ExitStack() as stack:
            stack.callback(self.callbacks.end)
            stack.callback(self.writer.close)
            self.callbacks.start(RunInfo(self.config, self.folder, len(self.schedule)))
            stack.enter_context(self._interruptible())
            stack.enter_context(fast_kernels(self.device, self.config.train.precision))
            if progress:
                columns = (TextColumn("step {task.completed:.0f}/{task.total:.0f}"), BarColumn())
                more = (TextColumn("{task.description}"), TimeRemainingColumn())
                self.bar = stack.enter_context(Progress(*columns, *more))
                self.bar.add_task("starting ...", total=len(self.schedule))
            compile_ahead(self.learner.model, self.config, world, state.microbatches)
            state = train_loop(self.learner, self.schedule, self.feed, self.config, world, state, self)
        self.callbacks.check()
        last = state.evaluations[-1]["tasks"] if state.evaluations else {}
        rows = result_rows(self.config, self.schedule, self.scans, last, state.global_step)
        self._write("quarantine.json", [asdict(entry) for entry in state.quarantine])
        if not state.stopped:
            self._write("result.json", self._result(state, rows))
        ended = None if state.stopped else how_it_ended(state.ended, state.global_step)
        return LocalRun(self.folder, self.history, rows, state.stopped, ended)

    def _checkpointed(self, step: int) -> None:
        self.callbacks.written(step, str(self.folder / folder_name(step)))

    def _measure_eval_batch(self) -> None:
        """Evaluation minibatches as large as memory allows; their size is in the checkpoints' config."""
        views = derive_eval_batch(self.learner.model, self.config, SingleProcess(), self.device)
        self.config = self.config.with_train(eval_batch=views)
        self.feed = replace(self.feed, requests=replace(self.feed.requests, config=self.config))

    def _result(self, state: TrainState, rows: Mapping[str, Any]) -> dict[str, Any]:
        metric, best = self.config.train.best_metric, None
        if step := best_step(self.store, metric):
            value = self.store.manifest(step)["metrics"][metric]
            checkpoint = str(self.folder / folder_name(step))
            best = {"step": step, "metric": metric, "value": value, "checkpoint": checkpoint}
        return {
            "run": self.folder.name, "checkpoint": str(self.folder / folder_name(state.global_step)), "best": best,
            "steps": state.global_step, "ended": how_it_ended(state.ended, state.global_step), "workers": 1,
            "tasks": rows,
            **({"decisions": state.decisions} if self.config.schedule.kind == "adaptive" else {}),
        }  # fmt: skip

    def _write(self, name: str, document: Any) -> None:
        write_whole(self.folder / name, json.dumps(document, indent=1, default=str) + "\n")

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first interrupt ends the run after a step; in another thread than the main one none arrives."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def handler(signum: int, frame: object) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, before)

        signal.signal(signal.SIGINT, handler)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    # ------------------------------------------------------------- polyvit.training.loop.TrainCallback

    def progress(self, snapshot: dict[str, Any]) -> None:
        """Show a step on the bar."""
        self.callbacks.step(snapshot)
        if self.bar:
            text = f"{snapshot['task']}  loss {snapshot['loss']:.4f}"
            self.bar.update(self.bar.task_ids[0], completed=snapshot["step"], description=text)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Keep a point of the curves."""
        self.history.append({"step": step, **values})
        self.log.add(step, values)
        self.callbacks.log(step, values)

    def evaluated(self, step: int, scores: dict[str, float]) -> None:
        """Show the mean of the tasks' metrics on the bar."""
        self.callbacks.evaluation(step, scores)
        if self.bar and "mean" in scores:
            self.bar.update(self.bar.task_ids[0], description=f"evaluated: mean {scores['mean']:.3f}")

    def checkpoint(self, state: TrainState, last: bool) -> None:
        """Write a checkpoint; the last one before going on."""
        data = checkpoint_data(training_tensors(self.learner), state, self.config, self.metadata)
        (self.writer.finish if last else self.writer.save)(data)

    def stop_requested(self) -> bool:
        """Whether an interrupt came, or a callback failed."""
        return self.interrupted or self.callbacks.failure is not None

    def anomaly(self, minibatch: Minibatch) -> str | None:
        """Nothing is kept of it: the keys of its examples are in the message."""
        return None
