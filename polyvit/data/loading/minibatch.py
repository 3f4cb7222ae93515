"""One minibatch from addresses to arrays: read, decode, augment, patchify, substitute what is broken.

In: a `Request` (which examples; small, travels to any decoding process). Out: a `Minibatch` of named arrays, such
as inputs["tokens"] [n * views, N, P] uint8 (float16 for audio), and labels [n, K] uint8. No Ray here: every feed
backend calls `decode`, so that the bytes are the same whoever decodes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from polyvit.config import InputSection, TaskConfig
from polyvit.data.index import Example, examples_at
from polyvit.data.isolation import TimeLimit, import_uninterrupted
from polyvit.data.loading.example import Arrays, Media, blank_arrays, concatenated, example_arrays
from polyvit.data.loading.isolated import ArraysOf, isolated_arrays
from polyvit.data.loading.reader import load_for_decoding, reading_ahead
from polyvit.data.transforms import example_rng
from polyvit.errors import BadMedia
from polyvit.schedule import PlannedBatch
from polyvit.storage import Location


@dataclass(frozen=True)
class Quarantined:
    """One example that could not be decoded: the task, its key and file, and why."""

    task: str
    key: str
    path: str
    reason: str


@dataclass(frozen=True)
class Request:
    """What to decode for one rank at one step.

    epochs: epoch of each example, for its augmentation; empty means evaluation (no augmentation, no spares,
        every evaluation view of each example).
    first_slot, global_batch: see `plan.PlannedBatch`.
    fatal: {key: reason} of its examples and spares that are known to end a decoding process: none is tried again.
    """

    step: int
    task: str
    examples: Sequence[Example]
    epochs: Sequence[int] = ()
    first_slot: int = 0
    global_batch: int = 0
    spares: Sequence[Example] = ()
    fatal: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Minibatch:
    """Arrays of one rank's part of a step's minibatch: `inputs[name]`, [n * views, ...], labels [n, K], keys [n].

    inputs: the arrays that the modality's input section names, such as `tokens`. The views of one example lie
    together; training has one view. bad: every example that could not be decoded,
    those planned and the spares that were tried; undecodable: how many planned ones there are among them.
    """

    step: int
    task: str
    inputs: Arrays
    labels: np.ndarray
    keys: tuple[str, ...]
    first_slot: int
    global_batch: int
    bad: tuple[Quarantined, ...] = field(default=())
    undecodable: int = 0

    @property
    def views(self) -> int:
        """Views of each example."""
        return self.rows // max(1, len(self.labels))

    @property
    def rows(self) -> int:
        """Views of all examples: the first axis of every input."""
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True)
class Decoder:
    """Everything a decoding process needs besides requests: tasks, their input sections and data, the seed.

    tasks, inputs, roots: by task. decode_timeout_s: seconds of wall-clock time for one example, where `decode` is
    told that its process may be ended; None: no limit.
    """

    tasks: Mapping[str, TaskConfig]
    inputs: Mapping[str, InputSection]
    roots: Mapping[str, Location]
    seed: int
    decode_timeout_s: float | None = None

    def decode(self, request: Request, careful: bool | None = None) -> Minibatch:
        """Never raises on bad media: a broken training example gives way to one of the step's spares, tried in
        order from its slot on, a broken evaluation example is left out; each is named in `bad`.

        careful: None in a process that must live: no time limit. In a process that may die (see `isolated.py`):
        False at the first try of a request, True at every other, which finds the example that killed the process
        before. The bytes are the same.
        """
        import_uninterrupted(self.inputs[request.task].codec)
        if careful:
            asked_for = [*request.examples, *request.spares]
            with isolated_arrays(self, request.task, asked_for) as arrays_of:
                return self._minibatch(request, arrays_of)
        try:
            with reading_ahead(request.examples, self.roots[request.task]):
                if careful is None:
                    return self._minibatch(request, self.arrays)
                return self._minibatch(request, partial(self.arrays, seconds=self.decode_timeout_s))
        except MemoryError:
            if careful is None:
                raise
            return self.decode(request, careful=True)

    def _minibatch(self, request: Request, arrays_of: ArraysOf) -> Minibatch:
        decoded, kept, bad, undecodable = [], [], [], 0
        for i, example in enumerate(request.examples):
            epoch = request.epochs[i] if request.epochs else None
            for tried, (candidate, seed_key) in enumerate(self._candidates(request, i, example)):
                try:
                    if reason := request.fatal.get(candidate.key):
                        raise BadMedia(reason)
                    decoded.append(arrays_of(request.task, candidate, epoch, seed_key))
                except BadMedia as error:
                    bad.append(Quarantined(request.task, candidate.key, candidate.path, error.reason))
                    undecodable += not tried
                else:
                    kept.append(candidate)
                    break
        labels = multi_hot([example.labels for example in kept], self.tasks[request.task].num_classes)
        inputs = concatenated(decoded) if decoded else blank_arrays(self.inputs[request.task], 0)
        return Minibatch(
            request.step, request.task, inputs, labels, tuple(example.key for example in kept),
            request.first_slot, request.global_batch, tuple(bad), undecodable,
        )  # fmt: skip

    def _candidates(self, request: Request, i: int, example: Example) -> list[tuple[Example, str]]:
        """The example, then the spares rotated by its slot; with the key that seeds each one's augmentation."""
        slot, spares = request.first_slot + i, list(request.spares)
        turn = slot % len(spares) if spares else 0
        substitutes = spares[turn:] + spares[:turn]
        return [(example, example.key), *((spare, f"{spare.key}\x00slot{slot}") for spare in substitutes)]

    def arrays(
        self,
        task_name: str,
        example: Example,
        epoch: int | None,
        seed_key: str,
        seconds: float | None = None,
        read: Callable[[], None] | None = None,
        media: Media | Arrays | None = None,
    ) -> Arrays:
        """Named arrays [views, ...] of one example. Raises BadMedia.

        epoch: of the task, for augmentation; None: every evaluation view. seed_key: seeds the augmentation, the
        example's key. seconds: the time that decoding has before this process is ended (`TimeLimit`). read: called
        when the bytes are there. Reading has no limit: a slow disk is not the file's fault. media: the bytes, if
        they were read before.
        """
        media = load_for_decoding(example, self.roots[task_name]) if media is None else media
        if read:
            read()
        task, spec = self.tasks[task_name], self.inputs[task_name]
        rng = None if epoch is None else example_rng(self.seed, task_name, epoch, seed_key)
        with TimeLimit(seconds):
            return example_arrays(media, task, spec, rng, example.start, example.end)


def multi_hot(labels: Sequence[Sequence[int]], num_classes: int) -> np.ndarray:
    """[n, K] uint8 with ones at each example's labels."""
    rows = np.zeros((len(labels), num_classes), dtype=np.uint8)
    for row, classes in zip(rows, labels, strict=True):
        row[list(classes)] = 1
    return rows


def train_request(batch: PlannedBatch, examples: Sequence[Example]) -> Request:
    """A rank's planned batch with the addresses of its examples (`examples`: the train split)."""
    return Request(
        step=batch.step,
        task=batch.task,
        examples=examples_at(examples, batch.positions),
        epochs=[int(e) for e in batch.epochs],
        first_slot=batch.first_slot,
        global_batch=batch.global_batch,
        spares=examples_at(examples, batch.spares),
    )
