"""Heads on one CNN, and on clips and sequence: the official code's numbers, what a step reaches, frozen norms."""

import copy
from typing import Any

import av_kit as kit
import pytest
import torch
from avbert_small import TINY, minibatch
from torch.nn import functional as F

from polyvit.config import RunConfig, load_config, validate_config
from polyvit.data.loading import tensors
from polyvit.distributed import SingleProcess
from polyvit.evaluation import evaluate
from polyvit.model import build_model, normalise
from polyvit.model.avbert.heads import ClipsAndSequence
from polyvit.objectives import example_losses, one_answer, task_losses
from polyvit.training import freeze_parts, train_step
from polyvit.training.optim import build_optimiser

pytestmark = pytest.mark.usefixtures("one_thread")


def config_of(**task: Any) -> RunConfig:
    changed = copy.deepcopy(TINY)
    changed["model"]["dropout"] = 0.0
    changed["tasks"] = {"one": {**TINY["tasks"]["one"], **task}}
    changed["optim"] = {"kind": "adamw", "lr": 1e-2}
    return validate_config(changed)


def test_parity_of_clips_and_sequence() -> None:
    """The release's two heads on its own intermediate values: logits, losses, and what an evaluation sums."""
    visual, audio = (kit.under("head_multimodal", f"mid/{name}_pooled")[""] for name in ("visual", "audio"))
    multimodal = kit.under("head_multimodal", "mid/multi_seq")[""]
    weights = kit.under("head_multimodal", "param/")
    batch, width = multimodal.shape[0], multimodal.shape[2]
    classes = weights["concat_head.projection.weight"].shape[0]
    head = ClipsAndSequence(visual.shape[1] + audio.shape[1], width, classes)
    names = {
        "clip": "concat_head.projection", "visual": "concat_seq_head.fc1", "audio": "concat_seq_head.fc2",
        "norm": "concat_seq_head.ln", "sequence": "concat_seq_head.projection",
    }  # fmt: skip
    official = {f"{ours}.{key}": f"{theirs}.{key}" for ours, theirs in names.items() for key in ("weight", "bias")}
    head.load_state_dict({ours: weights[theirs] for ours, theirs in official.items() if theirs in weights})
    logits = head(torch.cat([visual, audio], dim=1).unflatten(0, (batch, -1)), multimodal)
    clip, sequence = logits.unbind(1)
    # The middle values are those of evaluation; in training batch norm has other statistics.
    kit.close(clip.softmax(-1).flatten(0, 1), kit.arrays("head_multimodal")["out/eval_clip_probability"], 1e-5)
    found = sequence.softmax(-1).flatten(0, 1)
    kit.close(found, kit.arrays("head_multimodal")["out/eval_sequence_probability"], 1e-5)
    summed = kit.arrays("head_multimodal")["out/eval_ensemble_sum_over_views"]
    answers = one_answer(logits, "softmax").softmax(-1) * 2 * clip.shape[1]
    kit.close(answers, summed, 1e-5)


def test_parity_of_the_multi_margin_loss() -> None:
    logits = torch.from_numpy(kit.arrays("head_audio")["out/train_logit"].copy())
    labels = F.one_hot(torch.from_numpy(kit.arrays("head_audio")["in/labels"].copy()), logits.shape[1])
    losses = example_losses(logits, labels, "multi_margin", margin=0.1)
    kit.close(losses.mean(), kit.arrays("head_audio")["out/multi_margin_loss"], 1e-6)
    theirs = F.multi_margin_loss(logits, labels.argmax(1), margin=0.1, reduction="none")
    assert torch.allclose(losses, theirs, atol=1e-6)


def test_answers_of_clips_sum_over_kinds_and_average_over_clips() -> None:
    config = config_of(reads="clips_and_sequence")
    logits, labels = torch.randn(4, 2, 3, 5), torch.eye(5)[:4]
    found = task_losses(logits, labels, config.tasks["one"])
    expected = -(logits.log_softmax(-1) * labels[:, None, None]).sum(-1).mean(-1).sum(-1)
    assert torch.allclose(found, expected)
    averaged = one_answer(logits, "softmax").softmax(-1)
    assert torch.allclose(averaged, logits.softmax(-1).mean((1, 2)), atol=1e-6)


@pytest.mark.parametrize("reads", ["visual_cnn", "audio_cnn", "clips_and_sequence"])
def test_a_step_reaches_what_the_head_reads(reads: str) -> None:
    config = config_of(reads=reads, head_dropout=0.5)
    model = build_model(config, seed=1)
    optimiser = build_optimiser(dict(model.named_parameters()), config.optim)
    train_step(model, optimiser, [minibatch(config, "one", 1)], 1e-2, config, SingleProcess())
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == model.touched("one").keys()
    assert any(name.startswith("transformers") for name in reached) == (reads == "clips_and_sequence")
    result = evaluate(model, [minibatch(config, "one", 1)], config, SingleProcess())[0]["one"]
    assert result["examples"] == 4


def test_a_frozen_cnn_is_the_same_function_at_every_step() -> None:
    """Linear evaluation: batch norm works as in evaluation, and neither weights nor running averages move."""
    config = config_of(reads="audio_cnn", loss="multi_margin")
    model = build_model(config, seed=1)
    freeze_parts(model, ["audio_cnn"])
    with torch.no_grad():
        model.get_buffer("audio_cnn.stem.0.norm.running_mean").fill_(0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimiser = build_optimiser(dict(model.named_parameters()), config.optim)
    batch = minibatch(config, "one", 1)
    inputs = {name: normalise(array) for name, array in tensors(batch, torch.device("cpu"))[0].items()}
    with torch.no_grad():
        assert torch.equal(model.train()(inputs, "one"), model.eval()(inputs, "one"))
    model.train()
    train_step(model, optimiser, [batch], 1e-2, config, SingleProcess())
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"heads.one.weight", "heads.one.bias"}


def test_each_task_shares_features_where_it_can() -> None:
    """Answers to several tasks at once are those of each alone."""
    changed = copy.deepcopy(TINY)
    changed["tasks"]["two"] |= {"reads": "visual_cnn"}
    config = validate_config(changed)
    model = build_model(config, seed=1).eval()
    batch = minibatch(config, "one", 1)
    inputs = {name: normalise(array) for name, array in tensors(batch, torch.device("cpu"))[0].items()}
    with torch.no_grad():
        together = model.answers(inputs, "audiovisual", ["one", "two"])
        assert all(torch.equal(together[name], model(inputs, name)) for name in ("one", "two"))
    assert together["two"].shape == (4, 1, 3, 3)


def test_rates_of_head_and_rest() -> None:
    """The release's Kinetics-Sounds: 1e-3 and 1e-4."""
    optim = load_config("avbert-kinetics-sounds").optim
    assert optim.lr * optim.lr_coefs["heads"] == pytest.approx(1e-3)
