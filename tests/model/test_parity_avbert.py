"""Parity of AVBert with the official code: layers, transformers in every sharing mode, the whole network.

Everything in float32 and float64: a layer norm with another epsilon, or R the wrong way round in a corner, hides
below float32's rounding. Sizes, modes, fusions and cases are the kit's.
"""

import re
from pathlib import Path

import av_kit as kit
import pytest
import torch
from torch import Tensor

from polyvit.model.avbert.convert import (
    ALBERT,
    BERT,
    official_name,
    official_to_state,
    stage_depths,
    state_to_official,
)
from polyvit.model.avbert.model import AVBert, Sequences
from polyvit.model.avbert.transformer import PostNormLayer
from polyvit.model.pretrained.from_avbert import initialise_avbert

OUTPUTS, GRADIENTS, TRAINING = 1e-5, 3e-5, 3e-4
"""Of the largest value. Outputs and gradients: float32 sums in another order through six layers or fifty
convolutions (another implementation reaches 4e-6 and 6e-6). In training each of a hundred norms divides by a
spread that is estimated from a handful of numbers, which multiplies the rounding (it reaches 6e-5)."""
pytestmark = pytest.mark.usefixtures("one_thread")
FLOAT64 = 1e-8
"""The official exponential's order is chosen for single precision: it is some 1e-10 off."""
LAYERS, TRANSFORMERS, NETWORKS = kit.files("layer_"), kit.files("transformer_"), kit.files("avbert_")


# ------------------------------------------------------------------------------------------------------ layers


def layer_of(case: str, dtype: torch.dtype) -> tuple[PostNormLayer, list[str]]:
    """A layer with the kit's weights, and its groups ("0", "1", ...)."""
    shared, factorised = "albert" in case, case.endswith("factor")
    mode = {(True, True): "layer_partial", (True, False): "layer", (False, True): "partial_unshared_layers"}
    config = kit.model_config(kit.info()["sizes"]["tf"], "mid", mode.get((shared, factorised), "none"))
    given = kit.under(case, "param/")
    groups = sorted({m[1] for name in given if (m := re.search(r"\.ms(\d+)_linear", name))})
    layer = PostNormLayer(config, groups)
    state = {}
    for name, _ in layer.named_parameters():
        part, *leaf = name.split(".")
        theirs = (ALBERT if shared else BERT)[part]
        if factorised and not part.startswith("norm"):
            before, _, last = theirs.rpartition(".")
            theirs = f"{before}.factor_{last}".removeprefix(".")
            leaves = {"weight": "s_linear.weight", "bias": "s_linear.bias"}
            if leaf[0] == "private":
                leaf = [
                    f"ms{leaf[1]}_linear.weight" if leaf[2] == "weight" else f"orthogonal_ms{leaf[1]}_linear.A"
                ]
            theirs += "." + leaves.get(leaf[0], leaf[0])
        else:
            theirs += "." + leaf[0]
        state[name] = given.pop(theirs)
    assert not given, sorted(given)
    layer.load_state_dict(state)
    return layer.to(dtype), groups or ["0"]


@pytest.mark.parametrize("case", LAYERS)
def test_parity_layer(case: str) -> None:
    """Output of each private group under a mask, and the input's gradient."""
    for dtype, out, tolerance in ((torch.float32, "out", OUTPUTS), (torch.float64, "out64", FLOAT64)):
        layer, groups = layer_of(case, dtype)
        added = torch.from_numpy(kit.arrays(case)["in/additive_mask"]).to(dtype)
        for g in groups:
            x = torch.from_numpy(kit.arrays(case)["in/x"]).to(dtype).requires_grad_()
            y = layer(x, g, None, added)
            kit.close(y, kit.arrays(case)[f"{out}/group{g}/y"], tolerance, f"{out} {g}")
            (y * torch.from_numpy(kit.arrays(case)["cot/y"])).sum().backward()
            if out == "out":
                kit.close(x.grad, kit.arrays(case)[f"gin/group{g}/x"], GRADIENTS, f"dx {g}")


