"""One task of a trained model, or one CNN of it, as files for other runtimes: their size, latency and agreement.

    polyvit export MODEL --task NAME --out DIR [--to torch|onnx] [--int8] [--data ROOT] [--json FILE]
    polyvit export MODEL --task NAME --to timm|huggingface --out DIR [--push REPO] [--json FILE]
    polyvit export MODEL --to polyvit --out DIR [--push REPO] [--json FILE]
    polyvit export MODEL --part visual_cnn|audio_cnn --out DIR [--json FILE]
    python -m pipelines.export ...

DIR gets NAME.pt2 (torch.export), NAME.onnx, with --int8 NAME.int8.onnx, and task.json: input, output, classes, how
media become the input. An ONNX file whose logits differ from the model's by more than 1e-4 is deleted and refused.
--data measures each file on the task's evaluation split of ROOT/NAME (as data.root), in this process. MODEL is a
checkpoint's folder, a run's, `models:/name@alias` or `hf://ORG/NAME`.

--to torch or onnx writes that file alone. --to timm or huggingface writes the task as a model of that library
instead: timm's VisionTransformer (images), or Hugging Face's ViT, ViViT or AST (images, videos, audio). DIR gets
model.safetensors, config.json, the processors' files and README.md; the library loads them, and weights whose
logits differ are deleted and refused. --to polyvit writes the whole model, all its tasks, as
`polyvit.save_pretrained` does.

--push uploads such a folder to a repository of Hugging Face's hub, as one commit: ORG/NAME, created where it does
not exist (--private), on a branch (--revision). The token is HF_TOKEN, or that of `hf auth login`.

--part takes a CNN of an AVBert alone, pre-trained or fine-tuned: one clip in, its features out. DIR gets PART.pt2,
PART.onnx and part.json.
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
from polyvit.storage import output_folder, read_record

LIBRARIES, WHOLE, FORMATS = ("timm", "huggingface"), "polyvit", ("torch", "onnx")
BATCH_VIEWS = 16
"""Views of one forward pass in the measurement on data."""


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit export`."""
    parser = command_line.parser("export", "Cut one task out of a trained model: torch.export, ONNX, int8.")
    parser.add_argument(
        "model", metavar="MODEL", help="a checkpoint's folder, a run's, models:/name@alias or hf://ORG/NAME"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--task", metavar="NAME", help="the task whose head is taken")
    what.add_argument("--part", choices=("visual_cnn", "audio_cnn"), help="one CNN of an AVBert, without any head")
    parser.add_argument(
        "--to",
        choices=(*LIBRARIES, WHOLE, *FORMATS),
        help="timm, huggingface: a folder that this library loads; polyvit: the whole model, without --task;"
        " torch: the .pt2 file alone; onnx: that of ONNX (default: both of the latter)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder for the files")
    parser.add_argument("--int8", action="store_true", help="a third file, with weights quantised to int8")
    parser.add_argument("--data", metavar="ROOT", type=Path, help="measure the files on ROOT/NAME (see data.root)")
    parser.add_argument("--push", metavar="REPO", help="upload the folder to ORG/NAME on Hugging Face's hub")
    parser.add_argument("--private", action="store_true", help="a repository that --push creates is private")
    parser.add_argument("--revision", metavar="BRANCH", help="the branch that --push commits to (default: main)")
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    from pipelines.tracking import model_folder  # start-up: MLflow, torch
    from polyvit.checkpoint import load_trained, write_manifest  # start-up: torch
    from polyvit.deploy import (  # start-up: torch
        accuracy,
        check_tasks,
        class_names,
        description,
        pad_names,
        require_onnx,
        task_model,
    )

    _check_flags(arguments)
    if arguments.to == WHOLE:
        return _whole(arguments)
    if arguments.to in LIBRARIES:
        return _to_library(arguments)
    formats = FORMATS if arguments.to is None else (arguments.to,)
    if arguments.int8 and "onnx" not in formats:
        raise UserError("--int8 is an .onnx file; leave it out with --to torch")
    if "onnx" in formats:
        require_onnx()
    if arguments.part is not None:
        return _part(arguments, formats)
    folder = model_folder(arguments.model)
    model, config, document = load_trained(folder)
    (name,) = check_tasks(config, [arguments.task])
    names = class_names(folder, config, document).get(name, [])
    held = None
    if arguments.data is not None:
        check_readable(config)
        held = _held_out(config, name, arguments.data.expanduser().absolute(), names)
    step = document["global_step"]
    classes = pad_names(names, config.tasks[name].num_classes)
    facts = description(config, name, classes, step)
    out = _described(arguments.out, "task.json", facts)
    rows, runs = export_module(task_model(model, config, name), name, out, arguments.int8, facts, formats)
    if held is not None:
        console.print("measuring on data ...")
        for file, measured in accuracy(runs, held, config, name).items():
            rows[file] |= measured
    write_manifest(out, {"task": name, "global_step": step}, ["task.json", *(f for f in rows if f != "model")])
    result = {"model": arguments.model, "folder": str(folder), "out": str(out), "task": name, "files": rows}
    print_results(result, name)
    return result


def _to_library(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write one task for timm or Hugging Face."""
    from pipelines.tracking import model_folder  # start-up: MLflow, torch
    from polyvit.checkpoint import load_trained, write_manifest  # start-up: torch
    from polyvit.deploy import (  # start-up: torch
        check_portable,
        check_tasks,
        class_names,
        description,
        pad_names,
        require_library,
        write_for_library,
    )

    require_library(arguments.to)
    folder = model_folder(arguments.model)
    model, config, document = load_trained(folder)
    (name,) = check_tasks(config, [arguments.task])
    check_portable(config, name, arguments.to)
    classes = pad_names(class_names(folder, config, document).get(name, []), config.tasks[name].num_classes)
    step, evaluations = document["global_step"], document.get("evaluations") or []
    out = _described(arguments.out, "task.json", description(config, name, classes, step))
    console.print(f"writing {name} for {arguments.to} ...")
    scores = evaluations[-1]["tasks"].get(name) if evaluations else None
    written = write_for_library(model, config, name, classes, arguments.to, out, scores)
    write_manifest(out, {"task": name, "global_step": step}, ["task.json", *written["files"]])
    console.print(f"{out}: {', '.join(written['files'])}; logits differ by {written['difference']:.1e} on noise")
    if written["unmasked"] is not None:
        console.print(f"without attention_mask logits differ by {written['unmasked']:.1e} on noise")
    for note in written["notes"]:
        console.print(f"- {note}")
    result = {"model": arguments.model, "folder": str(folder), "out": str(out), "task": name, "to": arguments.to}
    files = [*written["files"], "task.json", "manifest.json"]
    return {**result, **written, **_pushed(arguments, out, files, f"Upload {name}, one task of {config.name}")}


def _whole(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the whole model as `save_pretrained` does."""
    from pipelines.tracking import model_folder  # start-up: MLflow, torch
    from polyvit.deploy import SAVED_FILES, save_pretrained  # start-up: torch

    folder = model_folder(arguments.model)
    out = save_pretrained(folder, arguments.out.expanduser().absolute())
    console.print(f"{out}: {', '.join(SAVED_FILES)}; polyvit.load({str(out)!r}) reads it")
    result = {"model": arguments.model, "folder": str(folder), "out": str(out), "to": WHOLE}
    return {**result, "files": list(SAVED_FILES), **_pushed(arguments, out, SAVED_FILES, "Upload polyvit model")}


def _check_flags(arguments: argparse.Namespace) -> None:
    """Raise UserError for flags that do not go together."""
    to = arguments.to
    if to == WHOLE and arguments.task is not None:
        raise UserError("--to polyvit writes the whole model, all its tasks; leave out --task")
    if to != WHOLE and arguments.task is None and arguments.part is None:
        raise UserError("give --task NAME, --part CNN, or --to polyvit for the whole model")
    if to in (*LIBRARIES, WHOLE):
        given = (("--part", arguments.part), ("--int8", arguments.int8), ("--data", arguments.data))
        if unfit := [flag for flag, value in given if value]:
            raise UserError(f"{unfit[0]} is of the .pt2 and .onnx files; leave it out with --to {to}")
    elif arguments.push is not None:
        raise UserError("--push uploads what a library loads: give --to huggingface, timm or polyvit too")
    if arguments.push is None and (arguments.private or arguments.revision):
        raise UserError("--private and --revision say how --push uploads; give --push ORG/NAME, or leave them out")


def _pushed(arguments: argparse.Namespace, out: Path, files: Sequence[str], message: str) -> dict[str, Any]:
    """{"pushed": address of the commit}; empty without --push."""
    if arguments.push is None:
        return {}
    from polyvit.deploy import push_folder  # start-up: torch

    console.print(f"uploading to {arguments.push} ...")
    address = push_folder(
        out, files, arguments.push, arguments.private or None, arguments.revision, message=message
    )
    console.print(f"pushed  {address}")
    return {"pushed": address}


def _part(arguments: argparse.Namespace, formats: Sequence[str]) -> dict[str, Any]:
    """Export one CNN."""
    from pipelines.tracking import model_folder  # start-up: MLflow, torch
    from polyvit.checkpoint import load_trained, write_manifest  # start-up: torch
    from polyvit.deploy import cnn_alone, part_description  # start-up: torch

    part = arguments.part
    if unfit := [name for name, given in (("--int8", arguments.int8), ("--data", arguments.data)) if given]:
        why = "quantises matrix products, of which a CNN has none" if unfit[0] == "--int8" else "measures classes"
        raise UserError(f"{unfit[0]} {why}; leave it out with --part")
    folder = model_folder(arguments.model)
    model, config, document = load_trained(folder)
    module, step = cnn_alone(model, part), document["global_step"]
    facts = part_description(config, part, module.cnn.channels, step)
    out = _described(arguments.out, "part.json", facts)
    rows, _ = export_module(module, part, out, False, facts, formats)
    write_manifest(out, {"part": part, "global_step": step}, ["part.json", *(f for f in rows if f != "model")])
    result = {"model": arguments.model, "folder": str(folder), "out": str(out), "part": part, "files": rows}
    print_results(result, part)
    return result


def _described(folder: Path, file: str, content: dict[str, Any]) -> Path:
    """The folder for the files, with what describes them.

    Raises UserError where it cannot be written, or has a run, a checkpoint or the export of another task or part.
    """
    from polyvit.deploy import refuse_training  # start-up: torch

    out = output_folder(folder, "--out")
    refuse_training(out)
    for other in ("task.json", "part.json"):
        if (out / other).is_file():
            held = read_record(out / other, "give another folder with --out")
            kept, new = (each.get("task") or each.get("part") for each in (held, content))
            if kept != new:
                raise UserError(f"--out {out} holds the export of {kept}, not of {new}; give another folder")
    (out / file).write_text(json.dumps(content, indent=1) + "\n")
    return out


def export_module(
    module: Any, name: str, out: Path, int8: bool, facts: dict[str, Any], formats: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Write the files and measure them: {file: {bytes, latency_ms, difference}} and {file: what runs it}; `model`
    stands for the module itself.

    module: one task or one CNN of a trained model. name: of the files. out: the folder. int8: whether to write a
    quantised file too. facts: the description, which the .onnx files carry as metadata. formats: of FORMATS.
    Raises UserError where a file's answers are not the model's.
    """
    import torch

    from polyvit.deploy import (  # start-up: torch
        TOLERANCE,
        difference,
        example_inputs,
        export_onnx,
        export_torch,
        latency_ms,
        quantise,
        torch_runner,
    )

    torch.set_num_threads(1)  # as ONNX Runtime here: figures that can be compared, whatever else the machine does
    reference = torch_runner(module)
    runs = {"model": reference}
    files = {"torch": f"{name}.pt2", "onnx": f"{name}.onnx"}
    console.print(f"writing {' and '.join(files[each] for each in formats)} ...")
    if "torch" in formats:
        runs[files["torch"]] = export_torch(module, out / files["torch"])
    if "onnx" in formats:
        runs[files["onnx"]] = export_onnx(module, out / files["onnx"], facts)
    for file in [each for each in runs if each != "model"]:
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
    return rows, runs


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


def print_results(document: dict[str, Any], name: str) -> None:
    """The table: size, latency, agreement, accuracy and its change. name: of the task or part."""
    rows = document["files"]
    measured = "value" in rows["model"]
    table = Table(title=f"{name}: {document['out']}")
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
        "ms: median of a call on one thread of this machine's CPU; difference: of outputs on noise, to the model's"
    )


if __name__ == "__main__":
    sys.exit(main())
