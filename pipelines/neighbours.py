"""Look at what AVBert's pre-training has learned: the nearest clips of a few clips, as a picture.

    polyvit neighbours MODEL --data ROOT --out FILE.png [--task NAME] [--clips N] [--nearest N] [--sequences N]
    python -m pipelines.neighbours ...

MODEL is a checkpoint's folder, a run's, `models:/name@alias` or `hf://ORG/NAME`; its task must be contrastive.
Sequences of the task's evaluation split in ROOT/NAME are decoded in this process. For each clip there are the
nearest ones of other videos by picture, by sound, and across: the pictures that its sound alone calls for, and the
sounds that its picture does. The figures: how often the other modality finds a clip among those of other videos.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.runtime import command_line, console
from polyvit.config import RunConfig
from polyvit.data.layouts import scan
from polyvit.data.loading import Decoder, Minibatch, check_readable, evaluation_requests
from polyvit.errors import UserError

BATCH = 8
"""Sequences of one forward pass."""
NEGATIVES = 64
"""Clips of other videos among which one is to be found."""


def main(argv: Sequence[str] | None = None) -> int:
    """`polyvit neighbours`."""
    parser = command_line.parser(
        "neighbours", "Draw the nearest clips of a pre-trained AVBert, across modalities."
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a checkpoint's folder, a run's, models:/name@alias or hf://ORG/NAME"
    )
    parser.add_argument(
        "--data", required=True, metavar="ROOT", type=Path, help="holds a folder NAME for the task"
    )
    parser.add_argument("--out", required=True, metavar="FILE", type=Path, help="the picture, a .png")
    parser.add_argument("--task", metavar="NAME", help="a contrastive task (default: the model's first)")
    parser.add_argument("--clips", type=int, default=6, metavar="N", help="rows of the picture (default: 6)")
    parser.add_argument("--nearest", type=int, default=3, metavar="N", help="neighbours of a kind (default: 3)")
    parser.add_argument("--sequences", type=int, default=256, metavar="N", help="at most so many (default: 256)")
    return command_line.run(parser, _body, argv)


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    from pipelines.tracking import model_folder  # start-up: MLflow, torch
    from polyvit.checkpoint import load_trained  # start-up: torch
    from polyvit.evaluation import clip_spaces  # start-up: torch
    from polyvit.reports import draw_neighbours  # start-up: matplotlib

    if min(arguments.clips, arguments.nearest, arguments.sequences) < 1:
        raise UserError("--clips, --nearest and --sequences must be 1 or more")
    if arguments.out.suffix != ".png":
        raise UserError(f"--out {arguments.out}: the picture is a PNG; give a name that ends with .png")
    folder = model_folder(arguments.model)
    model, config, _ = load_trained(folder)
    check_readable(config)
    task = contrastive_task(config, arguments.task)
    minibatches = _sequences(config, task, arguments.data.expanduser().absolute(), arguments.sequences)
    spaces = clip_spaces(model, task, minibatches)
    places = np.linspace(0, len(spaces.keys) - 1, min(arguments.clips, len(spaces.keys))).astype(int)
    each = len(spaces.sequences) // len(spaces.keys)
    chosen = [int(place) * each + each // 2 for place in places]
    rates = {m: spaces.hit_rate(m, NEGATIVES, config.seed) for m in ("visual", "audio")}
    chance = 1 / (1 + min(NEGATIVES, len(spaces.sequences) - each))
    words = (
        f"{len(spaces.sequences)} clips of {len(spaces.keys)} videos of {task}. Sound alone finds its picture in"
        f" {100 * rates['visual']:.0f} % of cases among {NEGATIVES},\nthe picture its sound in"
        f" {100 * rates['audio']:.0f} %; a guess finds it in {100 * chance:.1f} %."
    )
    try:
        draw_neighbours(spaces, chosen, arguments.nearest, arguments.out, words)
    except OSError as error:
        raise UserError(f"--out {arguments.out} cannot be written ({error}); give another file") from None
    console.print(words)
    console.print(f"picture     {arguments.out}")
    return {
        "model": arguments.model, "task": task, "picture": str(arguments.out), "clips": len(spaces.sequences),
        "videos": len(spaces.keys), "picture_found_by_sound": rates["visual"],
        "sound_found_by_picture": rates["audio"], "chance": chance,
    }  # fmt: skip


def contrastive_task(config: RunConfig, name: str | None) -> str:
    """The task asked for, else the first contrastive one. Raises UserError where there is none."""
    there = [task for task, settings in config.tasks.items() if settings.loss == "contrastive"]
    if name is None and there:
        return there[0]
    if name not in there:
        have = ", ".join(there) or "none: give a checkpoint of a pre-training run"
        raise UserError(f"--task {name}: no contrastive task of the model; it has {have}")
    return name


def _sequences(config: RunConfig, name: str, root: Path, most: int) -> list[Minibatch]:
    """The first sequences of the task's evaluation split, decoded."""
    task, folder = config.tasks[name], root / name
    if not folder.is_dir():
        raise UserError(f"--data {root}: there is no folder {folder}; give the folder that holds {name}/")
    examples = scan(task, folder, name).split(task.eval_split)
    # Evenly through the split: its examples are in order of their classes.
    chosen = [examples[int(i)] for i in np.linspace(0, len(examples) - 1, min(most, len(examples)))]
    decoder = Decoder({name: task}, {name: config.model.input(task.modality)}, {name: folder}, config.seed)
    console.print(f"reading {len(chosen)} sequences ...")
    return [decoder.decode(request) for request in evaluation_requests(name, chosen, BATCH, 0, 1)]


if __name__ == "__main__":
    sys.exit(main())
