"""The audio CNN: a 2-D ResNet. In: a spectrogram [N, 1, mel, time]. Out: [N, 32 * width, mel / 16, time / 16].

Source: official code: a stem of 9x1 and 1x9 without stride or pooling; every stage begins with stride 2; stages 2
and 3 have 3x1 (stride along mel) and 1x3 (stride along time) in place of 3x3.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from polyvit.model.avbert.resnet import Bottleneck, ConvNorm

SEPARABLE = (True, True, False, False)


class AudioCNN(nn.Module):
    """[N, 1, mel, time] -> [N, channels = 32 * width, mel / 16, time / 16], run by `model.run_cnn`."""

    def __init__(self, width: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.ModuleList([ConvNorm(1, width, (9, 1)), ConvNorm(width, width, (1, 9))])
        self.stages, channels = nn.ModuleList(), width
        for i, (number, separable) in enumerate(zip(blocks, SEPARABLE, strict=True)):
            inner = width * 2**i
            stage = [
                _block(channels if j == 0 else 4 * inner, inner, 2 if j == 0 else 1, separable)
                for j in range(number)
            ]
            self.stages.append(nn.ModuleList(stage))
            channels = 4 * inner
        self.channels = channels

    def first(self, x: Tensor) -> Tensor:
        """The stem."""
        for unit in self.stem:
            x = F.relu(unit(x))
        return x


def _block(channels: int, inner: int, stride: int, separable: bool) -> Bottleneck:
    if separable:
        middle = [ConvNorm(inner, inner, (3, 1), (stride, 1)), ConvNorm(inner, inner, (1, 3), (1, stride))]
    else:
        middle = [ConvNorm(inner, inner, (3, 3), (stride, stride))]
    units = [ConvNorm(channels, inner, (1, 1)), *middle, ConvNorm(inner, 4 * inner, (1, 1))]
    widens = channels != 4 * inner or stride > 1
    return Bottleneck(units, ConvNorm(channels, 4 * inner, (1, 1), (stride, stride)) if widens else None)
