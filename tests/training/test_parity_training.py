"""Parity of training with the official loop: learning rates, losses and metrics, twenty steps, two devices.

Everything goes through the project's own `train_step`. The reference's treatment of parameters that a step does
not touch is `optim.inactive_params: momentum`; its clipping order over devices is `optim.clip_order: reference`.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import parity_kit as kit
import pytest
import torch
from torch import Tensor

from polyvit.config import RunConfig
from polyvit.data.loading.minibatch import Minibatch
from polyvit.distributed import SingleProcess
from polyvit.distributed.reducer import Done
from polyvit.evaluation.metrics import MetricState
from polyvit.model.polyvit import PolyViT
from polyvit.model.pretrained.convert import state_to_official
from polyvit.objectives.losses import example_losses, mixup
from polyvit.training.optim import build_optimiser, lr_factor
from polyvit.training.step import StepResult, train_step

DTYPES = {"f32mom": "float32", "bf16mom": "bfloat16"}
RUNS = [
    (l_adapt, path.name.removeprefix("train_log_").removesuffix(".npz"))
    for l_adapt in kit.adapts()
    for path in sorted((kit.DIR / "polyvit" / f"L{l_adapt}").glob("train_log_*.npz"))
]
WARMUP = re.compile(r"total=(\d+),warmup=(\d+)\.0")
LR_CASES: dict[str, list[float]] = {
    name: factors
    for name, factors in kit.info("schedule/schedule.json").get("base_lr", {}).items()
    if WARMUP.fullmatch(name)
}
"""Without the kit's fractional warmups: `optim.warmup_steps` is a whole number."""
TWO_DEVICES = kit.info("polyvit/two_devices/info.json")


def minibatch(config: RunConfig, task: str, index: int, step: int = 1) -> Minibatch:
    """The kit's batch as one whole minibatch of the feed."""
    tokens, labels = kit.batch(config, task, index)
    size = len(tokens)
    return Minibatch(step, task, {"tokens": tokens.numpy()}, labels.numpy(), ("",) * size, 0, size)


# ---------------------------------------------------------------------------------- learning rate and losses


@pytest.mark.parametrize("case", LR_CASES)
def test_parity_base_learning_rate(case: str) -> None:
    """Warmup and cosine at every step but the last, where the release jumps back to 1 and ours is 0.

    Tolerance 1e-6: the release computes in float32.
    """
    match = WARMUP.fullmatch(case)
    assert match is not None
    total, warmup = int(match[1]), int(match[2])
    found = [lr_factor(step, total, warmup) for step in range(1, total + 1)]
    np.testing.assert_allclose(found[:-1], LR_CASES[case][:-1], atol=1e-6)
    assert found[-1] == 0.0


def loss_arrays() -> Mapping[str, np.ndarray]:
    """The kit's logits, labels, mask, losses and metrics."""
    return kit.arrays("schedule/losses_metrics.npz")


def test_parity_losses() -> None:
    """Per example and averaged over the mask, with label smoothing: every loss that the kit holds.

    Tolerance 1e-6 of the value: a few float32 operations a class.
    """
    data = {name: torch.from_numpy(array) for name, array in loss_arrays().items()}
    logits, counted = data["logits"], data["batch_mask"] > 0
    soft = example_losses(logits, data["onehot"], "softmax")
    kit.close(soft[counted], data["per_example_softmax"][counted], 1e-6, "per example softmax")
    seen = 0
    for name, value in data.items():
        match = re.fullmatch(r"(softmax|sigmoid)_ce(?:_(onehot|multihot))?(?:_ls(.*))?", name)
        if match is None:
            continue
        labels = data[match[2] or "onehot"]
        losses = example_losses(logits, labels, match[1], float(match[3] or 0))  # type: ignore[arg-type]
        kit.close(losses[counted].mean(), value, 1e-6, name)
        seen += 1
    assert seen


def test_parity_metrics() -> None:
    """top1, top5 and prec@1 as counts over the examples that the mask keeps: exact."""
    data = loss_arrays()
    counted = data["batch_mask"] > 0
    logits = data["logits"][counted]
    for labels_name, key, hits in (
        ("onehot", "top1", "accuracy_onehot"),
        ("onehot", "top5", "top5_onehot"),
        ("multihot", "top1", "prec_at_1_multihot"),
    ):
        labels = data[labels_name][counted]
        state = MetricState(keep_scores=False)
        state.update(logits, labels, np.zeros(len(labels), np.float32))
        known = labels.any(axis=1)
        reference = data[hits].reshape(len(data["batch_mask"]), -1).max(axis=1)[counted][known]
        assert state.results()[key] == pytest.approx(reference.mean(), abs=1e-12), hits


