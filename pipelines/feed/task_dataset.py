"""One task's examples as an ordinary `ray.data.Dataset`, decoded and unaugmented, for notebooks and other tools.

In: a config and the name of one of its tasks. Out: rows with named columns, in the order of the index.
"""

import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ray.data

from pipelines.feed.worker_feed import make_decoder
from pipelines.index import Indexes, build_indexes
from pipelines.runtime import tried_before
from polyvit.config import RunConfig
from polyvit.data.index import SPLITS, Split
from polyvit.data.loading import Decoder, Request, check_readable, example_bytes
from polyvit.errors import BadMedia, UserError

BLOCK_BYTES = 32 * 2**20
"""Of the arrays that one Ray task decodes, about."""


def dataset(
    config: RunConfig, task: str, split: Split = "train", indexes: Indexes | None = None
) -> "ray.data.Dataset":
    """The examples of one split of a task as rows with named columns, in the order of the index.

    `key`: text. `labels`: [K] uint8 with ones at its classes. Each named array of the modality with all evaluation
    views, such as `tokens` [views, N, P] uint8: to the bit what an evaluation decodes.
    indexes: of the config's tasks, where they are known.

    Raises UserError for a task or split that there is not. An example that cannot be decoded ends the execution
    with its key and the reason: leave it out of the data (`polyvit inspect` lists all of them).
    """
    if task not in config.tasks:
        raise UserError(f"there is no task {task!r}; the config has {', '.join(config.tasks)}")
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}; allowed are {', '.join(SPLITS)}")
    check_readable(config)
    if indexes is None:
        alone = config.model_copy(update={"tasks": {task: config.tasks[task]}})
        with tempfile.TemporaryDirectory(prefix="polyvit-dataset-") as folder:
            indexes = build_indexes(alone, Path(folder), train=False)
    examples = indexes.scans[task].split(split)
    if not len(examples):
        raise UserError(f"tasks.{task} has no example of split {split}")
    section, spec = config.tasks[task], config.model.input(config.tasks[task].modality)
    step = max(1, BLOCK_BYTES // (section.eval_views * example_bytes(spec)))
    rows = [
        {"request": pickle.dumps(Request(0, task, list(examples[first : first + step])))}
        for first in range(0, len(examples), step)
    ]

    def decode(batch: dict[str, np.ndarray], decoder: Decoder) -> dict[str, Any]:
        return decode_rows(pickle.loads(batch["request"][0]), decoder)

    decode.__name__ = f"{task}: decode"  # what the dashboard shows
    decoder = make_decoder(config.model_copy(update={"tasks": {task: section}}), indexes)
    rows_of_task = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        decode,  # type: ignore[arg-type]
        batch_size=None,
        fn_args=(decoder,),
        num_cpus=config.data.decode_cpus,
        label_selector=dict(config.data.decode_node_labels) or None,
    )
    rows_of_task.context.execution_options.preserve_order = True
    return rows_of_task


def decode_rows(request: Request, decoder: Decoder) -> dict[str, Any]:
    """Columns of the examples of a request. Raises BadMedia for one that cannot be decoded."""
    minibatch = decoder.decode(request, careful=tried_before())
    if minibatch.bad:
        first = minibatch.bad[0]
        raise BadMedia(f"{first.key} ({first.path}): {first.reason}")
    shaped = {
        name: array.reshape(len(request.examples), -1, *array.shape[1:])
        for name, array in minibatch.inputs.items()
    }
    return {"key": np.array(minibatch.keys, dtype=object), "labels": minibatch.labels, **shaped}
