"""What `polyvit bench feed` compares: the same decode function in a torch DataLoader and in our backends.

A side takes a list of requests and yields the number of examples of each minibatch as it is delivered. Also here:
a stub of the decoder, data of realistic size, and the CPU time and memory of the processes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.utils.data

from pipelines.bench import decode_media
from pipelines.bench.decode_sequences import long_video
from pipelines.feed import minibatches
from pipelines.index import Indexes
from polyvit.config import Modality, RunConfig
from polyvit.data.index import Example, finish_scan
from polyvit.data.loading import Decoder, Minibatch, Request, blank_arrays, multi_hot
from polyvit.synthetic import SOUNDS, encode_image, encode_sound, mixture, textured_shape

SIDES = ("dataloader", "ray_core", "ray_data")
SUFFIXES = {"image": "jpg", "video": "mp4", "audio": "flac", "audiovisual": "mp4"}
Side = Callable[[Sequence[Request]], Iterator[int]]


def sides(decoder: Decoder, config: RunConfig, processes: int) -> dict[str, Side]:
    """Every side, with the same number of decoding processes, and as many minibatches decoded ahead."""

    def backend(name: str) -> Side:
        feed = config.feed.model_copy(update={"backend": name, "decode_workers": processes})
        return lambda requests: _ours(requests, decoder, config.model_copy(update={"feed": feed}))

    return {
        "dataloader": lambda requests: _dataloader(requests, decoder, config, processes),
        "ray_core": backend("ray_core"),
        "ray_data": backend("ray_data"),
    }


def _ours(requests: Sequence[Request], decoder: Decoder, config: RunConfig) -> Iterator[int]:
    stream = minibatches(requests, decoder, config)
    try:
        for minibatch in stream:
            yield len(minibatch.labels)
    finally:
        stream.close()


class _Requests(torch.utils.data.Dataset):
    def __init__(self, requests: Sequence[Request], decoder: Decoder) -> None:
        self.requests, self.decoder = requests, decoder

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Arrays as tensors, which the DataLoader's processes hand over in shared memory."""
        minibatch = self.decoder.decode(self.requests[i])
        arrays = {name: torch.from_numpy(array) for name, array in minibatch.inputs.items()}
        arrays["labels"] = torch.from_numpy(minibatch.labels)
        return {
            **arrays,
            "rest": (
                minibatch.step,
                minibatch.task,
                minibatch.keys,
                minibatch.first_slot,
                minibatch.global_batch,
                minibatch.bad,
            ),
        }


def _dataloader(requests: Sequence[Request], decoder: Decoder, config: RunConfig, processes: int) -> Iterator[int]:
    ahead = max(2, -(-config.feed.prefetch // processes))  # minibatches of each process; torch's default is 2
    loader = torch.utils.data.DataLoader(
        _Requests(requests, decoder), batch_size=None, num_workers=processes, prefetch_factor=ahead
    )
    for arrays in loader:
        yield len(arrays["labels"])


@dataclass(frozen=True)
class Stub(Decoder):
    """Decodes nothing: minibatches of zeros. real_size: whether their arrays have the true shapes, else [n, 1,
    1]."""

    real_size: bool = False

    @classmethod
    def of(cls, decoder: Decoder, real_size: bool) -> "Stub":
        """The stub that takes the place of this decoder."""
        known = {name: getattr(decoder, name) for name in Decoder.__dataclass_fields__}
        return cls(**known, real_size=real_size)

    def decode(self, request: Request, careful: bool | None = None) -> Minibatch:
        """Zeros."""
        task, n = self.tasks[request.task], len(request.examples)
        tiny = {"tokens": np.zeros((n, 1, 1), np.uint8)}
        inputs = blank_arrays(self.inputs[request.task], n) if self.real_size else tiny
        labels = multi_hot([()] * n, task.num_classes if self.real_size else 1)
        keys = tuple(example.key for example in request.examples)
        return Minibatch(
            request.step, request.task, inputs, labels, keys, request.first_slot, request.global_batch
        )


def timed(side: Side, requests: Sequence[Request]) -> dict[str, float]:
    """One pass through a fresh iterator: examples/s, minibatches/s, seconds to the first, CPU ms an example."""
    cpu, began, first, examples, count = cpu_seconds(), time.perf_counter(), 0.0, 0, 0
    for number in side(requests):
        first = first or time.perf_counter() - began
        examples, count = examples + number, count + 1
    took = time.perf_counter() - began
    return {
        "examples_per_s": examples / took, "minibatches_per_s": count / took, "first_s": first,
        "cpu_ms_per_example": cpu_since(cpu) / max(1, examples) * 1000,
    }  # fmt: skip


def process_tree() -> list[psutil.Process]:
    """This process and all below it: the DataLoader's, and a local Ray with its workers."""
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def cpu_seconds() -> dict[int, float]:
    """CPU seconds by process id; key 0 holds those of processes that this one started and that have ended."""
    reaped = psutil.Process().cpu_times()
    seconds = {0: reaped.children_user + reaped.children_system}
    for process in process_tree():
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        seconds[process.pid] = times.user + times.system
    return seconds


def cpu_since(before: dict[int, float]) -> float:
    """CPU seconds of the process tree since `before`; a Ray worker that has ended since then is left out."""
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in cpu_seconds().items())


def memory_mb() -> float:
    """Memory of the process tree without shared pages, so without the object store."""
    total = 0.0
    for process in process_tree():
        try:
            total += process.memory_full_info().uss / 1e6
        except psutil.Error:
            continue
    return total


def write_data(folder: Path, config: RunConfig, clips: int) -> Indexes:
    """Write photos of 500 x 375, clips of 10 s in H.264 at 340 x 256, FLACs of 10 s and
    videos of 12 s with sound; returns their indexes.

    Tasks of a modality share the files. clips: how many clips.
    """
    rng = np.random.default_rng(0)
    for modality in config.modalities:
        (folder / modality).mkdir(parents=True, exist_ok=True)
    photos = [
        encode_image(textured_shape(rng, (375, 500), "circle", "stripes", rng.random()), "JPEG") for _ in range(64)
    ]
    options = decode_media.CLIPS["gop 250"]
    content: dict[Modality, Callable[[], list[bytes]]] = {
        "image": lambda: photos,
        "video": lambda: [decode_media.clip(photos[i], options, i) for i in range(clips)],
        "audio": lambda: [
            encode_sound(mixture(rng, [SOUNDS[i % len(SOUNDS)]], 10.0, 22050), 22050, "FLAC") for i in range(32)
        ],
    }
    content["audiovisual"] = lambda: [long_video(i, 12.0) for i in range(clips)]
    names: dict[Modality, list[str]] = {modality: [] for modality in config.modalities}
    for modality, written in names.items():
        for i, data in enumerate(content[modality]()):
            written.append(f"{i:05d}.{SUFFIXES[modality]}")
            (folder / modality / written[-1]).write_bytes(data)
    scans, roots = {}, {}
    for task, section in config.tasks.items():
        files, roots[task] = names[section.modality], folder / section.modality
        examples = [Example(name, name, (i % section.num_classes,), "train") for i, name in enumerate(files)]
        scans[task] = finish_scan(examples, [str(i) for i in range(section.num_classes)], [])
    return Indexes(scans, roots)
