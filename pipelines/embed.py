"""Embeddings as a Parquet file: of media files, or of all examples of a config's tasks.

    polyvit embed MODEL FILE_OR_FOLDER ... --out FILE.parquet [--task NAME]
    polyvit embed MODEL CONFIG [key=value ...] --out FILE.parquet [--split SPLIT] [--only TASK]
    python -m pipelines.embed ...                             the same, for `ray job submit`

MODEL is a checkpoint's folder, a run's, `models:/name@alias` or `hf://ORG/NAME`; CONFIG a recipe's name or a YAML
file. An embedding is what the heads read, the class token after the final norm, the mean over the views of an
evaluation. A few files
are embedded in this process, more of them, and a config, on Ray. Columns: `pipelines/batch/embed_job.py`.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from pipelines.runtime import command_line, console
from polyvit.config import RunConfig, load_config, recipe_names, with_model_of
from polyvit.data.index import Split
from polyvit.errors import BadMedia, UserError
from polyvit.storage import output_folder

HERE = 64
"""Most files that are embedded in this process: starting Ray takes as long."""


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit embed`."""
    parser = command_line.parser("embed", "Write the embeddings of files, or of a config's examples, as Parquet.")
    parser.add_argument(
        "model", metavar="MODEL", help="a checkpoint's folder, a run's, models:/name@alias or hf://ORG/NAME"
    )
    parser.add_argument(
        "sources", metavar="SOURCE", nargs="+",
        help="media files and folders of them; or one CONFIG (a recipe's name or a YAML file) and key=value ...",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the Parquet file to write")
    parser.add_argument("--task", metavar="NAME", help="of files: prepare them as this task does")
    parser.add_argument("--split", choices=get_args(Split), help="of a config: this split only (default: all)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="TASK", help="of a config: only this task (repeatable)"
    )
    parser.add_argument("--file-seconds", type=float, default=60.0, help="time limit for decoding one file")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="of a config: folder of features, which probes share"
    )
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    out = arguments.out.expanduser().absolute()
    if not out.parent.is_dir():
        raise UserError(f"--out {arguments.out}: its folder does not exist; make it first")
    first, *others = arguments.sources
    of_config = first in recipe_names() or Path(first).suffix in (".yaml", ".yml")
    if not of_config and (arguments.split or arguments.only or arguments.cache):
        raise UserError(f"--split, --only and --cache go with a CONFIG; {first} is taken for a file")
    if of_config and arguments.task:
        raise UserError("--task goes with files; of a CONFIG give --only")
    config = load_config(first, others, arguments.only) if of_config else None  # its mistakes before torch loads
    from pipelines.batch import embedding_file  # start-up: torch, where the arguments have no mistake
    from pipelines.tracking import model_folder  # start-up: MLflow, torch
    from polyvit.deploy import Predictor, check_tasks  # start-up: torch

    checkpoint = model_folder(arguments.model)
    predictor = Predictor.load(checkpoint)
    with contextlib.ExitStack() as stack:
        if config:
            config = with_model_of(config, predictor.config)
            writer = stack.enter_context(embedding_file(out))
            _embed_config(predictor, config, checkpoint, arguments, writer)
        else:
            tasks = check_tasks(predictor.config, [arguments.task] if arguments.task else [])
            paths = list(_paths(arguments.sources))
            writer = stack.enter_context(embedding_file(out))
            _embed_files(predictor, paths, tasks, arguments.file_seconds, writer)
    console.print(f"{writer.rows} rows, {writer.failed} of them without an embedding (column `error`)")
    console.print(f"embeddings  {out}")
    width = predictor.config.model.feature_width
    document = {"model": arguments.model, "folder": str(checkpoint), "out": str(out)}
    return {**document, "rows": writer.rows, "failed": writer.failed, "width": width}


def _embed_config(
    predictor: Any, config: RunConfig, checkpoint: Path, arguments: argparse.Namespace, writer: Any
) -> None:
    from pipelines.batch import embed_splits  # start-up: Ray
    from pipelines.index import task_roots  # start-up: Ray
    from pipelines.runtime import cluster  # start-up: Ray

    task_roots(config)  # before anything is started
    cache = output_folder(arguments.cache or Path(config.storage) / "features", "--cache")
    splits = (arguments.split,) if arguments.split else get_args(Split)
    if arguments.split:
        tasks = {n: t.model_copy(update={"eval_split": arguments.split}) for n, t in config.tasks.items()}
        config = config.model_copy(update={"tasks": tasks})
    console.print("starting Ray ...")
    with cluster():
        embed_splits(predictor, config, checkpoint, splits, cache, writer)


def _embed_files(predictor: Any, paths: list[str], tasks: Sequence[str], seconds: float, writer: Any) -> None:
    from pipelines.batch import embed_files, file_rows  # start-up: Ray
    from polyvit.deploy import IsolatedDecoder, Limits, read_media  # start-up: torch

    if len(paths) > HERE:
        from pipelines.runtime import cluster  # start-up: Ray

        console.print(f"{len(paths)} files: starting Ray ...")
        with cluster():
            embed_files(predictor, paths, tasks, seconds, writer)
        return
    with contextlib.closing(IsolatedDecoder(predictor.config, Limits(decode_seconds=seconds))) as decoder:
        waiting = iter(paths)
        while chunk := list(islice(waiting, 16)):
            prepared: list[Any] = []
            for path in chunk:
                try:
                    prepared.append(decoder.prepare(read_media(Path(path)), tasks))
                except BadMedia as error:
                    prepared.append(error.reason)
            writer.write(file_rows(chunk, prepared, predictor))


def _paths(sources: Sequence[str]) -> list[str]:
    """Files as they are given, and all files below folders, sorted."""
    from pipelines.batch import list_files  # start-up: torch, pyarrow

    paths: list[str] = []
    for source in sources:
        paths += list_files(source) if Path(source).expanduser().is_dir() else [str(Path(source).expanduser())]
    return paths


if __name__ == "__main__":
    sys.exit(main())
