"""Ray Data: the plan's rows -> bytes -> tokens -> this train worker, in step order.

One pipeline a worker, built inside the train function from the step to start at, in segments of a few hundred
steps. One row = one local minibatch = one block. The executor of the next segment starts before the current one
ends, so no step waits for it. Why not nine `streaming_split` datasets: README, "How the feed works".
"""

import pickle
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray.data

from pipelines.index import Indexes
from polyvit.config import RunConfig
from polyvit.data.index import Example
from polyvit.data.minibatch import Decoder, Minibatch, Request, evaluation_requests, train_request
from polyvit.plan import Plan

EVAL_BATCH = 64
"""Most examples of one evaluation minibatch."""


def decode_row(batch: dict[str, np.ndarray], decoder: Decoder) -> dict[str, np.ndarray]:
    """One row in (a pickled `Request`), one row out: tokens [1, n, N, P], labels [1, n, K], the rest pickled."""
    minibatch = decoder.decode(pickle.loads(batch["request"][0]))
    rest = pickle.dumps(
        (
            minibatch.step,
            minibatch.task,
            minibatch.keys,
            minibatch.first_slot,
            minibatch.global_batch,
            minibatch.bad,
        )
    )
    return {
        "tokens": minibatch.tokens[None],
        "labels": minibatch.labels[None],
        "rest": np.array([rest], dtype=object),
    }


def decoded(requests: Sequence[Request], decoder: Decoder, num_cpus: float) -> "ray.data.Dataset":
    """A dataset of one row and one block a request, in the order given."""
    rows = [{"request": pickle.dumps(request)} for request in requests]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        decode_row,  # type: ignore[arg-type]
        batch_size=1,
        batch_format="numpy",
        fn_args=(decoder,),
        num_cpus=num_cpus,
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.execution_no_progress_timeout_s = -1
    dataset.context.enable_progress_bars = False
    dataset.context.max_errored_blocks = 0  # a lost block would shift the ranks apart
    return dataset


def to_minibatch(row: dict[str, Any]) -> Minibatch:
    """A delivered row back to a `Minibatch`; arrays are views of the object store, read-only."""
    step, task, keys, first_slot, global_batch, bad = pickle.loads(row["rest"][0])
    return Minibatch(step, task, row["tokens"][0], row["labels"][0], keys, first_slot, global_batch, bad)


class _Failure:
    """An exception that crossed from the reading thread."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Segment:
    """Minibatches of some requests, read ahead by a thread into a bounded queue."""

    def __init__(self, requests: Sequence[Request], decoder: Decoder, num_cpus: float, prefetch: int) -> None:
        self.count = len(requests)
        self._ready: queue.Queue[Minibatch | _Failure] = queue.Queue(maxsize=prefetch)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._read, args=(requests, decoder, num_cpus), name="polyvit-feed", daemon=True
        )
        self._thread.start()

    def _read(self, requests: Sequence[Request], decoder: Decoder, num_cpus: float) -> None:
        try:
            rows = decoded(requests, decoder, num_cpus).iter_batches(
                batch_size=None, batch_format="numpy", prefetch_batches=1
            )
            for row in rows:
                if not self._put(to_minibatch(row)):
                    return
        except BaseException as error:  # whatever it is, the training thread must see it
            self._put(_Failure(error))

    def _put(self, item: Minibatch | _Failure) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[Minibatch]:
        """Each minibatch once, in order; raises what the reading thread met."""
        for _ in range(self.count):
            item = self._ready.get()
            if isinstance(item, _Failure):
                raise item.error
            yield item

    def close(self) -> None:
        """Stop reading ahead."""
        self._stop.set()


@dataclass
class RayDataFeed:
    """The feed of one train worker."""

    config: RunConfig
    plan: Plan
    indexes: Indexes
    rank: int
    world_size: int
    _train_splits: dict[str, list[Example]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._train_splits = {name: found.split("train") for name, found in self.indexes.scans.items()}

    @property
    def decoder(self) -> Decoder:
        """What the decoding processes need."""
        tasks = self.config.tasks
        inputs = {name: self.config.model.input(task.modality) for name, task in tasks.items()}
        return Decoder(tasks, inputs, self.indexes.roots, self.config.seed)

    def requests(self, step: int) -> list[Request]:
        """This rank's minibatches of one step."""
        planned = self.plan.at(step, self.rank, self.world_size)
        return [train_request(batch, self._train_splits[batch.task]) for batch in planned]

    def train(self, start_step: int) -> Iterator[list[Minibatch]]:
        """The minibatches of steps start_step .. N, a list a step."""
        feed, total = self.config.feed, len(self.plan.schedule)
        starts = list(range(start_step, total + 1, feed.segment_steps))
        current = self._segment(starts[0], total) if starts else None
        for i, start in enumerate(starts):
            stop = min(start + feed.segment_steps, total + 1)
            following = None
            assert current is not None
            minibatches = iter(current)
            try:
                for step in range(start, stop):
                    if following is None and i + 1 < len(starts) and step >= stop - feed.segment_steps // 4 - 1:
                        following = self._segment(starts[i + 1], total)
                    yield [next(minibatches) for _ in self.plan.schedule.tasks_at(step)]
            finally:
                current.close()
            current = following

    def _segment(self, start: int, total: int) -> Segment:
        stop = min(start + self.config.feed.segment_steps, total + 1)
        requests = [request for step in range(start, stop) for request in self.requests(step)]
        return Segment(requests, self.decoder, self.config.data.decode_cpus, self.config.feed.prefetch)

    def evaluation(self) -> Iterator[Minibatch]:
        """This rank's share of every task's evaluation split."""
        requests: list[Request] = []
        for name, task in self.config.tasks.items():
            examples = self.indexes.scans[name].split(task.eval_split)
            batch = min(EVAL_BATCH, max(1, -(-len(examples) // self.world_size)))
            requests += evaluation_requests(name, examples, batch, self.rank, self.world_size)
        if not requests:
            return
        segment = Segment(requests, self.decoder, self.config.data.decode_cpus, self.config.feed.prefetch)
        try:
            yield from segment
        finally:
            segment.close()
