"""Real files of videos with sound, and an AVBert with a task for each way of reading them: no data set, no Ray."""

import copy
from pathlib import Path
from typing import Any

import av
import avbert_small
import torch
from PIL import Image
from use_kit import write_checkpoint

from polyvit.config import validate_config
from polyvit.data.loading import example_arrays
from polyvit.deploy.predict import Predictor
from polyvit.evaluation import average_views
from polyvit.model import build_model, normalise
from polyvit.objectives import one_answer
from polyvit.synthetic.write import write_synthetic

BOTH, PICTURES, SOUND = "both", "pictures", "sound"
"""The model's tasks by what they read; `learn` is pre-training and has no classes."""


def sequence_media(folder: Path) -> dict[str, Path]:
    """`video`: of six seconds, as `polyvit synth --av` writes it; what is cut and made of it."""
    write_synthetic(folder, tasks=["kinetics_sounds"], train=8, evaluation=2, side=32)
    videos = sorted((folder / "kinetics_sounds").rglob("*.mp4"))
    video = next(path for path in videos if streams(path) == {"video", "audio"})
    files = {"video": video}
    for name, kinds, seconds in [("short", ("video", "audio"), 0.5), ("silent", ("video",), 6.0),
                                 ("song", ("audio",), 6.0)]:  # fmt: skip
        files[name] = folder / f"{name}.mp4"
        remux(video, files[name], kinds, seconds)
    files["photo"] = folder / "photo.png"
    Image.new("RGB", (32, 32)).save(files["photo"])
    files["page"] = folder / "page.mp4"
    files["page"].write_bytes(b"<html>404</html>")
    return files


def streams(path: Path) -> set[str]:
    with av.open(str(path)) as box:
        return {stream.type for stream in box.streams}


def remux(source: Path, target: Path, kinds: tuple[str, ...], seconds: float) -> None:
    """The packets of some streams, up to a time."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        kept = {s.index: write.add_stream_from_template(s) for s in read.streams if s.type in kinds}
        for packet in read.demux():
            if (
                packet.dts is None
                or packet.stream.index not in kept
                or float(packet.pts * packet.time_base) > seconds
            ):
                continue
            packet.stream = kept[packet.stream.index]
            write.mux(packet)


def sequence_checkpoint(folder: Path) -> Path:
    """Random weights; spacing as in pre-training, so that a short video is read otherwise than a long one."""
    document: dict[str, Any] = copy.deepcopy(avbert_small.TINY)
    one = {**document["tasks"]["one"], "augment": {"spacing": "contiguous", "clip_seconds": 1.0}}
    learned = {"loss": "contrastive", "metric": "retrieval"}
    document["tasks"] = {
        BOTH: {**one, "eval_crops": 3}, PICTURES: {**one, "reads": "visual_cnn"},
        SOUND: {**one, "reads": "audio_cnn"}, "learn": {**one, **learned},
    }  # fmt: skip
    document["optim"]["ema_decay"] = None
    config = validate_config({**document, "storage": str(folder)})
    model = build_model(config, seed=5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.uniform_(0.5, 1.5, generator=generator)
        for head in model.heads.values():
            for parameter in head.parameters():
                parameter.normal_(0.0, 0.5, generator=generator)
    return write_checkpoint(folder / "run" / "step_00000001", model, config)


def expected(checkpoint: Path, path: Path, tasks: list[str]) -> dict[str, torch.Tensor]:
    """Logits of each task by the functions of an evaluation, one after the other."""
    predictor, logits = Predictor.load(checkpoint), {}
    for name in tasks:
        task = predictor.config.tasks[name]
        arrays = example_arrays(path.read_bytes(), task, predictor.config.model.input("audiovisual"), None)
        inputs = {key: normalise(torch.from_numpy(array)) for key, array in arrays.items()}
        with torch.inference_mode():
            views = one_answer(predictor.model(inputs, name), task.loss)
        logits[name] = average_views(views, len(views), task)[0]
    return logits
