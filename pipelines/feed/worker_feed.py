"""The plan's requests -> Ray's decoding processes -> this train worker's minibatches, in step order.

Each worker has one feed, which begins at the step where training begins. `feed.backend` says which backend decodes
(`ray_tasks.py`, `ray_data.py`); the bytes are the same. README, "How the feed works", says why it is not nine
`streaming_split` datasets.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

from pipelines.feed.ray_data import ray_data_minibatches
from pipelines.feed.ray_tasks import ray_core_minibatches
from pipelines.index import Indexes
from pipelines.runtime import living_nodes
from polyvit.config import RunConfig
from polyvit.data.loading import Decoder, Minibatch, PrefetchIterator, Request, Requests
from polyvit.schedule import Plan

KEPT = 20
"""Statistics of pipelines that are kept, the last ones."""


def minibatches(
    requests: Iterable[Request], decoder: Decoder, config: RunConfig, world_size: int = 1,
    report: Callable[[str], None] = lambda statistics: None,
) -> PrefetchIterator[Minibatch]:  # fmt: skip
    """The minibatch of each request, in their order, from processes of the cluster; close it when done.

    It starts at once. Another thread takes the requests as they are needed. `world_size`: how many such streams
    share the cluster. `report`: called with Ray Data's statistics of each segment of the pipeline that ends.
    """
    decoders = decoders_of_a_worker(config, world_size)
    if config.feed.backend == "ray_data":
        return PrefetchIterator(ray_data_minibatches(requests, decoder, config, decoders, report), 1)
    return PrefetchIterator(ray_core_minibatches(requests, decoder, config, decoders), 1)


def decoders_of_a_worker(config: RunConfig, world_size: int) -> int:
    """`feed.decode_workers`; where it is not set, this worker's share of the decoding processes that fit on the
    cluster."""
    if config.feed.decode_workers:
        return config.feed.decode_workers
    data, train = config.data, config.train
    nodes = [node for node in living_nodes() if node.carries(data.decode_node_labels)]
    cpus = sum(node.resources.get("CPU", 0) for node in nodes)
    if any(node.carries(train.worker_node_labels) for node in nodes):
        cpus -= world_size * train.cpus_per_worker
    return max(1, int(cpus / data.decode_cpus / world_size))


class RayFeed:
    """The feed of one train worker.

    config, indexes: of the run. plan: which examples each step takes. rank, world_size: of this worker.
    statistics: Ray Data's, of the last segments and evaluations.
    """

    def __init__(self, config: RunConfig, plan: Plan, indexes: Indexes, rank: int, world_size: int) -> None:
        self.config, self.schedule = config, plan.schedule
        self.requests = Requests.of(config, plan, indexes.scans, rank, world_size)
        self.decoder = make_decoder(config, indexes)
        self.statistics: deque[str] = deque(maxlen=KEPT)
        self._begun: dict[int, closing[PrefetchIterator[Minibatch]]] = {}

    def begin(self, start_step: int) -> None:
        """Start to decode for `train(start_step)`, which is called later."""
        steps = range(start_step, self.schedule.known + 1)
        self._begun[start_step] = self._minibatches(
            request for step in steps for request in self.requests.at(step)
        )

    def train(self, start_step: int) -> Iterator[list[Minibatch]]:
        """The minibatches of steps start_step .. N, one list for each step.

        Of an adaptive schedule to the last step whose task is known: it is called again after the decision, so
        nothing is decoded that may not be used.
        """
        if start_step not in self._begun:
            self.begin(start_step)
        known = self.schedule.known
        with self._begun.pop(start_step) as stream:
            for step in range(start_step, known + 1):
                step_minibatches = [next(stream) for _ in self.schedule.tasks_at(step)]
                for minibatch in step_minibatches:
                    self.requests.learn(minibatch)
                yield step_minibatches

    def recent(self, step: int, count: int) -> Iterator[Minibatch]:
        """This rank's part of the last `count` minibatches of each task up to a step, decoded once more."""
        with self._minibatches(self.requests.recent(step, count)) as stream:
            yield from stream

    def evaluation(self) -> Iterator[Minibatch]:
        """This rank's share of every task's evaluation split."""
        with self._minibatches(self.requests.evaluation()) as stream:
            for minibatch in stream:
                self.requests.learn(minibatch)
                yield minibatch

    def _minibatches(self, requests: Iterable[Request]) -> "closing[PrefetchIterator[Minibatch]]":
        world_size = self.requests.world_size
        return closing(minibatches(requests, self.decoder, self.config, world_size, self.statistics.append))


def make_decoder(config: RunConfig, indexes: Indexes) -> Decoder:
    """All that the decoding processes need to know of a run."""
    inputs = {name: config.model.input(task.modality) for name, task in config.tasks.items()}
    return Decoder(config.tasks, inputs, indexes.roots, config.seed, config.data.decode_timeout_s)
