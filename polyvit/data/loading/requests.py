"""From the plan to requests for one rank, and the plainest feed: decode in this process.

`pipelines/feed/worker_feed.py` brings the same requests to Ray's decoding processes; the bytes are the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from polyvit.config import RunConfig
from polyvit.data.index import Example, Scan
from polyvit.data.isolation import is_fatal
from polyvit.data.loading.example import example_bytes
from polyvit.data.loading.minibatch import Decoder, Minibatch, Request, train_request
from polyvit.schedule import Plan

EVAL_BATCH = 64
"""Most views (clip x crop) of a minibatch of features or predictions; one example has all its views in one."""
EVAL_BYTES = 256 * 2**20
"""Most bytes of tokens of an evaluation minibatch of more than EVAL_BATCH views."""


@dataclass(frozen=True)
class Requests:
    """What one rank must read: at every step, and for an evaluation."""

    config: RunConfig
    plan: Plan
    train_splits: Mapping[str, Sequence[Example]]
    eval_splits: Mapping[str, Sequence[Example]]
    rank: int = 0
    world_size: int = 1
    fatal: dict[str, dict[str, str]] = field(default_factory=dict)
    """{task: {key: reason}} of examples that ended a decoding process: each costs one and its time only once."""

    @classmethod
    def of(
        cls, config: RunConfig, plan: Plan, scans: Mapping[str, Scan], rank: int, world_size: int
    ) -> "Requests":
        """From the tasks' indexes."""
        train = {name: scans[name].split("train") for name in config.tasks}
        held = {name: scans[name].split(task.eval_split) for name, task in config.tasks.items()}
        return cls(config, plan, train, held, rank, world_size)

    def at(self, step: int) -> list[Request]:
        """This rank's minibatches of one step: one, or one a task when accumulating."""
        planned = self.plan.at(step, self.rank, self.world_size)
        return [self._without_fatal(train_request(batch, self.train_splits[batch.task])) for batch in planned]

    def recent(self, step: int, count: int) -> list[Request]:
        """This rank's part of the last `count` minibatches of each task up to a step."""
        planned = self.plan.recent(step, count, self.rank, self.world_size)
        return [self._without_fatal(train_request(batch, self.train_splits[batch.task])) for batch in planned]

    def evaluation(self) -> list[Request]:
        """This rank's share of every task's evaluation split."""
        requests = split_requests(self.config, self.eval_splits, self.rank, self.world_size)
        return list(map(self._without_fatal, requests))

    def learn(self, minibatch: Minibatch) -> None:
        """Keep what a decoded minibatch says of files that end a process; later requests say so."""
        for entry in minibatch.bad:
            if is_fatal(entry.reason):
                self.fatal.setdefault(entry.task, {})[entry.key] = entry.reason

    def _without_fatal(self, request: Request) -> Request:
        known = self.fatal.get(request.task)
        if not known:
            return request
        keys = {example.key for example in (*request.examples, *request.spares)}
        met = list(known.items())  # at once: the training thread learns while the feed's thread asks
        return replace(request, fatal={key: reason for key, reason in met if key in keys})


def evaluation_requests(
    task: str, examples: Sequence[Example], batch: int, rank: int, world_size: int
) -> list[Request]:
    """The rank's share of one split of one task, every example once, without augmentation: every `world_size`-th
    minibatch.

    task: its name. examples: the split. batch: most examples of a minibatch. rank, world_size: whose share.
    """
    starts = range(0, len(examples), batch)
    return [
        Request(i, task, examples[start : start + batch], first_slot=start, global_batch=len(examples))
        for i, start in enumerate(starts)
        if i % world_size == rank
    ]


def eval_rows(config: RunConfig, name: str) -> int:
    """Views of a task's full evaluation minibatch: as many whole examples as `train.eval_batch` holds, at least
    one."""
    task, most = config.tasks[name], config.train.known_eval_batch
    if most > EVAL_BATCH:
        most = min(most, max(EVAL_BATCH, EVAL_BYTES // example_bytes(config.model.input(task.modality))))
    return max(1, most // task.eval_views) * task.eval_views


def split_requests(
    config: RunConfig, splits: Mapping[str, Sequence[Example]], rank: int, world_size: int
) -> list[Request]:
    """`evaluation_requests` of a split of every task, in minibatches of at most `eval_rows` views."""
    requests: list[Request] = []
    for name, examples in splits.items():
        most = eval_rows(config, name) // config.tasks[name].eval_views
        batch = min(most, max(1, -(-len(examples) // world_size)))
        requests += evaluation_requests(name, examples, batch, rank, world_size)
    return requests


@dataclass(frozen=True)
class InlineFeed:
    """Decodes in the calling process: for tests, profiling and tiny runs without Ray."""

    requests: Requests
    decoder: Decoder

    def train(self, start_step: int) -> Iterator[list[Minibatch]]:
        """The minibatches of steps start_step .. N, or the last whose task is known, a list a step."""
        for step in range(start_step, self.requests.plan.schedule.known + 1):
            yield [self.decoder.decode(request) for request in self.requests.at(step)]

    def recent(self, step: int, count: int) -> Iterator[Minibatch]:
        """The last `count` minibatches of each task up to a step, once more."""
        for request in self.requests.recent(step, count):
            yield self.decoder.decode(request)

    def evaluation(self) -> Iterator[Minibatch]:
        """Every task's evaluation split."""
        for request in self.requests.evaluation():
            yield self.decoder.decode(request)
