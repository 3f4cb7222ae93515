"""Originals against shards on a slow store: how fast a shuffled plan, and an evaluation, read examples.

    python tests/benchmarks/slow_store.py FOLDER DATA [--latency 0.03] [--mb-per-s 400] [--examples 1500]
    [--rounds 3]

DATA is an `imagenet` layout of pictures. FOLDER gets its shards (original bytes, and short side 256). The store is
simulated: a folder whose every request waits for `latency` and then for its bytes, all requests together at most
`mb-per-s`; a whole object costs two requests (its size, then its bytes), as pyarrow's S3 does; a range of an
object that is known costs one. Rounds are interleaved; medians of examples/s are printed and written to
FOLDER/slow_store.json: one request at a time (`0`), and with the feed's own reading ahead (`32`).
"""

import argparse
import json
import os
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from polyvit.config import ImageTask
from polyvit.data.index.io import Example, Scan
from polyvit.data.layouts.scanner import scan
from polyvit.data.loading import reader
from polyvit.data.loading.reader import load_many
from polyvit.data.shards.writer import ShardOptions, shard_specs, write_shard, write_text
from polyvit.errors import BadMedia
from polyvit.storage.local import LocalRoot
from polyvit.storage.root import Folder


class SlowStore(LocalRoot):
    """A folder that answers like an object store. Class-wide state: one store, one line to it."""

    latency_s = 0.03
    bytes_per_s = 4e8
    requests = 0
    free_at = 0.0
    known: ClassVar[set[str]] = set()
    lock = threading.Lock()

    @property
    def remote(self) -> bool:
        """So that it is read ahead."""
        return True

    def _request(self, count: int) -> None:
        """Wait as one request for `count` bytes does."""
        with SlowStore.lock:
            SlowStore.requests += 1
            now = time.perf_counter()
            SlowStore.free_at = max(SlowStore.free_at, now) + count / SlowStore.bytes_per_s
            until = max(now + SlowStore.latency_s, SlowStore.free_at)
        time.sleep(max(0.0, until - time.perf_counter()))

    def _size(self, path: str) -> None:
        if path not in SlowStore.known:
            self._request(0)

    def folder(self, path: str) -> Folder:
        """A page of a thousand keys a request."""
        listing = super().folder(path)
        for _ in range(1 + (len(listing.files) + len(listing.folders)) // 1000):
            self._request(0)
        return listing

    def read(self, path: str) -> bytes:
        """Its size, then its bytes."""
        self._request(0)
        content = super().read(path)
        self._request(len(content))
        return content

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """One request where the object's size is known."""
        self._size(path)
        SlowStore.known.add(path)
        self._request(length)
        return super().read_range(path, offset, length)


def make_shards(root: Path, scan: Scan, out: Path, options: ShardOptions) -> Path:
    """The shards of a task, written here."""
    out.mkdir(parents=True, exist_ok=True)
    write_text("classes.txt", "".join(f"{name}\n" for name in scan.classes), out)
    for spec in shard_specs(scan, "image", options, 500):
        write_shard(spec, "image", scan.classes, root, out, options)
    return out


def rate(examples: Sequence[Example], store: SlowStore, ahead: int) -> float:
    """Examples a second, reading them in this order with `ahead` on their way."""
    reader.AHEAD = ahead
    began = time.perf_counter()
    for media in load_many(examples, store):
        assert not isinstance(media, BadMedia)
    return len(examples) / (time.perf_counter() - began)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--latency", type=float, default=0.03)
    parser.add_argument("--mb-per-s", type=float, default=400.0)
    parser.add_argument("--examples", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    SlowStore.latency_s, SlowStore.bytes_per_s = arguments.latency, arguments.mb_per_s * 1e6
    task = ImageTask(layout="imagenet", num_classes=1000, steps=1, batch=1)
    shards = ImageTask(layout="webdataset", num_classes=1000, steps=1, batch=1)
    plain = scan(task, arguments.data)
    stores = {"originals": (task, arguments.data)}
    for name, options in (("shards", ShardOptions()), ("shards, side 256", ShardOptions(size=256))):
        out = make_shards(
            arguments.data, plain, arguments.folder / name.replace(", ", "_").replace(" ", ""), options
        )
        stores[name] = (shards, out)
    scans, figures = {}, {}
    for name, (config, place) in stores.items():
        SlowStore.requests, began = 0, time.perf_counter()
        scans[name] = scan(config, SlowStore(place))
        figures[f"{name}: index"] = {"seconds": time.perf_counter() - began, "requests": SlowStore.requests}
    order = np.random.default_rng(0).permutation(len(plain.split("train")))[: arguments.examples].tolist()
    rates: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        for name, (_, place) in stores.items():
            train = scans[name].split("train")
            shuffled = [train[position] for position in order]
            for ahead, some in ((0, shuffled[:100]), (32, shuffled)):
                rates.setdefault(f"{name}: shuffled, {ahead}", []).append(rate(some, SlowStore(place), ahead))
    figures |= {name: {"examples_per_s": statistics.median(values)} for name, values in rates.items()}
    for name, figure in figures.items():
        print(f"{name:36}", "  ".join(f"{key} {value:.4g}" for key, value in figure.items()))
    settings = {key: str(value) for key, value in vars(arguments).items()}
    document = {"settings": settings, "load": os.getloadavg(), "figures": figures}
    (arguments.folder / "slow_store.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
