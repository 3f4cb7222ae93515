"""The visual or the audio CNN cut out of an AVBert: one clip in, its features out. It needs no task and no head.

In: `clips`, uint8 RGB [B, T, H, W, 3], or `spectrograms`, float32 log-mel [B, time, mel]; B counts clips, each on
its own. Out: features [B, C], the last map's mean; C is 2048 or 1024 at the published width.
Legend: B batch, T frames, H W, C channels.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from polyvit.config import ArraySpec, AudiovisualTask, RunConfig
from polyvit.errors import UserError
from polyvit.model import MultiTaskModel, normalise
from polyvit.model.avbert import AVBert

Part = Literal["visual_cnn", "audio_cnn"]
PARTS: tuple[Part, ...] = get_args(Part)
ARRAYS: dict[Part, str] = {"visual_cnn": "clips", "audio_cnn": "spectrograms"}


@dataclass(frozen=True)
class ClipInput:
    """The one input of a CNN: {name: shape of a clip, type}, as `InputSection.arrays`."""

    arrays: dict[str, ArraySpec]


class ClipCNN(nn.Module):
    """One CNN of a trained model, as it is: clips -> features [B, C]."""

    output = "features"

    def __init__(self, model: AVBert, part: Part) -> None:
        super().__init__()
        self.name = ARRAYS[part]
        whole = model.config.audiovisual.arrays[self.name]
        self.spec = ClipInput({self.name: ArraySpec(whole.shape[1:], whole.dtype)})
        self.cnn = model.visual_cnn if part == "visual_cnn" else model.audio_cnn
        # Bound methods: the model's other parts stay out of this module.
        self.arrays, self.run = model.arrays, model.run_cnn

    def forward(self, media: Tensor) -> Tensor:
        """Media as the module's docstring says -> features, float32 [B, C]."""
        if self.name == "spectrograms":
            media = media.half()  # as the feed rounds them
        other = torch.zeros(1, 1, 1, device=media.device)
        given = {"clips": other, "spectrograms": other, self.name: normalise(media)[:, None]}
        pixels, sound = self.arrays(given)
        clip = (pixels if self.name == "clips" else sound)[:, 0]
        return self.run(self.cnn, clip).flatten(2).mean(-1)


def cnn_alone(model: MultiTaskModel, part: Part) -> ClipCNN:
    """One CNN of a trained AVBert, in eval mode. Raises UserError for another model."""
    if not isinstance(model, AVBert):
        raise UserError(f"--part {part}: only a model.kind=avbert has CNNs; give --task NAME")
    return ClipCNN(model.eval(), part).eval()


def task_of_part(config: RunConfig, part: Part) -> str:
    """The first task that loads what a CNN reads: its clips say how media are prepared. Raises UserError."""
    stream = part.removesuffix("_cnn")
    for name, task in config.tasks.items():
        if isinstance(task, AudiovisualTask) and stream in task.needed_streams:
            return name
    raise UserError(f"--part {part}: no task of this model reads that stream, so it was not trained")
