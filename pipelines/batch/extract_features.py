"""Ray Data: features of tasks' splits by a frozen encoder, extracted once and cached as Parquet.

Media are decoded by Ray Data's tasks as for training, and encoded in this process, or on the GPUs of the cluster
if it has them by up to `train.workers` Ray tasks. One file a split, written as soon as it is complete.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.runtime import console
from polyvit.config import RunConfig
from polyvit.data.index import Example, Split
from polyvit.data.loading import (
    EVAL_BATCH,
    Decoder,
    Minibatch,
    Request,
    evaluation_requests,
    token_dtype,
    token_shape,
)
from polyvit.evaluation import (
    DamagedFeatures,
    Features,
    features_key,
    gather_features,
    read_features,
    write_features,
)
from polyvit.model import PolyViT

BATCH_BYTES = 64 * 2**20
"""Most bytes of tokens in one minibatch: of long clips fewer than EVAL_BATCH, so that many are in flight."""


@dataclass(frozen=True)
class Wanted:
    """The features of one split of one task: of which examples, and where they are cached under which key."""

    task: str
    split: Split
    examples: Sequence[Example]
    path: Path
    key: str


def wanted_features(config: RunConfig, indexes: Any, model_digest: str, cache: Path) -> list[Wanted]:
    """Train and evaluation split of every task."""
    digests, found = indexes.digests(), []
    for name, task in config.tasks.items():
        spec, root = config.model.input(task.modality), indexes.roots[name]
        splits: tuple[Split, Split] = ("train", task.eval_split)
        for split in splits:
            key = features_key(model_digest, digests[name], root, split, task, spec, config.train.precision)
            path = cache / f"{name}-{split}-{key[:16]}.parquet"
            found.append(Wanted(name, split, indexes.scans[name].split(split), path, key))
    return found


def read_cached(wanted: Wanted, num_classes: int) -> Features | None:
    """What an earlier probe wrote, None where there is nothing or nothing whole."""
    try:
        found = read_features(wanted.path, wanted.key, len(wanted.examples), num_classes)
    except FileNotFoundError:
        return None
    except DamagedFeatures as error:
        console.print(f"[yellow]warning: a damaged cache file is extracted again[/]: {wanted.path.name} ({error})")
        return None
    again = f"; to try the {len(found.bad)} undecodable again delete {wanted.path}" if found.bad else ""
    console.print(f"features of {wanted.task} ({wanted.split}): cached, {len(found)}{again}", markup=False)
    return found


def cached_or_extracted(
    model: PolyViT, config: RunConfig, indexes: Any, wanted: Sequence[Wanted]
) -> tuple[dict[tuple[str, Split], Features], set[tuple[str, Split]]]:
    """The features by (task, split), and which of them had to be extracted."""
    found = {}
    for want in wanted:
        cached = read_cached(want, config.tasks[want.task].num_classes)
        if cached is not None:
            found[want.task, want.split] = cached
    missing = [want for want in wanted if (want.task, want.split) not in found]
    if missing:
        extracted = extract(model, config, indexes, missing)
        found |= {(want.task, want.split): made for want, made in zip(missing, extracted, strict=True)}
    return found, {(want.task, want.split) for want in missing}


def split_requests(config: RunConfig, wanted: Wanted) -> list[Request]:
    """The requests of one split, each of at most EVAL_BATCH views and BATCH_BYTES."""
    task = config.tasks[wanted.task]
    views = task.eval_views
    example_bytes = math.prod(token_shape(config.model.input(task.modality))) * token_dtype(task.modality).itemsize
    batch = max(1, min(EVAL_BATCH // views, BATCH_BYTES // (views * example_bytes)))
    return evaluation_requests(wanted.task, wanted.examples, batch, 0, 1)


def extract(model: PolyViT, config: RunConfig, indexes: Any, missing: Sequence[Wanted]) -> Iterator[Features]:
    """Decode and encode what is missing; each split is written as soon as it is complete."""
    import ray

    from pipelines.feed import make_decoder
    from pipelines.runtime import ProgressActor, live_line, one_worker, use_gpu

    decoder = make_decoder(config, indexes)
    board, model_ref = ProgressActor.remote(), None  # type: ignore[attr-defined]
    for wanted in missing:
        requests = split_requests(config, wanted)
        ray.get(board.post.remote({"phase": f"features of {wanted.task} ({wanted.split}) ..."}))
        with live_line(board):
            if use_gpu(one_worker(config)):
                model_ref = model_ref or ray.put(model)
                parts = _on_gpus(model_ref, config, decoder, requests, board)
            else:
                parts = encode(model, config, decoder, requests, board, 0, "cpu")
        found = gather_features(parts, config.model.width, config.tasks[wanted.task].num_classes)
        write_features(found, wanted.path, wanted.key)
        left_out = f", left out {len(found.bad)} that cannot be decoded" if found.bad else ""
        console.print(f"features of {wanted.task} ({wanted.split}): extracted {len(found)}{left_out}")
        yield found


Encoded = list[tuple[np.ndarray, Minibatch]]
"""Features [n, D] of each minibatch, and the minibatch without its tokens."""


def encode(
    model: PolyViT,
    config: RunConfig,
    decoder: Decoder,
    requests: Sequence[Request],
    board: Any,
    rank: int,
    device: str,
) -> Encoded:
    """Decode the requests on the cluster and run the model on them here, in their order."""
    from pipelines.feed import minibatches
    from pipelines.runtime import ProgressReporter

    stream = minibatches(requests, decoder, config)
    poster, parts = ProgressReporter(board, rank), []
    model = model.to(device).eval()
    try:
        for i, minibatch in enumerate(stream, start=1):
            poster({"phase": f"features of {minibatch.task} (minibatch {i} of {len(requests)}) ..."})
            features = minibatch_features(model, minibatch, config, device)
            parts.append((features, replace(minibatch, tokens=np.zeros(0, np.uint8))))
    finally:
        stream.close()
    return parts


def minibatch_features(model: PolyViT, minibatch: Minibatch, config: RunConfig, device: str) -> np.ndarray:
    """[n, D] float32: the class token after the final norm, the mean over an example's views."""
    import torch

    from polyvit.model import normalise

    width, examples = config.model.width, len(minibatch.labels)
    if not examples:  # none of the minibatch could be decoded
        return np.zeros((0, width), np.float32)
    half = torch.autocast(device, torch.bfloat16, enabled=config.train.precision == "bfloat16")
    with torch.inference_mode(), half:
        tokens_WNP = normalise(torch.from_numpy(minibatch.tokens.copy()).to(device))
        features_WD = model.forward_features(tokens_WNP, config.tasks[minibatch.task].modality).float()
    return features_WD.view(examples, minibatch.views, width).mean(dim=1).cpu().numpy()


def _on_gpus(
    model_ref: Any, config: RunConfig, decoder: Decoder, requests: Sequence[Request], board: Any
) -> Encoded:
    """`encode` in as many Ray tasks as there are workers, or as the cluster can hold; each a GPU and a share."""
    import ray

    train, have = config.train, ray.cluster_resources()
    cpus = (have["CPU"] - config.data.decode_cpus) // train.cpus_per_worker
    size = max(1, min(train.workers, len(requests), int(have["GPU"] // train.gpus_per_worker), int(cpus)))
    remote = ray.remote(num_cpus=train.cpus_per_worker, num_gpus=train.gpus_per_worker)(_encode_on_gpu)
    shares = ray.get(
        [remote.remote(model_ref, config, decoder, requests[rank::size], board, rank) for rank in range(size)]
    )
    return [shares[i % size][i // size] for i in range(len(requests))]


def _encode_on_gpu(
    model: PolyViT, config: RunConfig, decoder: Decoder, requests: Sequence[Request], board: Any, rank: int
) -> Encoded:
    return encode(model, config, decoder, requests, board, rank, "cuda")
