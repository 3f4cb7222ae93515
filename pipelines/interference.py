"""See how the tasks of a model pull on the weights that they share: gradients in pairs, by layer.

    polyvit interference MODEL [CONFIG] [key=value ...] [--only TASK] [--minibatches N] [--out DIR] [--json FILE]
    python -m pipelines.interference ...

MODEL is a checkpoint's folder, a run's, `models:/name@alias` or `hf://ORG/NAME`. Without CONFIG the run's own
config says where the data are. Training minibatches are decoded in this process; nothing is trained. Out:
interference.html, .json and two heat maps in DIR (default: MODEL/interference). `train.interference_every`
measures the same in a run.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.runtime import command_line, console
from polyvit.config import RunConfig, apply_override, load_config, validate_config
from polyvit.errors import UserError
from polyvit.storage import output_folder

GAP = (
    "Drift between kept checkpoints is of all tasks that trained between them together. How far each task's own"
    " steps moved the weights is known of runs with train.drift=true."
)


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit interference`."""
    parser = command_line.parser("interference", "Which tasks pull shared weights apart, and in which layers.")
    parser.add_argument(
        "model", metavar="MODEL", help="a checkpoint's folder, a run's, models:/name@alias or hf://ORG/NAME"
    )
    command_line.add_config(parser, optional=True)
    parser.add_argument(
        "--minibatches", type=command_line.positive_int, default=8, metavar="N", help="of each task (default: 8)"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="folder of the report (default: MODEL/interference)"
    )
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    from pipelines.tracking import is_folder, model_folder  # start-up: MLflow, torch
    from polyvit.checkpoint import load_trained  # start-up: torch
    from polyvit.distributed import SingleProcess  # start-up: torch
    from polyvit.reports import interference_proposals, write_interference  # start-up: matplotlib
    from polyvit.training import compare_gradients, measure_gradients  # start-up: torch

    if arguments.minibatches < 2:
        raise UserError("--minibatches 1 gives no interval; give 2 or more")
    folder = model_folder(arguments.model)
    model, trained, state = load_trained(folder)
    config = measured_config(trained, arguments.config, arguments.overrides, arguments.only)
    out = arguments.out or (
        Path(arguments.model).expanduser() / "interference" if is_folder(arguments.model) else Path("interference")
    )
    out = output_folder(out, "--out")
    console.print(f"gradients of {arguments.minibatches} minibatches of each of {len(config.tasks)} tasks ...")
    gradients = measure_gradients(
        _placed(model, config), _minibatches(config, arguments.minibatches), config, SingleProcess()
    )
    modalities = {name: task.modality for name, task in config.tasks.items()}
    l_adapt = getattr(config.model, "l_adapt", None)
    document = {
        "model": arguments.model,
        "about": f"{folder}; training minibatches with the run's augmentation, weights as they are",
        "step": state["global_step"],
        "minibatches": arguments.minibatches,
        **compare_gradients(gradients, modalities, l_adapt),
        "drift": {
            "intervals": _drift(Path(arguments.model).expanduser(), trained, state),
            "by_task": _drift_by_task(folder, trained, state),
            "gap": GAP,
        },
    }
    try:
        files = write_interference(document, out, f"Interference of tasks: {trained.name}")
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error}); give another folder with --out") from None
    for line in interference_proposals(document):
        console.print(line)
    console.print(f"report      {files[0]}")
    return document


def measured_config(
    trained: RunConfig, recipe: str | None, overrides: Sequence[str], only: Sequence[str]
) -> RunConfig:
    """The tasks to measure, in the model as it was trained. Without a recipe: those of the run.

    Raises UserError for tasks that the model lacks or has with other classes, and where there is one thing to
    compare: a contrastive task counts as two.
    """
    from polyvit.training import objectives_of  # start-up: torch

    if recipe is not None and "=" in recipe:  # CONFIG was left out
        overrides, recipe = [recipe, *overrides], None
    if keys := [o for o in overrides if o.startswith("model.")]:
        raise UserError(f"{', '.join(keys)}: gradients are of the model as it was trained; leave out model.* keys")
    if recipe is not None:
        config = load_config(recipe, overrides, only)
    else:
        document = trained.model_dump(mode="json")
        for override in overrides:
            apply_override(document, override)
        config = validate_config(document)
    names = dict.fromkeys((*only, *config.tasks))
    if unknown := [name for name in names if name not in trained.tasks]:
        raise UserError(
            f"the model was not trained on {', '.join(unknown)}; it has {', '.join(trained.tasks)}."
            " Leave other tasks out with --only"
        )
    kept = {name: task for name, task in config.tasks.items() if not only or name in only}
    problems = [
        f"tasks.{name}.{key}={getattr(task, key)}: the model was trained with {getattr(trained.tasks[name], key)}"
        for name, task in kept.items() for key in ("modality", "num_classes", "loss")
        if getattr(task, key) != getattr(trained.tasks[name], key)
    ]  # fmt: skip
    if problems:
        raise UserError("these tasks are not those of the model:", problems)
    config = config.model_copy(update={"model": trained.model, "tasks": kept})
    if sum(len(objectives_of(config, name)) for name in kept) < 2:
        raise UserError(
            f"interference is between tasks: {', '.join(kept)} is one; give two or more of"
            f" {', '.join(trained.tasks)}"
        )
    return config