def test_parity_mixup() -> None:
    """Inputs and labels mixed with the release's partners (slot B - 1 - i), at each of the kit's weights.

    Tolerance 1e-6: two float32 products and a sum.
    """
    data = kit.arrays("schedule/mixup_audio.npz")
    partner = torch.arange(len(data["inputs"])).flip(0)
    weights = [name for name in data if name.startswith("weight")]
    assert weights
    for name in weights:
        for what in ("inputs", "label"):
            mixed = mixup(torch.from_numpy(data[what]), partner, float(data[name]))
            kit.close(mixed, data[f"mixed_{what}{name.removeprefix('weight')}"], 1e-6, f"{name}, {what}")


# ------------------------------------------------------------------------------------------------ trajectories


def replay(
    config: RunConfig, log: Mapping[str, np.ndarray], parameters: str
) -> tuple[list[StepResult], dict[int, dict[str, np.ndarray]]]:
    """Train as the log says: (result of each step, official tree after step 0, 1, 2, ...)."""
    model = kit.kit_model(config, parameters)
    optimiser = build_optimiser(dict(model.named_parameters()), config.optim)
    results, trees = [], {0: official(model)}
    order = zip(log["task_sequence"], log["batch_index"], log["lr"], strict=True)
    for step, (task, index, lr) in enumerate(order, start=1):
        part = minibatch(config, str(task), int(index), step)
        results.append(train_step(model, optimiser, [part], float(lr), config, SingleProcess()))
        trees[step] = official(model)
    return results, trees


def official(model: PolyViT) -> dict[str, np.ndarray]:
    """The model's parameters now, as the official tree (copied)."""
    tree = state_to_official(model.state_dict(), model.config)
    return {name: array.copy() for name, array in tree.items()}


def run_optim(run: str, log: Mapping[str, np.ndarray]) -> dict[str, object]:
    """The `optim` section of one of the kit's runs. On one device both clipping orders are the same."""
    return {
        "momentum_dtype": DTYPES[run.split("_")[0]],
        "clip_norm": float(log["max_grad_norm"]) if "max_grad_norm" in log else 1.0,
        "inactive_params": "momentum",
    }


def saved_steps(l_adapt: int, run: str) -> dict[int, Path]:
    """Step -> file of parameters, as far as the kit has them. Step 1 is the same for either momentum."""
    folder = kit.DIR / "polyvit" / f"L{l_adapt}"
    found = {}
    for path in folder.glob("params_step*_*.npz"):
        match = re.fullmatch(r"params_step(\d+)_(.+)", path.stem)
        if match and (match[2] == run or (match[1] == "1" and {match[2], run} <= set(DTYPES))):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def rounding_limit(run: str, step: int, clip_norm: float = 1.0) -> float:
    """Largest difference of a parameter that rounding explains.

    float32 momentum: float32 sums in another order, carried along by the training: 1e-5, and in proportion to
    the clipping norm, since that is how large the steps are. bfloat16 momentum is the same at step 1, where the
    buffer has not been used yet. After that a sum that falls on the other side of a bfloat16 boundary moves its
    buffer by 2^-8 of its size: with gradients clipped to norm 1 (at most 1 an entry), momentum of up to 10 of
    them and rates up to 0.5, 5e-3 bounds it, and few entries are hit at all.
    """
    return (1e-5 if run.startswith("f32") or step <= 1 else 5e-3) * max(1.0, clip_norm)


@pytest.mark.parametrize(("l_adapt", "run"), RUNS)
def test_parity_trajectory(l_adapt: int, run: str) -> None:
    """Parameters after each step that the kit saved, and the log: loss, norms, size of the update."""
    log = kit.arrays(f"polyvit/L{l_adapt}/train_log_{run}.npz")
    config = kit.run_config(l_adapt, **run_optim(run, log))
    results, trees = replay(config, log, f"polyvit/L{l_adapt}/params_step0.npz")
    for step, path in saved_steps(l_adapt, run).items():
        expected = kit.arrays(str(path.relative_to(kit.DIR)))
        limit = rounding_limit(run, step, config.optim.clip_norm or 1.0)
        differences = []
        for name, array in expected.items():
            kit.close(trees[step][name], array, limit, f"step {step}, {name}")
            differences.append(np.abs(trees[step][name] - array).ravel())
        # A boundary crossing is rare in the first steps; later most entries have met one.
        if step <= 5:
            assert (np.concatenate(differences) > 1e-5).mean() < 0.01, step
    # The log: float32 rounding of the forward pass, on parameters that differ as above.
    loose = 1e-4 if run.startswith("f32") else 2e-2
    np.testing.assert_allclose([r.losses[0] for r in results], log["loss"], rtol=loose, atol=loose)
    np.testing.assert_allclose([r.grad_norm for r in results], log["grad_norm_before_clip"], rtol=loose)
    moves = [update_norm(trees[i], trees[i + 1]) for i in range(len(results))]
    np.testing.assert_allclose(moves, log["update_norm"], rtol=loose, atol=1e-5)


