"""A packaged model: what a trained model needs in use, without the state of its training, and its model card.

In: a checkpoint's folder, in its run or alone. Out: a folder with model.safetensors (the weights that were
evaluated: averaged ones where the run kept them), state.json (config, class names, results, hashes of the data),
manifest.json (their checksums) and model_card.md. It is read like a checkpoint, but training cannot go on from it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from polyvit import __version__
from polyvit.checkpoint import find_checkpoint, load_trained, write_manifest
from polyvit.config import AVBertConfig, RunConfig
from polyvit.deploy.data_terms import licence_words, synthetic_tasks
from polyvit.deploy.predict import class_names
from polyvit.errors import UserError
from polyvit.model import MultiTaskModel
from polyvit.storage import read_record, write_whole

_KINDS = {"polyvit": ("Vision Transformer", "A PolyViT"), "avbert": ("audio-visual transformer", "An AVBert")}
"""Of `model.kind`: what the model is, and its name in a sentence."""
_TRAINING = ("read", "bad", "quarantine", "microbatches")
"""Keys of `state.json` that only a resumed run reads."""


def write_package(model_path: Path, folder: Path) -> dict[str, Any]:
    """Package a checkpoint or a run into `folder`, which is created if absent. Returns its `state.json`.

    model_path: the folder of a checkpoint or of a run. Raises UserError where it is neither.
    """
    checkpoint = find_checkpoint(model_path)
    model, config, trained = load_trained(checkpoint)
    classes = class_names(checkpoint, config, trained)
    document = {key: value for key, value in trained.items() if key not in _TRAINING}
    document |= {"classes": classes, "averaged": config.optim.ema_decay is not None}
    # model.safetensors holds the averaged weights here, and there are no others.
    document["config"] = {**trained["config"], "optim": {**trained["config"]["optim"], "ema_decay": None}}
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, folder)
    save_document(document, folder)
    counts = _counts(checkpoint)
    (folder / "model_card.md").write_text(model_card(model, config, document, counts))
    return document


def save_model(model: MultiTaskModel, folder: Path) -> None:
    """`model.safetensors` of a model, in `folder`."""
    tensors = {name: p.detach().cpu().contiguous() for name, p in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")


def save_document(document: Mapping[str, Any], folder: Path) -> None:
    """`state.json` of the model that is in `folder`, then the checksums of both; the card is free to be edited."""
    write_whole(folder / "state.json", json.dumps(document, indent=1))
    metadata = {"format": document["format"], "global_step": document["global_step"], "metrics": {}}
    write_manifest(folder, metadata, ("model.safetensors", "state.json"))


def _counts(checkpoint: Path) -> dict[str, Any]:
    """The run's index.json (examples per split, by task); empty where the checkpoint lies in no run."""
    try:
        return read_record(checkpoint.absolute().parent / "index.json", "")
    except UserError:
        return {}


