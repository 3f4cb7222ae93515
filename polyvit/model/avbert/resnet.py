"""Bottleneck residual blocks of 2-D and 3-D ResNets, with batch norm that keeps to the batch at hand.

In: [N, C, ...] with two or three axes behind the channels. Out: the same, C wider, axes shorter by the stride.
Source: the SlowFast code's ResNet, of which the official AVBert has a copy. No library has the audio CNN's blocks,
and pytorchvideo, which has the visual one, is no longer kept.

Batch norm under data parallelism: statistics are those of the examples of one pass on one rank, as in the release,
where each GPU normalises its own 4 sequences; nothing is exchanged within a step, unless inside of `synced`, as a
contrastive task's is. After a step the running averages are averaged over ranks
(`polyvit.distributed.average_buffers`): every rank evaluates and saves the same.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BN_EPS, BN_MOMENTUM = 1e-5, 0.1
"""Source: the official code's defaults, which are torch's."""
Shape = tuple[int, ...]


class BatchNorm(nn.Module):
    """Batch norm over all axes but the second; `running_mean` and `running_var` (unbiased) for evaluation.

    Frozen (`optim.frozen`) it works as in evaluation, and its running averages stay: a frozen CNN is the same
    function at every step, as in the release's linear evaluation.

    updates: whether a pass in training moves the running averages; off while a block is run once more for its
    gradient, so that activation checkpointing changes nothing.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.updates = True
        self.total: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] -> [N, C, ...]."""
        # A second run has momentum 0 and not no averages: it must save what the first one saved.
        momentum = BN_MOMENTUM if self.updates else 0.0
        averages = self.running_mean, self.running_var
        training = self.training and self.weight.requires_grad
        if training and self.total is not None:
            return self._synced(x, self.total, momentum)
        return F.batch_norm(x, *averages, self.weight, self.bias, training, momentum, BN_EPS)

    def _synced(self, x: Tensor, total: Callable[[Tensor], Tensor], momentum: float) -> Tensor:
        """With the statistics of all ranks, in float32: their mean, then the mean square around it."""
        axes, shape = [0, *range(2, x.ndim)], (1, -1, *(1 for _ in x.shape[2:]))
        sums = total(torch.cat([x.float().sum(axes), x.new_tensor([x.numel() / x.shape[1]]).float()]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x.float() - mean.view(shape)
        variance = total(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), momentum)
        scale = self.weight * torch.rsqrt(variance + BN_EPS)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


class ConvNorm(nn.Module):
    """Convolution without bias, padded to keep the size at stride 1; batch norm."""

    def __init__(self, channels_in: int, channels: int, kernel: Shape, stride: Shape | None = None) -> None:
        super().__init__()
        conv: type[nn.Module] = {2: nn.Conv2d, 3: nn.Conv3d}[len(kernel)]
        padding = tuple(side // 2 for side in kernel)
        self.conv = conv(channels_in, channels, kernel, stride or 1, padding, bias=False)  # type: ignore[arg-type]
        self.norm = BatchNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] -> [N, C', ...]."""
        return self.norm(self.conv(x))


class Bottleneck(nn.Module):
    """A few ConvNorms with ReLU between them, added to the input (or its 1x1 projection); ReLU after the sum."""

    def __init__(self, units: Sequence[ConvNorm], shortcut: ConvNorm | None) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] -> [N, C', ...]."""
        y = x
        for i, unit in enumerate(self.units):
            y = unit(F.relu(y) if i else y)
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


@contextmanager
def synced(model: nn.Module, total: Callable[[Tensor], Tensor] | None) -> Iterator[None]:
    """Batch norm in training uses the statistics of all ranks inside; around the backward pass too.

    total: the sum of a tensor over ranks, with gradients; None: each rank keeps its own statistics.
    """
    with _in_norms(model, "total", total, None):
        yield


def no_updates(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts of the first run of a checkpointed block and of the second, which leaves running averages alone."""

    return nullcontext(), _in_norms(block, "updates", False, True)


@contextmanager
def _in_norms(module: nn.Module, name: str, inside: object, after: object) -> Iterator[None]:
    """An attribute of every batch norm of a module has one value inside, and another after."""
    norms = [each for each in module.modules() if isinstance(each, BatchNorm)]
    for norm in norms:
        setattr(norm, name, inside)
    try:
        yield
    finally:
        for norm in norms:
            setattr(norm, name, after)


@torch.no_grad()
def reset_cnn(cnn: nn.Module, generator: torch.Generator) -> None:
    """He normal over the fan-out (c2_msra); the last norm of each residual branch starts without scale."""
    for module in cnn.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, Bottleneck):
            last = module.units[-1]
            assert isinstance(last, ConvNorm)
            last.norm.weight.zero_()
