"""AVBert's training step against the official modules' form, and the memory of sharing layers.

    python tests/benchmarks/avbert_step.py                        # both, at the published size
    python tests/benchmarks/avbert_step.py step [--clips 10 --frames 32 --size 112 --batch 1 --budget 100]
    python tests/benchmarks/avbert_step.py memory [--clips 10 --frames 32 --size 112]

`memory` counts on fake tensors: nothing is run. `step` runs both forms in turn in one process, with the same
weights and inputs, for as many rounds as the budget of seconds has room for (one at least, after one that does not
count). It prints each one's median, the ratio, the largest difference of features and gradients, and the machine's
load. The official form is its operations in plain torch: torch's batch norm, scores and softmax written out, and
the rotation of every map worked out at each of its 108 uses.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from polyvit.config import AVBertConfig, RoleSharing, SequenceInput
from polyvit.model.avbert import AVBert
from polyvit.model.avbert.resnet import ConvNorm
from polyvit.model.avbert.transformer import MAPS, PostNormLayer
from polyvit.model.sharing import FactorLinear
from polyvit.training import PeakBytes

PRETRAINING_CLIPS = 30


class OfficialLayer(nn.Module):
    """A PostNormLayer's operations as the official code writes them."""

    def __init__(self, layer: PostNormLayer) -> None:
        super().__init__()
        self.layer, self.factorised = layer, layer.factorised

    def forward(self, x: Tensor, role: str, *_: object) -> Tensor:
        """[B, N, D] -> same."""
        q, k, v = (
            self._mapped(name, x).unflatten(-1, (self.layer.num_heads, -1)).transpose(1, 2) for name in MAPS[:3]
        )
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        context = self._mapped_by(self.layer.out, (weights @ v).transpose(1, 2).flatten(2), role)
        x = self.layer.norm1(x + context)
        hidden = F.gelu(self._mapped_by(self.layer.ffn1, x, role))
        return self.layer.norm2(x + self._mapped_by(self.layer.ffn2, hidden, role))

    def _mapped(self, name: str, x: Tensor) -> Tensor:
        return self._mapped_by(getattr(self.layer, name), x, self.role)

    def _mapped_by(self, layer: nn.Module, x: Tensor, role: str) -> Tensor:
        if not isinstance(layer, FactorLinear):
            return layer(x)
        own = layer.own(role)
        h = F.linear(x, own.weight)
        h = h / h.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        upper = own.skew.triu(1)
        return F.linear(h @ torch.matrix_exp(upper - upper.mT), layer.weight, layer.bias)

    role = "visual"


def official_form(model: AVBert) -> AVBert:
    """The model with torch's batch norm and the official layers' operations; no rotations are shared."""
    for module in list(model.modules()):
        if isinstance(module, ConvNorm):
            kind = nn.BatchNorm3d if isinstance(module.conv, nn.Conv3d) else nn.BatchNorm2d
            theirs = kind(module.norm.weight.numel())
            theirs.load_state_dict(module.norm.state_dict(), strict=False)
            module.norm = theirs  # type: ignore[assignment]
    layers = {id(m): OfficialLayer(m) for m in model.modules() if isinstance(m, PostNormLayer)}

    def run(x: Tensor, role: str, *_: object) -> Tensor:
        stack = model.transformers.layers(role)
        for home in model.transformers.homes:
            layer = layers[id(stack[home])]
            layer.role = role
            x = layer(x, role)
        return x

    model.transformers.forward = run  # type: ignore[method-assign]
    return model


def inputs_of(config: AVBertConfig, batch: int) -> dict[str, Tensor]:
    """Random clips and spectrograms of `batch` sequences."""
    generator = torch.Generator().manual_seed(0)
    arrays = config.audiovisual.arrays
    return {name: torch.rand(batch, *spec.shape, generator=generator) for name, spec in arrays.items()}