# ------------------------------------------------------------------------------------------------ transformers


def transformers_of(case: str, dtype: torch.dtype) -> AVBert:
    """An AVBert whose embeddings and transformers are the kit's; the rest is as it came."""
    config = kit.model_config(
        kit.info()["sizes"]["tf"], "mid", case.removeprefix("transformer_"),
        visual_width=2, audio_width=2, blocks=(1, 1, 1, 1),
    )  # fmt: skip
    model = AVBert(config, {})
    given = kit.under(case, "param/")
    ours = {name: official_name(name, config) for name in model.state_dict()}
    model.load_state_dict({name: given[theirs] for name, theirs in ours.items() if theirs in given}, strict=False)
    assert sum(theirs in given for theirs in ours.values()) >= 3 * config.depth or given
    loaded = {theirs for theirs in ours.values() if theirs in given}
    idle = set(kit.info()["parameters_without_gradient"][case.removeprefix("transformer_")])
    assert given.keys() - loaded == idle
    return model.to(dtype)


def run_roles(model: AVBert, case: str, dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """{role: (input, output)} for the kit's masked sequences."""
    data, found = kit.under(case, ""), {}
    for role, name in (("visual", "visual"), ("audio", "audio"), ("multimodal", "multi")):
        x = data[f"in/{name}"].to(dtype).requires_grad_()
        length = x.shape[1] // (2 if name == "multi" else 1)
        lengths = [length] * (x.shape[1] // length)
        found[name] = (x, model.transform(x, role, lengths, data[f"in/mask_{name}"].to(dtype)))
    return found


@pytest.mark.parametrize("case", TRANSFORMERS)
def test_parity_transformers(case: str) -> None:
    """Outputs and gradients of all three roles together, the sum of both over layers and roles where shared."""
    model = transformers_of(case, torch.float32)
    found, data = run_roles(model, case, torch.float32), kit.arrays(case)
    sum((y * torch.from_numpy(data[f"cot/{name}"])).sum() for name, (_, y) in found.items()).backward()
    for name, (x, y) in found.items():
        kit.close(y, data[f"out/{name}"], OUTPUTS, name)
        kit.close(x.grad, data[f"gin/{name}"], GRADIENTS, f"d{name}")
    for name in list(dict(model.named_parameters())):
        if not name.startswith(("embeddings", "transformers")):
            parts = name.split(".")
            assert model.get_parameter(name).grad is None, parts
    expected = kit.under(case, "grad/")
    trained = {n: p for n, p in model.named_parameters() if n.startswith(("embeddings", "transformers"))}
    assert {official_name(n, model.config) for n in trained} <= expected.keys()
    kit.gradients_close(model, case, model.config, GRADIENTS)


@pytest.mark.parametrize("case", TRANSFORMERS)
@torch.no_grad()
def test_parity_transformers_in_float64(case: str) -> None:
    model = transformers_of(case, torch.float64)
    for name, (_, y) in run_roles(model, case, torch.float64).items():
        kit.close(y, kit.arrays(case)[f"out64/{name}"], FLOAT64, name)


# ----------------------------------------------------------------------------------------------- whole network


def network_of(case: str, dtype: torch.dtype) -> AVBert:
    """The kit's whole AVBert, through the conversion of an official checkpoint."""
    match = re.fullmatch(r"avbert_(early|mid|late)_(.+)_(?:eval|train)", case)
    assert match is not None
    sizes = kit.info()["sizes"]["av"]
    official = {**kit.under(case, "param/"), **kit.under(case, "buffer/")}
    config = kit.model_config(
        sizes, match[1], match[2],
        visual_width=sizes["vw"], audio_width=sizes["aw"], blocks=tuple(stage_depths(official)),
    )  # fmt: skip
    model = AVBert(config, {})
    model.load_state_dict(official_to_state(official, config))
    return model.to(dtype).train(case.endswith("train"))


@pytest.mark.slow
@pytest.mark.parametrize("case", [name for name in NETWORKS if name.endswith("eval")])
def test_parity_network_from_a_file(case: str, tmp_path: Path) -> None:
    """`init.path` with a file of the official names, as its pre-training would leave it: the same values."""
    official = {**kit.under(case, "param/"), **kit.under(case, "buffer/")}
    torch.save(
        {"state_dict": {f"module.{name}": tensor for name, tensor in official.items()}}, tmp_path / "av.pth"
    )
    expected = network_of(case, torch.float32)
    model = AVBert(expected.config, {}, seed=1)
    report = initialise_avbert(model, tmp_path / "av.pth")
    assert (report.random, report.unused) == ((), ())
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def run_network(model: AVBert, case: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], Sequences, tuple]:
    """Named outputs of the kit, the sequences, and the inputs."""
    data = kit.arrays(case)
    inputs = tuple(torch.from_numpy(data[f"in/{name}"]).to(dtype).requires_grad_() for name in ("visual", "audio"))
    embedded = model.embed(*inputs)
    found = model.contextualise(embedded.visual_BSD, embedded.audio_BSD)
    outputs = {
        "visual_pooled": embedded.visual_pooled,
        "audio_pooled": embedded.audio_pooled,
        "visual_projected": embedded.visual_BSD,
        "audio_projected": embedded.audio_BSD,
        "visual_seq": found.visual_BND,
        "audio_seq": found.audio_BND,
    }
    if found.multimodal is not None:
        width = model.config.width
        outputs["multi_seq"] = found.multimodal
        outputs["multi_bos_visual"], outputs["multi_bos_audio"] = found.summaries().split(width, dim=-1)
    return outputs, found, inputs


@pytest.mark.parametrize("case", NETWORKS)
def test_parity_network(case: str) -> None:
    """Every output; where the file has them, every gradient and the running averages after one training pass."""
    model, data = network_of(case, torch.float32), kit.arrays(case)
    training = case.endswith("train")
    outputs, _, inputs = run_network(model, case, torch.float32)
    checked = 0
    for name, value in outputs.items():
        if f"out/{name}" in data:
            kit.close(value, data[f"out/{name}"], TRAINING if training else OUTPUTS, name)
            checked += 1
    assert checked >= 6
    losses = [(outputs[n] * torch.from_numpy(data[f"cot/{n}"])).sum() for n in outputs if f"cot/{n}" in data]
    if losses:
        sum(losses).backward()
        for name, x in zip(("visual", "audio"), inputs, strict=True):
            if f"gin/{name}" in data:
                kit.close(x.grad, data[f"gin/{name}"], TRAINING if training else GRADIENTS, f"d{name}", 1e-2)
        kit.gradients_close(model, case, model.config, TRAINING if training else GRADIENTS)
    after = kit.under(case, "after/")
    for name, buffer in model.named_buffers():
        if after:
            kit.close(buffer, after[official_name(name, model.config)], OUTPUTS, name)
    assert training == bool(after)


@pytest.mark.parametrize("case", NETWORKS)
@torch.no_grad()
def test_parity_network_in_float64(case: str) -> None:
    model = network_of(case, torch.float64)
    outputs, _, _ = run_network(model, case, torch.float64)
    checked = [name for name in outputs if f"out64/{name}" in kit.arrays(case)]
    assert checked
    for name in checked:
        kit.close(outputs[name], kit.arrays(case)[f"out64/{name}"], FLOAT64, name)


@pytest.mark.parametrize("case", NETWORKS)
def test_parity_names_both_ways(case: str) -> None:
    """Official -> ours -> official gives the same names (less what nothing reads) and the same bits."""
    official = {**kit.under(case, "param/"), **kit.under(case, "buffer/")}
    model = network_of(case, torch.float32)
    back = state_to_official(model.state_dict(), model.config)
    counters = {name for name in official if name.endswith("num_batches_tracked")}
    assert back.keys() == official.keys() - counters
    assert all(torch.equal(back[name], official[name]) for name in back)
