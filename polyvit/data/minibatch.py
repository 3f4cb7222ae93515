"""One minibatch from addresses to arrays: read, decode, augment, patchify, substitute what is broken.

In: a `Request` (which examples; small, travels to any decoding process). Out: a `Minibatch` of arrays:
tokens [n * views, N, P] uint8 (float16 for audio), labels [n, K] uint8. No Ray here: every feed backend calls
`decode`, so that the bytes are the same whoever decodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from polyvit.config import ModelInput
from polyvit.data.augment import example_rng
from polyvit.data.example import evaluation_tokens, example_tokens, token_dtype, token_shape
from polyvit.data.index import Example
from polyvit.data.source import load
from polyvit.errors import BadMedia
from polyvit.plan import PlannedBatch
from polyvit.task_config import TaskConfig


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
    """

    step: int
    task: str
    examples: Sequence[Example]
    epochs: Sequence[int] = ()
    first_slot: int = 0
    global_batch: int = 0
    spares: Sequence[Example] = ()


@dataclass(frozen=True)
class Minibatch:
    """Arrays of one rank's part of a step's minibatch: tokens [n * views, N, P], labels [n, K], keys [n].

    The views of one example lie together; training has one view.
    """

    step: int
    task: str
    tokens: np.ndarray
    labels: np.ndarray
    keys: tuple[str, ...]
    first_slot: int
    global_batch: int
    bad: tuple[Quarantined, ...] = field(default=())

    @property
    def views(self) -> int:
        """Views of each example."""
        return len(self.tokens) // max(1, len(self.labels))


@dataclass(frozen=True)
class Decoder:
    """Everything a decoding process needs besides requests: task and input sections, roots, seed."""

    tasks: Mapping[str, TaskConfig]
    inputs: Mapping[str, ModelInput]
    roots: Mapping[str, Path]
    seed: int

    def decode(self, request: Request) -> Minibatch:
        """Never raises on bad media: a broken training example gives way to one of the step's spares, tried in
        order from its slot on, a broken evaluation example is left out; each is named in `bad`.
        """
        task, spec = self.tasks[request.task], self.inputs[request.task]
        tokens, kept, bad = [], [], []
        for i, example in enumerate(request.examples):
            for candidate, seed_key in self._candidates(request, i, example):
                try:
                    tokens.append(self._tokens(request, i, candidate, seed_key))
                except BadMedia as error:
                    bad.append(Quarantined(request.task, candidate.key, candidate.path, error.reason))
                else:
                    kept.append(candidate)
                    break
        empty = np.zeros((0, *token_shape(spec)), token_dtype(task.modality))
        stacked = np.concatenate(tokens) if tokens else empty
        labels = multi_hot([example.labels for example in kept], task.num_classes)
        return Minibatch(
            request.step, request.task, stacked, labels, tuple(example.key for example in kept),
            request.first_slot, request.global_batch, tuple(bad),
        )  # fmt: skip

    def _candidates(self, request: Request, i: int, example: Example) -> list[tuple[Example, str]]:
        """The example, then the spares rotated by its slot; with the key that seeds each one's augmentation."""
        slot, spares = request.first_slot + i, list(request.spares)
        turn = slot % len(spares) if spares else 0
        substitutes = spares[turn:] + spares[:turn]
        return [(example, example.key), *((spare, f"{spare.key}\x00slot{slot}") for spare in substitutes)]

    def _tokens(self, request: Request, i: int, example: Example, seed_key: str) -> np.ndarray:
        """tokens [views, N, P] of one example."""
        media = load(example, self.roots[request.task])
        task, spec = self.tasks[request.task], self.inputs[request.task]
        if not request.epochs:
            return evaluation_tokens(media, task, spec, example.start, example.end)
        rng = example_rng(self.seed, request.task, request.epochs[i], seed_key)
        return example_tokens(media, task, spec, rng, example.start, example.end)[None]


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
        examples=[examples[p] for p in batch.positions],
        epochs=[int(e) for e in batch.epochs],
        first_slot=batch.first_slot,
        global_batch=batch.global_batch,
        spares=[examples[p] for p in batch.spares],
    )


def evaluation_requests(
    task: str, examples: Sequence[Example], batch: int, rank: int, world_size: int
) -> list[Request]:
    """The rank's share of one task's evaluation split: every `world_size`-th batch; no example twice."""
    starts = range(0, len(examples), batch)
    return [
        Request(i, task, examples[start : start + batch], first_slot=start, global_batch=len(examples))
        for i, start in enumerate(starts)
        if i % world_size == rank
    ]
