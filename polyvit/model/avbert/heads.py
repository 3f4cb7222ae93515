"""What stands on AVBert for a task with classes: one linear map, or the two of a clip and of the sequence.

In: what the task reads (`tasks.NAME.reads`). Out: logits [B, K]; or [B, A, S, K], A kinds of answer for each clip.
Legend: B batch, S clips, N = 1 + S tokens, C channels of a CNN, D width, K classes.
Source: official code (facts-av.md, section 8).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from polyvit.config import AudiovisualTask, AVBertConfig

HEAD_EPS = 1e-5
"""Of the sequence head's layer norm; source: official code, torch's default."""
CNN_WIDENS = 32
"""Channels of a CNN's output for each of its `width`."""


def build_head(config: AVBertConfig, task: AudiovisualTask) -> nn.Module:
    """The head of a task with classes."""
    visual, audio = CNN_WIDENS * config.visual_width, CNN_WIDENS * config.audio_width
    if task.reads == "clips_and_sequence":
        return ClipsAndSequence(visual + audio, config.width, task.num_classes)
    read = {"summaries": config.feature_width, "visual_cnn": visual, "audio_cnn": audio}[task.reads]
    return nn.Linear(read, task.num_classes)


class ClipsAndSequence(nn.Module):
    """An answer from both CNNs' outputs of each clip, one from its two multimodal tokens and both summaries."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.clip = nn.Linear(channels, classes)
        self.visual = nn.Linear(2 * width, width, bias=False)
        self.audio = nn.Linear(2 * width, width, bias=False)
        self.norm = nn.LayerNorm(width, eps=HEAD_EPS)
        self.sequence = nn.Linear(width, classes)

    def forward(
        self, pooled_BSC: Tensor, multimodal_BND: Tensor, dropped: Callable[[Tensor], Tensor] = lambda x: x
    ) -> Tensor:
        """Logits [B, 2, S, K]: of the clip, of the sequence.

        pooled: both CNNs' outputs. multimodal: [B, 2 (1 + S), D], visual then audio. dropped: what dropout makes
        of the last map's input.
        """
        visual, audio = (
            torch.cat([half[:, :1].expand(-1, half.shape[1] - 1, -1), half[:, 1:]], dim=-1)
            for half in multimodal_BND.chunk(2, dim=1)
        )
        context_BSD = self.norm(self.visual(visual) + self.audio(audio))
        return torch.stack([self.clip(pooled_BSC), self.sequence(dropped(context_BSD))], dim=1)
