"""Give a trained model new tasks: a head each, and a tokenizer with adaptor blocks where the modality is new.

A new modality's adaptor blocks and class token start as copies of an old modality's (the model's first of image,
video, audio): the shared blocks were trained on what those put out. Its patch kernel, its positions and the new
heads start at random.

The new tasks train as any co-training run does, in a model of their own that starts from the old one's parts by
name (`init.path` is its checkpoint) with some of them frozen (`optim.frozen`). Afterwards the two are put
together: the old model's parts, with what the run has trained in place of its own. Frozen parts come out bit for
bit as they were.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from polyvit.checkpoint import FORMAT, read_document
from polyvit.config import Modality, ModelConfig, RunConfig, validate_config
from polyvit.deploy.package import save_document, save_model
from polyvit.errors import UserError
from polyvit.model import MultiTaskModel, PolyViT

ROLES = ("shared", "tokenizers", "adaptors", "heads")


# ------------------------------------------------------------------------------------------- the new run


def extension_config(
    trained: RunConfig,
    requested: RunConfig,
    base: Path,
    freeze: Sequence[str] = ROLES,
    rehearse: Sequence[str] = (),
) -> RunConfig:
    """The config of a run that trains the tasks which the model lacks, and goes on training those of `rehearse`.

    trained: the model's own config; the new run has its encoder. requested: the user's config, which gives new
    tasks, schedule, optimiser and data. base: the model's checkpoint, where the workers can read it. freeze: roles
    (the model's parts of each) or beginnings of parameter names. rehearse: names of old tasks. Raises UserError.
    """
    if not isinstance(trained.model, ModelConfig):
        raise UserError(
            f"extend works for model.kind=polyvit, and the model has model.kind={trained.model.kind}; train the"
            " new task from it with init.path"
        )
    new = {name: task for name, task in requested.tasks.items() if name not in trained.tasks}
    if not new:
        have = ", ".join(trained.tasks)
        raise UserError(
            f"the config has no task that the model lacks (it has {have}); give a task of another name"
        )
    if unknown := [name for name in rehearse if name not in trained.tasks]:
        raise UserError(f"--rehearse {unknown[0]}: the model has no such task; it has {', '.join(trained.tasks)}")
    # Of a task that is rehearsed, the config may say other data and steps.
    old = {name: requested.tasks.get(name, trained.tasks[name]) for name in rehearse}
    for name, task in old.items():
        was = trained.tasks[name]
        if (task.modality, task.num_classes) != (was.modality, was.num_classes):
            raise UserError(f"tasks.{name}: the model's has {was.num_classes} classes of {was.modality}")
    document = requested.model_dump(mode="json")
    document["model"] = extended_model(trained, requested, list(new)).model_dump(mode="json")
    document["tasks"] = {name: task.model_dump(mode="json") for name, task in {**old, **new}.items()}
    document["init"] = {"path": str(base)}
    document["optim"]["frozen"] = frozen_parts(trained, [*old, *new], requested, freeze)
    return validate_config(document)


def extended_model(trained: RunConfig, requested: RunConfig, new: Sequence[str]) -> ModelConfig:
    """The old encoder; the inputs of modalities that it does not know yet come from `requested`."""
    fresh: list[Modality] = [m for m in requested.modalities if m not in trained.modalities]
    used = {requested.tasks[name].modality for name in new}
    return trained.polyvit.model_copy(update={m: requested.model.input(m) for m in fresh if m in used})


def frozen_parts(
    trained: RunConfig, tasks: Sequence[str], requested: RunConfig, freeze: Sequence[str]
) -> tuple[str, ...]:
    """`optim.frozen` for what the user names: a role stands for the parts of it that the old model has."""
    known = {**trained.tasks, **requested.tasks}
    present = {known[name].modality for name in tasks}
    old = [m for m in trained.modalities if m in present]
    parts: list[str] = []
    for name in freeze:
        if name in ("tokenizers", "adaptors"):
            private = name == "tokenizers" or trained.polyvit.l_adapt
            parts += [f"{name}.{m}" for m in old] if private else []
        elif name == "heads":
            parts += [f"heads.{task}" for task in tasks if task in trained.tasks]
        elif name == "shared":
            parts.append(name)
            # A new modality's factors of the shared blocks are new, and train.
            parts += [f"private.{m}" for m in old] if trained.polyvit.has_private_factors else []
        elif name.partition(".")[0] in (*ROLES, "private"):
            parts.append(name)
        else:
            raise UserError(f"--freeze {name}: give {', '.join(ROLES)}, or a part such as tokenizers.image")
    return tuple(dict.fromkeys(parts))


# ------------------------------------------------------------------------------------------ put together


def assemble(
    old: MultiTaskModel, old_config: RunConfig, new: MultiTaskModel, new_config: RunConfig
) -> tuple[PolyViT, RunConfig, list[str]]:
    """One model with the tasks of both; of parts that both have, the new one's. Also the names of old parameters
    that are not what they were.
    """
    # Each task keeps its own data, wherever the other half's are.
    rooted = {
        name: task.model_copy(update={"root": task.root or f"{new_config.data.root}/{name}"})
        for name, task in new_config.tasks.items()
        if name not in old_config.tasks
    }
    tasks = {**old_config.tasks, **rooted}
    optim = old_config.optim.model_copy(update={"ema_decay": None})
    # The rest is the old run's; results and data of the new tasks are in their own run.
    config = old_config.model_copy(
        update={"name": new_config.name, "model": new_config.model, "tasks": tasks, "optim": optim}
    )
    was, trained = old.state_dict(), new.state_dict()
    model = PolyViT(config.polyvit, config.tasks)
    model.load_state_dict({**was, **trained})
    changed = [name for name, tensor in was.items() if name in trained and not torch.equal(tensor, trained[name])]
    return model.eval(), config, changed


def write_extended(
    folder: Path, model: PolyViT, config: RunConfig, old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
    """Write the model that `assemble` made as a checkpoint.

    folder: created if absent. model, config: as `assemble` returns them. old, new: `state.json` of the old model
    and of the run that trained the new tasks. Its results are those of the new tasks; see `add_results`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, folder)
    classes = {**(old.get("classes") or {}), **(new.get("classes") or {})}
    hashes = {**(old.get("index_hash") or {}), **(new.get("index_hash") or {})}
    step = old["global_step"] + new["global_step"]
    evaluated = new.get("evaluations") or []
    document = {
        "format": FORMAT, "global_step": step,
        "evaluations": [{"step": step, "tasks": evaluated[-1]["tasks"]}] if evaluated else [],
        "index_hash": hashes, "classes": classes, "seed": config.seed, "config": config.model_dump(mode="json"),
        "extended": {"steps": new["global_step"], "tasks": list(new["config"]["tasks"]),
                     "frozen": new["config"]["optim"]["frozen"]},
    }  # fmt: skip
    save_document(document, folder)


def add_results(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Add results of tasks that the checkpoint's last evaluation lacks, so that its model card has them."""
    document = read_document(folder)
    step, evaluations = document["global_step"], document["evaluations"]
    known = evaluations[-1]["tasks"] if evaluations else {}
    tasks = {name: result for name, result in results.items() if name not in known}
    document["evaluations"] = [{"step": step, "tasks": {**tasks, **known}}]
    save_document(document, folder)
