"""A tiny trained model in a checkpoint's folder, and media files for it: no data set, no Ray."""

import json
from pathlib import Path

import numpy as np
import torch
from checkpoint_kit import save_checkpoint
from small import fresh, small_config

from polyvit.checkpoint.state import TrainState, TrainUnit
from polyvit.config import RunConfig
from polyvit.model.interface import MultiTaskModel
from polyvit.model.polyvit import PolyViT
from polyvit.synthetic.media import encode_image, encode_mp4, encode_sound
from polyvit.training.optim import build_optimiser

CLASSES = {
    "picture": ["ant", "bee", "cat", "dog", "elk"],
    "clip": ["walk", "run", "jump", "fall"],
    "sound": ["bell", "horn", "drum", "rain", "wind", "hum"],
}
"""`word` has no names: its classes go by their numbers."""


def trained(folder: Path, *overrides: str) -> tuple[Path, PolyViT, RunConfig]:
    """A checkpoint with random weights, heads included, as a run would leave it in `folder`."""
    config = small_config("init.path=null", f"storage={folder}", *overrides)
    model, optimiser, _ = fresh(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for head in model.heads.values():
            head.weight.normal_(0.0, 1.0, generator=generator)
            head.bias.normal_(0.0, 0.2, generator=generator)
    result = {"metric": "top1", "value": 0.625, "examples": 8, "skipped": 0, "protocol": "1 view, whole image"}
    state = TrainState(global_step=18, evaluations=[{"step": 18, "tasks": {"picture": result}}])
    facts = {"schedule_hash": "0", "index_hash": {"picture": "ab" * 32}, "classes": CLASSES}
    checkpoint = folder / "run" / "step_00000018"
    save_checkpoint(checkpoint, TrainUnit(model, optimiser), state, config, facts)
    return checkpoint, model.eval(), config


def write_checkpoint(checkpoint: Path, model: MultiTaskModel, config: RunConfig) -> Path:
    """A checkpoint of any model, without class names or results."""
    optimiser = build_optimiser(dict(model.named_parameters()), config.optim)
    save_checkpoint(checkpoint, TrainUnit(model, optimiser), TrainState(global_step=1), config, {})
    return checkpoint


def media(folder: Path) -> dict[str, Path]:
    """Files by their names without the suffix: `clip` has sound, `silent` none, `sound` is sound alone."""
    rng = np.random.default_rng(5)
    picture = rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)
    clip = rng.integers(0, 256, (9, 32, 48, 3), dtype=np.uint8)
    wave = (0.1 * rng.standard_normal(9000)).astype(np.float64)
    files = {
        "image.png": encode_image(picture, "PNG"),
        "photo.jpg": encode_image(picture, "JPEG"),
        "clip.mp4": encode_mp4(clip, 10, wave, 16000),
        "silent.mp4": encode_mp4(clip, 10, None, 16000),
        "song.wav": encode_sound(wave, 16000, "WAV"),
        "flac.flac": encode_sound(wave, 16000, "FLAC"),
        "sound.mp4": encode_mp4(None, 10, wave, 16000),
        "page.jpg": b"<html><body>404 Not Found</body></html>",
        "empty.wav": b"",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {name.partition(".")[0]: folder / name for name in files}


def without(config: RunConfig, *tasks: str) -> RunConfig:
    return config.model_copy(update={"tasks": {n: t for n, t in config.tasks.items() if n not in tasks}})


def model_without(tmp_path: Path, *tasks: str) -> tuple[Path, RunConfig]:
    """The checkpoint of a trained model that lacks `tasks`, alone in its folder, and its config."""
    _, model, config = trained(tmp_path)
    config = without(config, *tasks)
    kept = PolyViT(config.model, config.tasks)
    kept.load_state_dict({n: t for n, t in model.state_dict().items() if n in kept.state_dict()})
    folder = write_checkpoint(tmp_path / "old" / "step_00000001", kept, config)
    document = json.loads((folder / "state.json").read_text())
    document["classes"] = {name: CLASSES[name] for name in config.tasks}
    (folder / "state.json").write_text(json.dumps(document))
    (folder / "manifest.json").unlink()
    return folder, config