def model_card(
    model: MultiTaskModel, config: RunConfig, document: Mapping[str, Any], counts: Mapping[str, Any] | None = None
) -> str:
    """The model card, in Markdown: what it answers, how well, from which data, with which licences, how large."""
    evaluations = document.get("evaluations") or []
    results = evaluations[-1]["tasks"] if evaluations else {}
    modalities = {
        "image": "images",
        "video": "videos",
        "audio": "sound recordings",
        "audiovisual": "videos with their sound",
    }
    kind, name = _KINDS[config.model.kind]
    takes = ", ".join(modalities.get(modality, modality) for modality in config.modalities)
    parts = [
        f"# {config.name}: one {kind} for {len(config.tasks)} tasks",
        f"{name} that classifies {takes}, co-trained by polyvit {__version__}. It answers with the classes of "
        "the tasks below and knows no others; probabilities are not calibrated.",
        _table(
            "Results",
            ("task", "modality", "classes", "metric", "value", "examples", "protocol", "licence of the data"),
            [_result_row(config, name, results.get(name)) for name, task in config.tasks.items()],
        ),
        _step_words(evaluations, document),
        _table(
            "Data",
            ("task", "train", "validation", "test", "SHA-256 of the index"),
            [_data_row(name, document, counts or {}) for name in config.tasks],
        ),
        *_synthetic_words(config),
        "The index lists every example's key, address, labels and split; equal hashes mean equal lists.",
        _training(config, document),
        _table(
            "Parameters",
            ("part", "parameters"),
            [(role, f"{count:,}") for role, count in model.parameter_table().items()]
            + [("all", f"{sum(p.numel() for p in model.parameters()):,}")],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _result_row(config: RunConfig, name: str, result: Mapping[str, Any] | None) -> tuple[str, ...]:
    task, row = config.tasks[name], result or {}
    value = "-" if row.get("value") is None else f"{row['value']:.4f}"
    examples = str(row.get("examples", "-"))
    return (
        name, task.modality, str(task.num_classes), row.get("metric", "-"), value, examples,
        row.get("protocol", task.protocol), licence_words(config, name),
    )  # fmt: skip


def _step_words(evaluations: Sequence[Mapping[str, Any]], document: Mapping[str, Any]) -> str:
    if not evaluations:
        return "The run has not evaluated this model."
    at, step = evaluations[-1]["step"], document["global_step"]
    earlier = "" if at == step else f" The model itself is of step {step}."
    averaged = " Weights are a running average over steps." if document.get("averaged") else ""
    return f"Measured by the run itself after step {at}.{earlier}{averaged}"


def _data_row(name: str, document: Mapping[str, Any], counts: Mapping[str, Any]) -> tuple[str, ...]:
    row = counts.get(name, {})
    digest = (document.get("index_hash") or {}).get(name) or row.get("hash") or "-"
    return (name, *(str(row.get(split, "-")) for split in ("train", "validation", "test")), digest)


def _synthetic_words(config: RunConfig) -> list[str]:
    """A paragraph where data are toys under the names of real data sets."""
    toys = synthetic_tasks(config)
    if not toys:
        return []
    which = "every task" if len(toys) == len(config.tasks) else ", ".join(toys)
    return [
        f"**Synthetic data:** the data of {which} were drawn by `polyvit synth`. They are not the data sets whose"
        " names the tasks have, and the results above say nothing about those."
    ]


def _training(config: RunConfig, document: Mapping[str, Any]) -> str:
    optim, source = config.optim, config.source or "no source given"
    if synthetic_tasks(config):
        source = "on synthetic data, not on those that the recipe names"
    lines = [
        f"- recipe: {config.name}; {source}",
        f"- steps: {document['global_step']}, schedule {config.schedule.kind}, seed {config.seed}",
        f"- optimiser: {optim.kind}, peak learning rate {optim.lr:g}, warmup {config.warmup_steps} steps, "
        f"{config.train.precision}",
        f"- encoder: {_encoder(config)}",
        f"- started from: {config.init.path or 'random weights'}",
        "- every key: `config` in `state.json`",
    ]
    return "\n".join(["## Training", "", *lines])


def _encoder(config: RunConfig) -> str:
    model = config.model
    if isinstance(model, AVBertConfig):
        roles = model.sharing.roles
        rank = "" if roles in ("none", "full") else f" of rank {model.sharing.rank}"
        return (
            f"{model.fusion} fusion, transformers of width {model.width}, depth {model.depth}, {model.num_heads}"
            f" heads; shared over layers: {model.sharing.layers}, over transformers: {roles}{rank}"
        )
    words = (
        f"width {model.width}, depth {model.depth} of which {model.l_adapt} private to each modality,"
        f" {model.num_heads} heads"
    )
    if model.sharing.layers != "none":
        words += f"; shared over layers: {model.sharing.layers}"
    if model.has_private_factors:
        words += f"; a private factor of rank {model.sharing.rank} for each modality in every shared map"
    return words


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join([f"## {title}", "", *("| " + " | ".join(line) + " |" for line in lines)])