def seconds(model: AVBert, inputs: dict[str, Tensor]) -> float:
    """One forward and backward pass and one AdamW step."""
    optimiser = torch.optim.AdamW(model.parameters(), 1e-5, foreach=True)
    began = time.perf_counter()
    model.forward_features(inputs, "audiovisual").square().mean().backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def step(arguments: argparse.Namespace) -> None:
    """Medians of both forms, in turn."""
    clips = SequenceInput(clips=arguments.clips, frames=arguments.frames, size=(arguments.size, arguments.size))
    config = AVBertConfig(audiovisual=clips, dropout=0.0)
    inputs, began, load = inputs_of(config, arguments.batch), time.perf_counter(), os.getloadavg()[0]
    models = {"ours": AVBert(config, {}, seed=0), "official form": official_form(AVBert(config, {}, seed=0))}
    small = {name: array[:, :1] for name, array in inputs.items()}
    agreement(models, small)
    taken: dict[str, list[float]] = {name: [] for name in models}
    while True:
        start = time.perf_counter()
        for name, model in models.items():
            taken[name].append(seconds(model.train(), inputs))
        now = time.perf_counter()
        if len(taken["ours"]) > 1 and now + (now - start) > began + arguments.budget:
            break
    medians = {name: statistics.median(values[1:]) for name, values in taken.items()}
    for name, values in taken.items():
        first = f"the first, {values[0]:.2f} s, not counted"
        print(f"{name}: median {medians[name]:.2f} s of {len(values) - 1} ({first})")
    print(
        f"one step of {arguments.batch} x {arguments.clips} clips of {arguments.frames} x {arguments.size} x"
        f" {arguments.size}: official form / ours {medians['official form'] / medians['ours']:.2f};"
        f" {torch.get_num_threads()} threads, load average {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    )


def agreement(models: dict[str, AVBert], inputs: dict[str, Tensor]) -> None:
    """Largest difference of the features and, relative to the largest, of the gradients of the transformers."""
    features, gradients = [], []
    for model in models.values():
        found = model.eval().forward_features(inputs, "audiovisual")
        found.square().mean().backward()
        features.append(found.detach())
        parameters = [p for n, p in model.named_parameters() if n.startswith("transformers.")]
        gradients.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
        model.zero_grad(set_to_none=True)
    off = float((features[0] - features[1]).abs().max())
    relative = float((gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max())
    print(f"largest difference of the features {off:.1e}, of the gradients {relative:.1e} of the largest")


def peak(config: AVBertConfig, run: Callable[[AVBert], Tensor], checkpointed: bool) -> tuple[int, int]:
    """(bytes of parameters, peak bytes of a forward and backward pass besides them), counted."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = AVBert(config, {})
        model.activation_checkpointing = checkpointed
        held = sum(p.numel() * p.element_size() for p in model.transformers.parameters())
        with PeakBytes() as counted:
            run(model).sum().backward()
    return held, counted.peak


def memory(arguments: argparse.Namespace) -> None:
    """Transformers alone (32 sequences of 30 clips), and the whole model on one sequence of clips."""

    def transformers(model: AVBert) -> Tensor:
        x = torch.zeros(32, PRETRAINING_CLIPS, model.config.width)
        return model.contextualise(x, x.clone()).summaries()

    def whole(model: AVBert) -> Tensor:
        arrays = model.config.audiovisual.arrays
        inputs = {name: torch.zeros(1, *spec.shape) for name, spec in arrays.items()}
        return model.forward_features(inputs, "audiovisual")

    print(
        "layers  roles     checkpointed  transformers' weights MB  pass of transformers MB  pass of the whole MB"
    )
    for layers in ("none", "all"):
        for roles in ("none", "low_rank"):
            sharing = RoleSharing(layers=layers, roles=roles)
            size = (arguments.size, arguments.size)
            clips = SequenceInput(clips=arguments.clips, frames=arguments.frames, size=size)
            positions = 1 + max(arguments.clips, PRETRAINING_CLIPS)
            config = AVBertConfig(sharing=sharing, positions=positions, audiovisual=clips, dropout=0.0)
            for checkpointed in (False, True):
                held, small = peak(config, transformers, checkpointed)
                _, large = peak(config, whole, checkpointed)
                print(
                    f"{layers:6}  {roles:8}  {checkpointed!s:12}  {held / 1e6:24.1f}  {small / 1e6:23.0f}"
                    f"  {large / 1e6:20.0f}"
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("step", "memory", "both"), default="both")
    for key, value in (("clips", 10), ("frames", 32), ("size", 112), ("batch", 1), ("budget", 100)):
        parser.add_argument(f"--{key}", type=int, default=value)
    given = parser.parse_args()
    for name, part in (("step", step), ("memory", memory)):
        if given.what in (name, "both"):
            part(given)
