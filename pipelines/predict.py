"""Predictions for media files: a few on this machine, or millions as a Ray Data job.

    polyvit predict MODEL FILE ... [--task NAME ...] [--top-k 5] [--modality NAME]
    polyvit predict MODEL FILE ... --explain DIR                   and where the model looked, as PNG
    polyvit predict MODEL --input FOLDER_OR_LIST --output DIR [--task NAME ...] ...
    python -m pipelines.predict ...                          the same, for `ray job submit`

MODEL is a checkpoint's folder, a run's, `models:/name@alias` or `hf://ORG/NAME`. With FILEs there is one line of
JSON a file on stdout: path, modality and for each task its best classes, or `error` with the reason; exit status 2
where a file could not be used, after all others were answered. Files are decoded in a child process, so that a
file which crashes or stalls its decoder costs its own line alone. With --input the answers go to Parquet files in
DIR, and a job that was stopped goes on where it was (`pipelines/batch/batch_predict.py`).
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.runtime import command_line, console
from polyvit.config import RunConfig
from polyvit.errors import UserError
from polyvit.storage import output_folder


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit predict`. Status 0: every file was answered; 2: the user's mistake, or an unusable file."""
    parser = command_line.parser("predict", "Classify images, videos and recordings with a trained model.")
    parser.add_argument(
        "model", metavar="MODEL", help="a checkpoint's folder, a run's, models:/name@alias or hf://ORG/NAME"
    )
    parser.add_argument(
        "files", metavar="FILE", nargs="*", help="media files; what they are is seen from their content"
    )
    parser.add_argument("--task", action="append", default=[], metavar="NAME", help="only this task (repeatable)")
    parser.add_argument(
        "--top-k", type=command_line.positive_int, default=5, metavar="K", help="classes a task (default: 5)"
    )
    parser.add_argument("--modality", metavar="NAME", help="take the files as this, whatever they hold")
    parser.add_argument(
        "--file-seconds", type=float, default=60.0, help="time limit for decoding one file (default: 60)"
    )
    parser.add_argument(
        "--explain", metavar="DIR", type=Path,
        help="folder for a PNG of each FILE: attention rollout over the picture, frames or spectrogram",
    )  # fmt: skip
    job = parser.add_argument_group("many files, on Ray")
    job.add_argument("--input", metavar="FOLDER_OR_LIST", help="a folder; or a .txt, .csv or .parquet of paths")
    job.add_argument("--column", default="path", help="the column of paths in a .csv or .parquet (default: path)")
    job.add_argument("--output", metavar="DIR", type=Path, help="folder for the Parquet files of answers")
    job.add_argument(
        "--part-size", type=command_line.positive_int, default=1000, metavar="N", help="files a Parquet file"
    )
    failed: list[str] = []

    def body(arguments: argparse.Namespace) -> dict[str, Any]:
        if arguments.input is not None:
            return _job(arguments)
        document = _here(arguments)
        failed.extend(answer["path"] for answer in document["answers"] if "error" in answer)
        return document

    status = command_line.run(parser, body, argv)
    return 2 if failed and status == 0 else status


def _here(arguments: argparse.Namespace) -> dict[str, Any]:
    """Answer FILEs on this machine."""
    import torch

    from pipelines.tracking import model_folder  # start-up: MLflow, torch
    from polyvit.deploy import (  # start-up: torch
        IsolatedDecoder,
        Limits,
        Predictor,
        as_json_line,
        check_tasks,
    )

    if not arguments.files:
        raise UserError("give FILEs to classify, or --input and --output for a job")
    if arguments.output is not None:
        raise UserError("--output goes with --input; for FILEs the answers are printed")
    folder = model_folder(arguments.model)
    predictor = Predictor.load(folder, "cuda" if torch.cuda.is_available() else "cpu")
    paths = [Path(name).expanduser() for name in arguments.files]
    check_tasks(predictor.config, arguments.task)
    if arguments.explain is not None:
        _check_explain(predictor.config, arguments.explain)
    answers: list[dict[str, Any]] = []
    with contextlib.closing(
        IsolatedDecoder(predictor.config, Limits(decode_seconds=arguments.file_seconds))
    ) as decoder:
        predictions = predictor.predict(
            paths, arguments.task, arguments.top_k, arguments.modality, decoder.prepare
        )
        for name, answer in zip(arguments.files, predictions, strict=True):
            line = as_json_line({"path": name, **answer})
            print(line, flush=True)
            answers.append(json.loads(line))
        if arguments.explain is not None:
            _explain(predictor, decoder, paths, answers, arguments)
    return {"model": arguments.model, "folder": str(folder), "answers": answers}


