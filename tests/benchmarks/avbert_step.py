"""AVBert's training step against the official modules' form, and the memory of sharing layers.

    python tests/benchmarks/avbert_step.py memory                 # counted on fake tensors: nothing is run
    python tests/benchmarks/avbert_step.py step [--clips 2 --size 112 --frames 16 --batch 1 --rounds 3]

`step` runs both in turn in one process, with the same weights and inputs, and prints each one's median with the
machine's load average. The official form is its operations in plain torch: torch's batch norm, scores and softmax
written out, and the rotation of every map worked out at each of its 108 uses.
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
    inputs = inputs_of(config, arguments.batch)
    ours, theirs = AVBert(config, {}, seed=0), official_form(AVBert(config, {}, seed=0))
    first = [m.eval().forward_features(inputs, "audiovisual").detach() for m in (ours, theirs)]
    print(f"largest difference of the features: {float((first[0] - first[1]).abs().max()):.1e}")
    taken: dict[str, list[float]] = {"ours": [], "official form": []}
    for i in range(arguments.rounds + 1):
        for name, model in (("ours", ours), ("official form", theirs)):
            value = seconds(model.train(), inputs)
            if i:
                taken[name].append(value)
    for name, values in taken.items():
        print(f"{name}: median {statistics.median(values):.2f} s of {len(values)}")
    ratio = statistics.median(taken["official form"]) / statistics.median(taken["ours"])
    print(f"official form / ours {ratio:.2f}; {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}")


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
    """Transformers alone (32 sequences of 30 clips), and the whole model on one sequence."""

    def transformers(model: AVBert) -> Tensor:
        x = torch.zeros(32, 30, model.config.width)
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
            clips = SequenceInput(clips=30, frames=16)
            config = AVBertConfig(sharing=sharing, positions=31, audiovisual=clips, dropout=0.0)
            for checkpointed in (False, True):
                held, small = peak(config, transformers, checkpointed)
                _, large = peak(config, whole, checkpointed)
                print(
                    f"{layers:6}  {roles:8}  {checkpointed!s:12}  {held / 1e6:24.1f}  {small / 1e6:23.0f}"
                    f"  {large / 1e6:20.0f}"
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "memory"))
    for key, value in (("clips", 2), ("frames", 16), ("size", 112), ("batch", 1), ("rounds", 3)):
        parser.add_argument(f"--{key}", type=int, default=value)
    given = parser.parse_args()
    {"step": step, "memory": memory}[given.what](given)
