"""Ray Data: features of tasks' splits by a frozen encoder, extracted once and cached as Parquet.

In: a model, a config and its indexes. Out: one file of features for each split, written as soon as it is complete.
Media are decoded by the feed's processes as for training. They are encoded in this process, or, where the cluster
has GPUs, by up to `train.workers` Ray tasks (null: one a GPU).

Shapes: B examples of a minibatch, V views of each, W = B * V, N tokens, P patch_dim, D width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from pipelines.feed import make_decoder, minibatches
from pipelines.index import Indexes
from pipelines.runtime import ProgressActor, ProgressReporter, console, live_line, one_worker, use_gpu
from polyvit.config import RunConfig
from polyvit.data.index import Example, Split
from polyvit.data.loading import (
    EVAL_BATCH,
    Decoder,
    Minibatch,
    Request,
    evaluation_requests,
    example_bytes,
)
from polyvit.evaluation import (
    DamagedFeatures,
    Features,
    features_key,
    gather_features,
    read_features,
    write_features,
)
from polyvit.model import MultiTaskModel, autocast, normalise

BATCH_BYTES = 64 * 2**20
"""Most bytes of tokens in one minibatch. Long clips come in smaller minibatches than EVAL_BATCH, so that many of
them are decoded at a time."""


@dataclass(frozen=True)
class FeatureSplit:
    """One split of one task whose features are wanted: its examples, and the cache file with the key it must
    have."""

    task: str
    split: Split
    examples: Sequence[Example]
    path: Path
    key: str


def feature_splits(
    config: RunConfig, indexes: Indexes, model_digest: str, cache: Path, of: Sequence[Split] | None = None
) -> list[FeatureSplit]:
    """Splits of every task, by default train and its `eval_split`.

    model_digest: hash of the weights. cache: folder of the files. of: these splits instead.
    """
    digests, feature_splits = indexes.digests(), []
    for name, task in config.tasks.items():
        spec, root = config.model.input(task.modality), indexes.roots[name]
        for split in of or ("train", task.eval_split):
            key = features_key(model_digest, digests[name], root, split, task, spec, config.train.precision)
            path = cache / f"{name}-{split}-{key[:16]}.parquet"
            feature_splits.append(FeatureSplit(name, split, indexes.scans[name].split(split), path, key))
    return feature_splits


def read_cached(split: FeatureSplit, num_classes: int) -> Features | None:
    """What an earlier probe wrote; None where there is no file, or a damaged one."""
    try:
        features = read_features(split.path, split.key, len(split.examples), num_classes)
    except FileNotFoundError:
        return None
    except DamagedFeatures as error:
        console.print(
            f"warning: a damaged cache file is extracted again: {split.path.name} ({error})", style="yellow"
        )
        return None
    again = f"; to try the {len(features.bad)} undecodable again delete {split.path}" if features.bad else ""
    console.print(f"features of {split.task} ({split.split}): cached, {len(features)}{again}")
    return features


def load_or_extract(
    model: MultiTaskModel, config: RunConfig, indexes: Indexes, splits: Sequence[FeatureSplit]
) -> tuple[dict[tuple[str, Split], Features], set[tuple[str, Split]]]:
    """The features by (task, split), and which of them had to be extracted."""
    features = {}
    for split in splits:
        cached = read_cached(split, config.tasks[split.task].num_classes)
        if cached is not None:
            features[split.task, split.split] = cached
    missing = [split for split in splits if (split.task, split.split) not in features]
    for split, extracted in zip(missing, extract(model, config, indexes, missing), strict=True):
        features[split.task, split.split] = extracted
    return features, {(split.task, split.split) for split in missing}


def encode_requests(config: RunConfig, split: FeatureSplit) -> list[Request]:
    """The requests of one split, each of at most EVAL_BATCH views and BATCH_BYTES."""
    task = config.tasks[split.task]
    views = task.eval_views
    size = views * example_bytes(config.model.input(task.modality))
    batch = max(1, min(EVAL_BATCH // views, BATCH_BYTES // size))
    return evaluation_requests(split.task, split.examples, batch, 0, 1)


def extract(
    model: MultiTaskModel, config: RunConfig, indexes: Indexes, missing: Sequence[FeatureSplit]
) -> Iterator[Features]:
    """Decode and encode each of the splits; its file is written as soon as it is complete."""
    if not missing:
        return
    decoder = make_decoder(config, indexes)
    progress_actor, model_ref = ProgressActor.remote(), None  # type: ignore[attr-defined]
    for split in missing:
        requests = encode_requests(config, split)
        ray.get(progress_actor.post.remote({"phase": f"features of {split.task} ({split.split}) ..."}))
        with live_line(progress_actor):
            if use_gpu(one_worker(config)):
                model_ref = model_ref or ray.put(model)
                encoded = _on_gpus(model_ref, config, decoder, requests, progress_actor)
            else:
                encoded = encode(model, config, decoder, requests, progress_actor, 0, "cpu")
        features = gather_features(encoded, config.model.feature_width, config.tasks[split.task].num_classes)
        write_features(features, split.path, split.key)
        left_out = f", left out {len(features.bad)} that cannot be decoded" if features.bad else ""
        console.print(f"features of {split.task} ({split.split}): extracted {len(features)}{left_out}")
        yield features


Encoded = list[tuple[np.ndarray, Minibatch]]
"""features_BD float32 of each minibatch, and the minibatch without its tokens."""


def encode(
    model: MultiTaskModel,
    config: RunConfig,
    decoder: Decoder,
    requests: Sequence[Request],
    progress_actor: Any,
    rank: int,
    device: str,
) -> Encoded:
    """Decode the requests on the cluster and run the model on them here, in their order.

    model, config: the encoder and its config. decoder, requests: what the feed is given. progress_actor: gets the
    live line, from rank 0 only. rank: of this process among those that encode. device: "cpu" or "cuda".
    """
    stream = minibatches(requests, decoder, config)
    progress = ProgressReporter(progress_actor, rank)
    encoded: Encoded = []
    model = model.to(device).eval()
    try:
        for i, minibatch in enumerate(stream, start=1):
            progress({"phase": f"features of {minibatch.task} (minibatch {i} of {len(requests)}) ..."})
            features_BD = minibatch_features(model, minibatch, config, device)
            encoded.append((features_BD, replace(minibatch, inputs={})))
    finally:
        stream.close()
    return encoded


def minibatch_features(model: MultiTaskModel, minibatch: Minibatch, config: RunConfig, device: str) -> np.ndarray:
    """features_BD float32: the class token after the final norm, the mean over an example's views.

    minibatch: its arrays [W, ...] are as the feed brings them.
    """
    width, examples = config.model.feature_width, len(minibatch.labels)
    if not examples:  # none of the minibatch could be decoded
        return np.zeros((0, width), np.float32)
    with torch.inference_mode(), autocast(torch.device(device), config.train.precision):
        inputs = {
            name: normalise(torch.from_numpy(array.copy()).to(device)) for name, array in minibatch.inputs.items()
        }
        features_WD = model.forward_features(inputs, config.tasks[minibatch.task].modality).float()
    return features_WD.view(examples, minibatch.views, width).mean(dim=1).cpu().numpy()


def _on_gpus(
    model_ref: Any, config: RunConfig, decoder: Decoder, requests: Sequence[Request], progress_actor: Any
) -> Encoded:
    """`encode` in as many Ray tasks as there are workers (null: GPUs), or as the cluster can hold; each has a GPU
    and a share.

    model_ref: the model in Ray's object store. The rest is as for `encode`.
    """
    train, have = config.train, ray.cluster_resources()
    cpus = (have["CPU"] - config.data.decode_cpus) // train.cpus_per_worker
    gpus = int(have["GPU"] // train.gpus_per_worker)
    size = max(1, min(train.workers or gpus, len(requests), gpus, int(cpus)))
    remote = ray.remote(num_cpus=train.cpus_per_worker, num_gpus=train.gpus_per_worker)(_encode_on_gpu)
    shares = ray.get(
        [
            remote.options(name=f"encode: share {rank + 1} of {size}").remote(
                model_ref, config, decoder, requests[rank::size], progress_actor, rank
            )
            for rank in range(size)
        ]
    )
    return [shares[i % size][i // size] for i in range(len(requests))]


def _encode_on_gpu(
    model: MultiTaskModel,
    config: RunConfig,
    decoder: Decoder,
    requests: Sequence[Request],
    progress_actor: Any,
    rank: int,
) -> Encoded:
    return encode(model, config, decoder, requests, progress_actor, rank, "cuda")
