"""Ray Data: linear probes of a frozen encoder on any tasks of its modalities.

    polyvit probe MODEL CONFIG [key=value ...] [--only TASK] [--cache DIR] [--lrs LR,LR] [--epochs N] [--json FILE]
    python -m pipelines.probe ...                             the same, for `ray job submit`

MODEL is a checkpoint's folder, a run's, `models:/name@alias` or `hf://ORG/NAME`; or `init`: the model of CONFIG as
it starts from `init.path`, untrained (the paper's first row: a frozen ViT with new heads). The tasks of CONFIG are
probed, in the input sizes of the model. Features of the train split (evaluation views, no augmentation) and of
each task's `eval_split` are extracted once and cached; a second probe reads no media. The protocol:
`evaluation/probe.py`.
"""

import argparse
import hashlib
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from pipelines.runtime import command_line, console
from pipelines.tracking import is_folder, model_folder
from polyvit.checkpoint import load_trained
from polyvit.config import RunConfig, load_config, with_model_of
from polyvit.data.loading import check_readable
from polyvit.errors import UserError
from polyvit.evaluation import EPOCHS, LRS, Features, ProbeResult, ProbeSettings, probe
from polyvit.model import MultiTaskModel, build_model
from polyvit.storage import output_folder
from polyvit.training import JUDGED_FROM, initialise_model

INIT = "init"
"""MODEL for a model that is not trained yet."""


def probe_config(
    trained: RunConfig, recipe: str, overrides: Sequence[str] = (), only: Sequence[str] = ()
) -> RunConfig:
    """The probe tasks, with the model section of the checkpoint so that tokens fit.

    Raises UserError for tasks of a modality that the checkpoint has no tokenizer for, and where an evaluation
    split is the train split.
    """
    if model_keys := [o for o in overrides if o.startswith("model.")]:
        raise UserError(
            f"{', '.join(model_keys)}: a probe takes the model as it was trained; leave out model.* keys"
        )
    config = load_config(recipe, overrides, only)
    fitting = with_model_of(config, trained)
    if same := [name for name, task in config.tasks.items() if task.eval_split == "train"]:
        raise UserError(
            f"tasks.{same[0]}.eval_split=train: a probe is scored on other examples than it is fitted on"
        )
    return fitting


def run_probes(
    model: MultiTaskModel, config: RunConfig, model_digest: str, cache: Path, settings: ProbeSettings
) -> dict[str, dict[str, Any]]:
    """Index, get features, fit and score a head for each task, on the cluster that is attached. Returns a row a
    task.

    model: the encoder. config: says which tasks, and has the model's own model section.
    model_digest: hash of the weights, part of the key of cached features. cache: folder of cached features.
    settings: how heads are fitted.
    """
    from pipelines.batch import feature_splits, load_or_extract  # start-up: ray
    from pipelines.index import build_indexes, index_report  # start-up: ray
    from pipelines.runtime import check_resources, one_worker, use_gpu  # start-up: ray

    check_resources(one_worker(config))
    with tempfile.TemporaryDirectory(prefix="index-", dir=cache) as folder:
        indexes = build_indexes(config, Path(folder))
    splits = feature_splits(config, indexes, model_digest, cache)
    features, extracted = load_or_extract(model, config, indexes, splits)
    device = "cuda" if use_gpu(one_worker(config)) and torch.cuda.is_available() else "cpu"
    report, rows = index_report(indexes), {}
    for name, task in config.tasks.items():
        train, evaluation = features[name, "train"], features[name, task.eval_split]
        _check_bad_fraction(config, name, train, evaluation)
        console.print(f"fitting a head for {name} ...")
        try:
            result = probe(task, train, evaluation, settings, device)
        except UserError as error:
            raise UserError(f"tasks.{name}: {error.message}") from None
        rows[name] = {
            **_row(config, name, result),
            "features": {
                s: "extracted" if (name, s) in extracted else "cached" for s in ("train", task.eval_split)
            },
            "skipped_files": [
                *({"path": entry.path, "reason": entry.reason} for entry in (*train.bad, *evaluation.bad)),
                *({"path": problem["where"], "reason": problem["reason"]} for problem in report[name]["problems"]),
            ],
        }
    return rows


def _check_bad_fraction(config: RunConfig, name: str, *splits: Features) -> None:
    """Raises UserError, as training does, where too many examples of a task cannot be decoded."""
    bad, read = sum(len(s.bad) for s in splits), sum(len(s) + len(s.bad) for s in splits)
    allowed = config.data.max_bad_fraction
    if any(not len(s) for s in splits) or (read >= JUDGED_FROM and bad > allowed * read):
        first = next(entry for split in splits for entry in split.bad)
        raise UserError(
            f"task {name}: {bad} of {read} examples cannot be decoded, above data.max_bad_fraction={allowed} or "
            f"all of a split; first: {first.path}: {first.reason}. Repair or remove them, or raise the limit"
        )