def update_norm(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> float:
    """Euclidean norm of one step's move of all parameters."""
    return float(np.sqrt(sum(np.square((after[name] - before[name]).astype(np.float64)).sum() for name in after)))


@pytest.mark.parametrize(("l_adapt", "run"), RUNS)
def test_parity_logged_learning_rate(l_adapt: int, run: str) -> None:
    """The log's rate is the task's coefficient times our factor, but for the release's jump at the last step."""
    log = kit.arrays(f"polyvit/L{l_adapt}/train_log_{run}.npz")
    coefficients = [kit.task_info(str(task))["coef"] for task in log["task_sequence"]]
    base, total = log["lr"] / coefficients, len(log["lr"])
    # The kit does not state the warmup: its first factor is 1 / W (the cosine has not begun yet).
    warmup = round(1.0 / base[0]) if base[0] < 0.9 else 0
    found = [lr_factor(step, total, warmup) for step in range(1, total + 1)]
    np.testing.assert_allclose(found[:-1], base[:-1], atol=1e-6)


@pytest.mark.parametrize("l_adapt", kit.adapts())
def test_parity_untouched_parameters_follow_the_release(l_adapt: int) -> None:
    """Heads and class tokens at every one of the steps: also those that a step does not touch move on."""
    folder = f"polyvit/L{l_adapt}"
    expected = kit.arrays(f"{folder}/trajectories_bf16mom.npz")
    log = kit.arrays(f"{folder}/train_log_bf16mom.npz")
    config = kit.run_config(l_adapt, **run_optim("bf16mom", log))
    _, trees = replay(config, log, f"{folder}/params_step0.npz")
    for name, trajectory in expected.items():
        for step, array in enumerate(trajectory):
            kit.close(trees[step][name], array, rounding_limit("bf16mom", step), f"step {step}, {name}")


# ------------------------------------------------------------------------------------------------ two devices


class Rank:
    """One of two ranks run one after the other: rank 0 leaves its sums here, rank 1 adds them."""

    def __init__(self, rank: int, others: list[Tensor]) -> None:
        self.rank, self.size, self.others = rank, 2, others

    def sum_(self, flat: Tensor) -> None:
        """Add what the earlier rank left; leave ours."""
        mine = flat.clone()
        for other in self.others:
            flat.add_(other)
        self.others.append(mine)

    def sum_async(self, flat: Tensor) -> Done:
        """At once."""
        self.sum_(flat)
        return Done()

    def gather(self, value: object) -> list:
        """Not asked for by a step."""
        raise NotImplementedError


@pytest.mark.parametrize("task", TWO_DEVICES.get("tasks", {}))
def test_parity_two_devices(task: str) -> None:
    """The gradient that enters the momentum: images clip the mean, video and audio average what was clipped.

    Tolerance 1e-6: float32 rounding of gradients whose norm is at most 1.
    """
    l_adapt = TWO_DEVICES["L_adapt"]
    expected = kit.arrays(f"polyvit/two_devices/effective_grad_{task}.npz")
    config = kit.run_config(l_adapt, inactive_params="momentum", clip_order="reference")
    left: list[Tensor] = []
    for rank in (0, 1):
        model = kit.kit_model(config, f"polyvit/L{l_adapt}/params_step0.npz")
        tokens, labels = kit.batch(config, task, rank)
        size = len(tokens)
        part = Minibatch(1, task, {"tokens": tokens.numpy()}, labels.numpy(), ("",) * size, rank * size, 2 * size)
        optimiser = build_optimiser(dict(model.named_parameters()), config.optim)
        train_step(model, optimiser, [part], 0.0, config, Rank(rank, left))
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    found = state_to_official(gradients, config.model)
    for name, array in found.items():
        kit.close(array, expected.get(name, np.zeros_like(array)), 1e-6, name)
    norm = np.sqrt(sum(np.square(array.astype(np.float64)).sum() for array in found.values()))
    assert norm == pytest.approx(TWO_DEVICES["tasks"][task]["effective_norm"], rel=1e-5)