def _check_explain(config: RunConfig, folder: Path) -> None:
    """Raises UserError for a model whose attention is not over patches, and for a place that is no folder."""
    if config.model.kind != "polyvit":
        raise UserError(
            f"--explain needs attention over patches, and model.kind={config.model.kind} has CNNs before its"
            " transformer, which attends to whole clips; leave it out"
        )
    output_folder(folder, "--explain")


def _explain(
    predictor: Any, decoder: Any, paths: Sequence[Path], answers: list[dict[str, Any]],
    arguments: argparse.Namespace,
) -> None:  # fmt: skip
    """A PNG of each file that was answered; its path goes into the answer as `explanation`.

    predictor: the `Predictor`. decoder: an `IsolatedDecoder`. answers: of `paths`, in order.
    """
    import torch

    from polyvit.deploy import read_media  # start-up: torch
    from polyvit.model import PolyViT, attention_rollout, normalise  # start-up: torch
    from polyvit.reports import check_explainable, draw_explanation  # start-up: matplotlib

    model = predictor.model
    assert isinstance(model, PolyViT)  # see `_check_explain`
    for i, (path, answer) in enumerate(zip(paths, answers, strict=True)):
        if "error" in answer:
            continue
        prepared = decoder.prepare(read_media(path), arguments.task, arguments.modality)
        spec = predictor.config.model.input(prepared.modality)
        check_explainable(spec, prepared.modality)
        views = prepared.groups[0].arrays["tokens"]
        tokens_NP = views[len(views) // 2]  # the middle view
        device = next(model.parameters()).device
        inputs = normalise(torch.tensor(tokens_NP)[None].to(device)).float()
        weights = attention_rollout(model, inputs, prepared.modality)[0].cpu().numpy()
        best = ", ".join(f"{task}: {rows[0]['label']}" for task, rows in answer["tasks"].items())
        out = arguments.explain / f"{i:03d}-{path.stem[:80]}.png"
        draw_explanation(tokens_NP, weights, spec, prepared.modality, best[:150], out)
        answer["explanation"] = str(out)
    print(f"explained: attention rollout in {arguments.explain}", file=sys.stderr)  # stdout has the answers


def _job(arguments: argparse.Namespace) -> dict[str, Any]:
    """Answer everything in --input, on Ray."""
    from pipelines.batch import PredictJob, list_files, predict_files  # start-up: torch, pyarrow
    from pipelines.tracking import model_folder  # start-up: MLflow, torch

    if arguments.files or arguments.output is None or arguments.explain is not None:
        raise UserError("a job takes --input and --output DIR, no FILEs and no --explain")
    folder = model_folder(arguments.model)
    paths = list_files(arguments.input, arguments.column)
    job = PredictJob(
        output=arguments.output.expanduser().absolute(),
        tasks=tuple(arguments.task),
        top_k=arguments.top_k,
        modality=arguments.modality,
        part_size=arguments.part_size,
        file_seconds=arguments.file_seconds,
    )
    document = predict_files(folder, paths, job)
    console.print(
        f"{document['files']} files in {document['parts']} parts, {document['done_before']} of them done before: "
        f"{document['failed']} could not be used (column `error`)",
    )
    console.print(f"answers     {job.output}")
    return {"model": arguments.model, "folder": str(folder), **document}


if __name__ == "__main__":
    sys.exit(main())