def _row(config: RunConfig, name: str, result: ProbeResult) -> dict[str, Any]:
    task = config.tasks[name]
    return {
        "modality": task.modality,
        "tokenizer": tokenizer_text(config, name),
        "loss_function": task.loss,
        "metric": result.metric,
        "value": result.value,
        "chance": result.chance,
        "train_examples": result.train_examples,
        "eval_split": task.eval_split,
        "eval_examples": result.eval_examples,
        "lr": result.lr,
        "tried": {f"{lr:g}": value for lr, value in result.tried.items()},
        **{key: result.scores.get(key) for key in ("loss", "top1", "top5")},
    }


def tokenizer_text(config: RunConfig, name: str) -> str:
    """Which tokenizer of the model a task has, to read: "video 4x16x16 of 32x224x224"."""
    modality = config.tasks[name].modality
    spec = config.model.input(modality)
    return f"{modality} {'x'.join(map(str, spec.patch))} of {'x'.join(map(str, spec.media_size))}"


def print_results(document: dict[str, Any]) -> None:
    """The table, and what its columns mean."""
    table = Table(title=f"linear probes of {document['checkpoint']}")
    for column, side in [("task", "left"), ("modality", "left"), ("tokenizer", "left"), ("metric", "left"),
                         ("value", "right"), ("chance", "right"), ("train", "right"), ("eval on", "right"),
                         ("skipped", "right"), ("lr", "right")]:  # fmt: skip
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for name, row in document["tasks"].items():
        value = "-" if row["value"] is None else f"{row['value']:.3f}"
        table.add_row(
            name, row["modality"], row["tokenizer"], row["metric"], value, f"{row['chance']:.3f}",
            str(row["train_examples"]), f"{row['eval_examples']} {row['eval_split']}",
            str(len(row["skipped_files"])), f"{row['lr']:g}",
        )  # fmt: skip
    console.print(table)
    console.print("chance: a guess; skipped: listed or read, not usable; lr: chosen on a part of train held out")
    console.print(f"features  {document['cache']}")


def _learning_rates(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = (math.nan,)
    if not all(0 < rate < math.inf for rate in rates):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of learning rates; write them as 0.01,0.1")
    return rates


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of epochs; give 1 or more")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit probe`."""
    parser = command_line.parser("probe", "Fit a new linear head a task on the frozen features of a checkpoint.")
    parser.add_argument(
        "model", metavar="MODEL", help="a checkpoint's folder, a run's, models:/name@alias, or init"
    )
    command_line.add_config(parser)
    parser.add_argument("--cache", metavar="DIR", type=Path, help="folder of features (default: MODEL/features)")
    parser.add_argument(
        "--lrs", type=_learning_rates, default=LRS, metavar="LR,LR", help="learning rates to choose from"
    )
    parser.add_argument("--epochs", type=_count, default=EPOCHS, help=f"passes over train (default: {EPOCHS})")
    parser.add_argument("--no-mlflow", action="store_true", help="do not log the results to MLflow")
    return command_line.run(parser, _body, argv)


def initial_model(recipe: str, overrides: Sequence[str], only: Sequence[str]) -> tuple[MultiTaskModel, RunConfig]:
    """The model of a config as it starts from `init.path`, untrained, and the config.

    Raises UserError without `init.path`: a probe of random weights says nothing of a checkpoint.
    """
    config = load_config(recipe, overrides, only)
    if config.init.path is None:
        raise UserError("probe init: give init.path=FILE, the ViT checkpoint whose frozen features are probed")
    model = build_model(config, seed=config.seed)
    console.print(initialise_model(model, config).table())
    return model.eval(), config


def _digest(model: MultiTaskModel) -> str:
    """SHA-256 of all parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.model == INIT:
        model, config = initial_model(arguments.config, arguments.overrides, arguments.only)
        checkpoint, step, digest = str(config.init.path), 0, _digest(model)
        check_readable(config)
    else:
        folder = model_folder(arguments.model)
        model, trained, state = load_trained(folder)
        check_readable(trained)
        config = probe_config(trained, arguments.config, arguments.overrides, arguments.only)
        checkpoint, step = str(folder), state["global_step"]
        with (folder / "model.safetensors").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    from pipelines.index import task_roots  # start-up: ray, where the arguments have no mistake
    from pipelines.runtime import cluster  # start-up: ray

    task_roots(config)  # before anything is started
    cache = output_folder(arguments.cache or _default_cache(arguments.model), "--cache")
    settings = ProbeSettings(arguments.lrs, arguments.epochs, seed=config.seed)
    console.print("starting Ray ...")
    with cluster():
        rows = run_probes(model, config, digest, cache, settings)
    document = {
        "model": arguments.model,
        "checkpoint": checkpoint,
        "step": step,
        "cache": str(cache),
        "epochs": settings.epochs,
        "batch": settings.batch,
        "lrs": settings.lrs,
        "tasks": rows,
    }
    print_results(document)
    if not arguments.no_mlflow:
        from pipelines.tracking import log_measurement  # start-up: MLflow

        run, line = log_measurement(config, "probe", arguments.model, Path(checkpoint), step, rows)
        console.print(line, style=None if run else "yellow")
        document["mlflow_run"] = run
    return document


def _default_cache(model: str) -> Path:
    """In the folder that MODEL names; here for `init`, a registered model and the hub's, whose own are caches."""
    return Path(model).expanduser() / "features" if model != INIT and is_folder(model) else Path("features")


if __name__ == "__main__":
    sys.exit(main())
