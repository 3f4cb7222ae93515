"""Parity with the official PolyViT: forward, losses, gradients, converters, stochastic-depth rates.

Tolerances: both sides compute in float32 and sum in different orders (XLA's matmuls against PyTorch's). Four
blocks over some tens of tokens leave relative errors of a few 1e-6; we allow 1e-5 of the largest magnitude.
"""

import re

import numpy as np
import parity_kit as kit
import pytest
import torch

from polyvit.model.encoder import drop_path_rates
from polyvit.model.polyvit import PolyViT
from polyvit.model.pretrained.convert import official_to_state, state_to_official
from polyvit.objectives.losses import example_losses

ROUNDING = 1e-5
CASES = [(l_adapt, task) for l_adapt in kit.adapts() for task in kit.tasks()]
each_case = pytest.mark.parametrize(("l_adapt", "task"), CASES)
each_l_adapt = pytest.mark.parametrize("l_adapt", kit.adapts())
RAMPS = kit.info("schedule/schedule.json").get("droplayer_p", {})


def test_parity_kit_is_read() -> None:
    """Without a kit nothing below runs: say so once. With one, it must hold cases."""
    kit.require(kit.DIR)
    assert CASES


@each_case
@torch.no_grad()
def test_parity_forward(l_adapt: int, task: str) -> None:
    """Tokens after the adaptors, the encoded sequence, the class token, logits: every batch."""
    expected = kit.arrays(f"polyvit/L{l_adapt}/forward.npz")
    config = kit.run_config(l_adapt)
    model = kit.kit_model(config, f"polyvit/L{l_adapt}/params_step0.npz")
    modality = config.tasks[task].modality
    for index in kit.batches(expected, task):
        tokens, _ = kit.batch(config, task, index)
        adapted = model.tokenizers[modality](tokens)
        for block in model.adaptors[modality].children():
            adapted = block(adapted)
        root = f"{task}/batch{index}"
        kit.close(adapted, expected[f"{root}/tokens"], ROUNDING, "tokens")
        kit.close(model.encode(tokens, modality), expected[f"{root}/encoded"], ROUNDING, "encoded")
        features = model.forward_features({"tokens": tokens}, modality)
        kit.close(features, expected[f"{root}/pre_logits"], ROUNDING, "pre_logits")
        kit.close(model({"tokens": tokens}, task), expected[f"{root}/logits"], ROUNDING, "logits")


@each_case
@torch.no_grad()
def test_parity_loss(l_adapt: int, task: str) -> None:
    """Mean loss, with label smoothing, and without the example that the reference masks out.

    The smoothing is read from the array's name.
    """
    expected = kit.arrays(f"polyvit/L{l_adapt}/losses.npz")
    config = kit.run_config(l_adapt)
    model = kit.kit_model(config, f"polyvit/L{l_adapt}/params_step0.npz")
    kind = config.tasks[task].loss
    for name, value in expected.items():
        match = re.fullmatch(rf"{re.escape(task)}/batch(\d+)/loss(_.*)?", name)
        if match is None:
            continue
        tokens, labels = kit.batch(config, task, int(match[1]))
        variant = match[2] or ""
        smoothing = float(variant.removeprefix("_label_smoothing_")) if "smoothing" in variant else 0.0
        losses = example_losses(model({"tokens": tokens}, task), labels, kind, smoothing)
        counted = losses[:-1] if variant == "_last_example_masked" else losses
        # The reference divides by the mask's sum + 1e-8, which is nothing in float32.
        kit.close(counted.mean(), value, ROUNDING, name)


@each_case
def test_parity_gradient(l_adapt: int, task: str) -> None:
    """Gradient of the mean loss on batch 0, not clipped; no gradient at all where the reference's is zero."""
    expected = kit.arrays(f"polyvit/L{l_adapt}/grad_{task}.npz")
    config = kit.run_config(l_adapt)
    model = kit.kit_model(config, f"polyvit/L{l_adapt}/params_step0.npz")
    tokens, labels = kit.batch(config, task, 0)
    example_losses(model({"tokens": tokens}, task), labels, config.tasks[task].loss).mean().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == set(model.touched(task))
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    found = state_to_official(gradients, config.model)
    zero = kit.info("polyvit/info.json")["zero_grad_keys"][f"L{l_adapt}"][task]
    assert set(found) == set(expected) | set(zero)
    for name in zero:
        assert not found[name].any(), name
    # One limit for all leaves, from the largest gradient: sums over batch and tokens round relative to it.
    # (Key biases have a mathematically zero gradient; both sides hold noise there, far below the limit.)
    largest = max(1.0, *(np.abs(leaf).max() for leaf in expected.values()))
    for name, leaf in expected.items():
        kit.close(found[name] / largest, leaf / largest, ROUNDING, name)
    losses = f"polyvit/L{l_adapt}/losses.npz"
    if (kit.DIR / losses).is_file():
        norm = np.sqrt(sum(np.square(leaf.astype(np.float64)).sum() for leaf in found.values()))
        kit.close(norm, kit.arrays(losses)[f"{task}/batch0/grad_global_norm"], ROUNDING, "global norm")


@each_l_adapt
def test_parity_converter_round_trip(l_adapt: int) -> None:
    """Official tree -> our state dict -> official tree gives the same bits, and the state fits the model."""
    tree = kit.arrays(f"polyvit/L{l_adapt}/params_step0.npz")
    config = kit.run_config(l_adapt)
    state = official_to_state(tree, config.model)
    model = PolyViT(config.model, config.tasks)
    model.load_state_dict(state)
    back = state_to_official(model.state_dict(), config.model)
    assert set(back) == set(tree)
    for name, array in tree.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


@each_l_adapt
def test_parity_converter_round_trip_from_ours(l_adapt: int) -> None:
    """Our state dict -> official tree -> our state dict gives the same bits."""
    config = kit.run_config(l_adapt)
    model = PolyViT(config.model, config.tasks, seed=3)
    back = official_to_state(state_to_official(model.state_dict(), config.model), config.model)
    assert set(back) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize("case", RAMPS)
def test_parity_droplayer_rates(case: str) -> None:
    """Drop probability per block with `drop_path_ramp: reference`; the case's name holds its numbers.

    Tolerance 1e-12: the same few products in float64.
    """
    numbers = {key: float(value) for key, value in (part.split("=") for part in case.split(","))}
    depth, l_adapt = int(numbers["num_layers"]), int(numbers["L_adapt"])
    found = drop_path_rates(numbers["rate"], depth, l_adapt, "reference")
    expected = RAMPS[case]["modality_specific"] + RAMPS[case]["shared"]
    np.testing.assert_allclose(found, expected, atol=1e-12)
