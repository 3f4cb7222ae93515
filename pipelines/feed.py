"""Ray Data: the plan's rows -> bytes -> tokens -> this train worker, in step order.

One pipeline a worker, built inside the train function from the step to start at, in segments of a few hundred
steps. One row = one local minibatch = one block. The executor of the next segment starts before the current one
ends, so no step waits for it. Why not nine `streaming_split` datasets: README, "How the feed works".
"""

import pickle
import queue
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray.data

from pipelines.index import Indexes
from polyvit.config import RunConfig
from polyvit.data.minibatch import Decoder, Minibatch, Request
from polyvit.feed import Requests
from polyvit.plan import Plan


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


def decoded(
    requests: Sequence[Request], decoder: Decoder, num_cpus: float, labels: Mapping[str, str] | None = None
) -> "ray.data.Dataset":
    """A dataset of one row and one block a request, in the order given; decoded on nodes with these labels."""
    rows = [{"request": pickle.dumps(request)} for request in requests]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        decode_row,  # type: ignore[arg-type]
        batch_size=1,
        batch_format="numpy",
        fn_args=(decoder,),
        num_cpus=num_cpus,
        label_selector=dict(labels) if labels else None,
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

    def __init__(
        self,
        requests: Sequence[Request],
        decoder: Decoder,
        num_cpus: float,
        prefetch: int,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self.count = len(requests)
        self._ready: queue.Queue[Minibatch | _Failure] = queue.Queue(maxsize=prefetch)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._read, args=(requests, decoder, num_cpus, labels), name="polyvit-feed", daemon=True
        )
        self._thread.start()

    def _read(
        self, requests: Sequence[Request], decoder: Decoder, num_cpus: float, labels: Mapping[str, str] | None
    ) -> None:
        try:
            rows = decoded(requests, decoder, num_cpus, labels).iter_batches(
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


class RayDataFeed:
    """The feed of one train worker."""

    def __init__(self, config: RunConfig, plan: Plan, indexes: Indexes, rank: int, world_size: int) -> None:
        self.config, self.total = config, len(plan.schedule)
        self.requests = Requests.of(config, plan, indexes.scans, rank, world_size)
        self.decoder = make_decoder(config, indexes)

    def train(self, start_step: int) -> Iterator[list[Minibatch]]:
        """The minibatches of steps start_step .. N, a list a step."""
        length = self.config.feed.segment_steps
        starts = list(range(start_step, self.total + 1, length))
        following = self._segment_from(starts[0]) if starts else None
        for i, start in enumerate(starts):
            current, following = following, None
            assert current is not None
            stop = min(start + length, self.total + 1)
            minibatches = iter(current)
            try:
                for step in range(start, stop):
                    if following is None and i + 1 < len(starts) and step >= stop - 1 - length // 4:
                        following = self._segment_from(starts[i + 1])
                    yield [next(minibatches) for _ in self.requests.plan.schedule.tasks_at(step)]
            finally:
                current.close()
                if following is not None and sys.exc_info()[0] is not None:
                    following.close()

    def _segment_from(self, start: int) -> Segment:
        stop = min(start + self.config.feed.segment_steps, self.total + 1)
        return self._segment([request for step in range(start, stop) for request in self.requests.at(step)])

    def _segment(self, requests: Sequence[Request]) -> Segment:
        data = self.config.data
        return Segment(requests, self.decoder, data.decode_cpus, self.config.feed.prefetch, data.decode_labels)

    def evaluation(self) -> Iterator[Minibatch]:
        """This rank's share of every task's evaluation split."""
        if requests := self.requests.evaluation():
            segment = self._segment(requests)
            try:
                yield from segment
            finally:
                segment.close()


def make_decoder(config: RunConfig, indexes: Indexes) -> Decoder:
    """What the decoding processes need to know of a run."""
    inputs = {name: config.model.input(task.modality) for name, task in config.tasks.items()}
    return Decoder(config.tasks, inputs, indexes.roots, config.seed)
