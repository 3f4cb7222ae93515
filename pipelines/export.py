"""One task of a trained model as files for other runtimes, with their size, latency and agreement.

    polyvit export MODEL --task NAME --out DIR [--int8] [--data ROOT] [--json FILE]
    python -m pipelines.export ...

DIR gets NAME.pt2 (torch.export), NAME.onnx, with --int8 NAME.int8.onnx, and task.json: input, output, classes, how
media become the input. An ONNX file whose logits differ from the model's by more than 1e-4 is deleted and refused.
--data measures each file on the task's evaluation split of ROOT/NAME (as data.root), in this process. MODEL is a
checkpoint's folder, a run's, or `models:/name@alias`.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.runtime import command_line, console
from polyvit.config import RunConfig
from polyvit.data.layouts import scan
from polyvit.data.loading import Decoder, Minibatch, check_readable, evaluation_requests
from polyvit.errors import UserError

BATCH_VIEWS = 16
"""Views of one forward pass in the measurement on data."""


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit export`."""
    parser = command_line.parser("export", "Cut one task out of a trained model: torch.export, ONNX, int8.")
    parser.add_argument("model", metavar="MODEL", help="a checkpoint's folder, a run's, or models:/name@alias")
    parser.add_argument("--task", required=True, metavar="NAME", help="the task whose head is taken")
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder for the files")
    parser.add_argument("--int8", action="store_true", help="a third file, with weights quantised to int8")
    parser.add_argument("--data", metavar="ROOT", type=Path, help="measure the files on ROOT/NAME (see data.root)")
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    from pipelines.tracking import model_folder  # start-up: MLflow, torch
    from polyvit.checkpoint import load_trained, write_manifest  # start-up: torch
    from polyvit.deploy import (  # start-up: torch
        check_tasks,
        class_names,
        description,
        pad_names,
        require_onnx,
    )

    require_onnx()
    folder = model_folder(arguments.model)
    model, config, document = load_trained(folder)
    (name,) = check_tasks(config, [arguments.task])
    names = class_names(folder, config, document).get(name, [])
    held = None
    if arguments.data is not None:
        check_readable(config)
        held = _held_out(config, name, arguments.data.expanduser().absolute(), names)
    out = arguments.out.expanduser().absolute()
    try:
        out.mkdir(parents=True, exist_ok=True)
        task_description = description(
            config, name, pad_names(names, config.tasks[name].num_classes), document["global_step"]
        )
        (out / "task.json").write_text(json.dumps(task_description, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error}); give another folder") from None
    rows = export_task(model, config, name, out, arguments.int8, held)
    written = [path.name for path in out.iterdir() if path.name == "task.json" or path.name.startswith(f"{name}.")]
    write_manifest(out, {"task": name, "global_step": document["global_step"]}, written)
    result = {"model": arguments.model, "folder": str(folder), "out": str(out), "task": name, "files": rows}
    print_results(result)
    return result


def export_task(
    model: Any, config: RunConfig, name: str, out: Path, int8: bool, held: Iterator[Minibatch] | None = None
) -> dict[str, dict[str, Any]]:
    """Write the files and measure them: {file: {bytes, latency_ms, difference, value, ...}}; `model` stands for
    the model itself.

    model, config: as trained. name: the task. out: the folder. int8: whether to write a quantised file too. held:
    the evaluation split, to measure accuracy on; None: accuracy is not measured. Raises UserError where a file's
    answers are not the model's.
    """
    import torch

    from polyvit.deploy import (  # start-up: torch
        TOLERANCE,
        accuracy,
        difference,
        example_inputs,
        export_onnx,
        export_torch,
        latency_ms,
        quantise,
        task_model,
        torch_runner,
    )

    torch.set_num_threads(1)  # as ONNX Runtime here: figures that can be compared, whatever else the machine does
    module = task_model(model, config, name)
    reference = torch_runner(module)
    runs = {"model": reference}
    console.print(f"writing {name}.pt2 and {name}.onnx ...")
    runs[f"{name}.pt2"] = export_torch(module, out / f"{name}.pt2")
    runs[f"{name}.onnx"] = export_onnx(module, out / f"{name}.onnx")
    for file in (f"{name}.pt2", f"{name}.onnx"):
        if (measured := difference(runs[file], reference, module.spec)) > TOLERANCE:
            (out / file).unlink()
            raise UserError(
                f"{file} differs from the model by {measured:.2g}, more than {TOLERANCE:g}; do not use it"
            )
    if int8:
        console.print(f"writing {name}.int8.onnx ...")
        runs[f"{name}.int8.onnx"] = quantise(out / f"{name}.onnx", out / f"{name}.int8.onnx")
    media = example_inputs(module.spec, 1).values()
    rows = {
        file: {
            "bytes": None if file == "model" else (out / file).stat().st_size,
            "latency_ms": latency_ms(run, *media),
            "difference": difference(run, reference, module.spec),
        }
        for file, run in runs.items()
    }
    if held is not None:
        console.print("measuring on data ...")
        for file, measured in accuracy(runs, held, config, name).items():
            rows[file] |= measured
    return rows


def _held_out(config: RunConfig, name: str, root: Path, names: Sequence[str]) -> Iterator[Minibatch]:
    """The task's evaluation split, decoded here; scanned now, so that mistakes show before anything is written."""
    task = config.tasks[name]
    folder = root / name
    if not folder.is_dir():
        raise UserError(f"--data {root}: there is no folder {folder}; give the folder that holds {name}/")
    index = scan(task, folder, name)
    examples = index.split(task.eval_split)
    if not examples:
        raise UserError(f"--data {root}: {name} has no {task.eval_split} examples ({index.counts()})")
    if names and index.classes[: len(names)] != list(names)[: len(index.classes)]:
        raise UserError(f"--data {root}: the classes of {name} are not those that the model was trained on")
    decoder = Decoder({name: task}, {name: config.model.input(task.modality)}, {name: folder}, config.seed)
    requests = evaluation_requests(name, examples, max(1, BATCH_VIEWS // task.eval_views), 0, 1)
    return (decoder.decode(request) for request in requests)


def print_results(document: dict[str, Any]) -> None:
    """The table: size, latency, agreement, accuracy and its change."""
    rows = document["files"]
    measured = "value" in rows["model"]
    table = Table(title=f"{document['task']}: {document['out']}")
    for column in ("file", "MB", "ms (batch 1)", "difference"):
        table.add_column(column, justify="left" if column == "file" else "right")
    if measured:
        for column in (rows["model"]["metric"], "change", "examples"):
            table.add_column(column, justify="right")
    for file, row in rows.items():
        size = "-" if row["bytes"] is None else f"{row['bytes'] / 1e6:.2f}"
        cells = [file, size, f"{row['latency_ms']:.2f}", f"{row['difference']:.1e}"]
        if measured:
            change = (row["value"] or 0) - (rows["model"]["value"] or 0)
            value = "-" if row["value"] is None else f"{row['value']:.4f}"
            cells += [value, f"{change:+.4f}", str(row["examples"])]
        table.add_row(*cells)
    console.print(table)
    console.print(
        "ms: median of a call on one thread of this machine's CPU; difference: of logits on noise, to the model's"
    )


if __name__ == "__main__":
    sys.exit(main())