def _placed(model: Any, config: RunConfig) -> Any:
    """The model on a GPU where there is one."""
    import torch  # start-up: torch

    return model.to("cuda") if torch.cuda.is_available() and config.train.use_gpu is not False else model


def _minibatches(config: RunConfig, count: int) -> Iterator[Any]:
    """The first minibatches of each task that a run would train on, decoded here."""
    from pipelines.index import task_roots  # start-up: ray
    from polyvit.data.layouts import scan  # start-up: torch
    from polyvit.data.loading import Decoder, check_readable, train_request  # start-up: torch
    from polyvit.schedule import Plan, schedule_of  # start-up: torch

    check_readable(config)
    roots = task_roots(config)
    splits = {name: scan(task, roots[name], name).split("train") for name, task in config.tasks.items()}
    plan = Plan(schedule_of(config), config.tasks, {name: len(s) for name, s in splits.items()}, config.seed)
    inputs = {name: config.model.input(task.modality) for name, task in config.tasks.items()}
    decoder = Decoder(config.tasks, inputs, roots, config.seed, config.data.decode_timeout_s)
    for batch in plan.recent(0, count):
        yield decoder.decode(train_request(batch, splits[batch.task]))


def _drift(run: Path, config: RunConfig, state: dict[str, Any]) -> list[dict[str, Any]]:
    """Between each two neighbouring checkpoints of a run: how far each shared group moved, relative to its norm,
    and the steps of each task meanwhile; [] of a single checkpoint."""
    from safetensors.torch import load_file  # start-up: torch

    from polyvit.schedule import schedule_of  # start-up: torch
    from polyvit.training import group_of  # start-up: torch

    folders = sorted(folder for folder in run.glob("step_*") if (folder / "model.safetensors").is_file())
    schedule, intervals = schedule_of(config), []
    schedule.follow(state.get("decisions", []))
    previous: tuple[int, dict[str, Any]] | None = None
    for folder in folders:
        step = int(folder.name.removeprefix("step_"))
        tensors = {n: t.double() for n, t in load_file(folder / "model.safetensors").items() if n[:7] == "shared."}
        if previous is not None and tensors:
            before, old = previous
            squares: dict[str, list[float]] = {}
            for name, tensor in tensors.items():
                sums = squares.setdefault(group_of(name), [0.0, 0.0])
                sums[0] += float((tensor - old[name]).square().sum())
                sums[1] += float(old[name].square().sum())
            moved = {group: (a / b) ** 0.5 if b else None for group, (a, b) in squares.items()}
            counts = schedule.counts(before)
            steps = {task: count - counts[task] for task, count in schedule.counts(step).items()}
            intervals.append({"from": before, "to": step, "steps": steps, "moved": moved})
        previous = step, tensors
    return intervals


def _drift_by_task(folder: Path, config: RunConfig, state: dict[str, Any]) -> dict[str, Any] | None:
    """How far each task's own steps moved each shared group until this checkpoint, and how many they were; None of
    a run without `train.drift`."""
    from safetensors.torch import load_file  # start-up: torch

    from polyvit.schedule import schedule_of  # start-up: torch
    from polyvit.training import drift_by_task  # start-up: torch

    if not config.train.drift or not (file := folder / "drift.safetensors").is_file():
        return None
    schedule = schedule_of(config)
    schedule.follow(state.get("decisions", []))
    return {"steps": schedule.counts(state["global_step"]), **drift_by_task(load_file(file))}


if __name__ == "__main__":
    sys.exit(main())
