"""The visual CNN: a 3-D ResNet over one clip. In: [N, 3, T, H, W]. Out: the last map [N, 32 * width, T', H', W'].

Source: official code, one pathway of SlowFast: stem 5x7x7 of stride 2, 2, 2, max-pooling 1x3x3 of stride 1, 2, 2;
the first kernel of a block is 1, 1, 3, 3 frames long in stages 2 to 5; the stride of a stage is in its 3x3 kernel
and spatial alone.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from polyvit.model.avbert.resnet import Bottleneck, ConvNorm

TIME_KERNELS = (1, 1, 3, 3)
STRIDES = (1, 2, 2, 2)


class VisualCNN(nn.Module):
    """[N, 3, T, H, W] -> [N, channels = 32 * width, T', H', W'], run by `model.run_cnn`."""

    def __init__(self, width: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.stem = ConvNorm(3, width, (5, 7, 7), (2, 2, 2))
        self.stages, channels = nn.ModuleList(), width
        for i, (number, time, stride) in enumerate(zip(blocks, TIME_KERNELS, STRIDES, strict=True)):
            inner = width * 2**i
            stage = [
                _block(channels if j == 0 else 4 * inner, inner, time, stride if j == 0 else 1)
                for j in range(number)
            ]
            self.stages.append(nn.ModuleList(stage))
            channels = 4 * inner
        self.channels = channels

    def first(self, x: Tensor) -> Tensor:
        """Stem and pooling."""
        return F.max_pool3d(F.relu(self.stem(x)), (1, 3, 3), (1, 2, 2), (0, 1, 1))


def _block(channels: int, inner: int, time: int, stride: int) -> Bottleneck:
    units = [
        ConvNorm(channels, inner, (time, 1, 1)),
        ConvNorm(inner, inner, (1, 3, 3), (1, stride, stride)),
        ConvNorm(inner, 4 * inner, (1, 1, 1)),
    ]
    widens = channels != 4 * inner or stride > 1
    return Bottleneck(units, ConvNorm(channels, 4 * inner, (1, 1, 1), (1, stride, stride)) if widens else None)
