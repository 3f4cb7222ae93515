"""Gradients of several tasks as one update: aggregators by hand, ranks as one process, clipping, loss weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks_kit import SingleProcess, result_of, run_ranks, trained
from small import ArrayFeed, fresh, small_config
from torch import Tensor

from polyvit.config import RunConfig
from polyvit.errors import UserError
from polyvit.training.balancing import aggregate, balancing_bytes, shared_by_all
from polyvit.training.loss_weights import UncertaintyWeights, dwa_weights
from polyvit.training.step import TrainStep, train_step

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["pcgrad", "cagrad", "mgda", "nash_mtl", "upgrad", "imtl_g", "aligned_mtl"]
LENIENT = "data.max_bad_fraction=1"


def accumulating(*overrides: str) -> RunConfig:
    base = ("schedule.kind=accumulating", "schedule.steps=24", "schedule.accumulating_lr_coef=0.5", LENIENT)
    return small_config(*base, *overrides)


@pytest.mark.parametrize("name", NAMES)
def test_tasks_that_agree_are_not_turned(name: str) -> None:
    if name == "nash_mtl":
        pytest.importorskip("ecos", reason="has wheels for Linux x86-64 with Python below 3.13 only")
    update = aggregate(name, torch.tensor([[3.0, 4.0, 0.0], [3.0, 4.0, 0.0]]), 0)
    assert torch.nn.functional.cosine_similarity(update, torch.tensor([3.0, 4.0, 0.0]), dim=0) > 0.999
    assert update.norm() > 0.1


@pytest.mark.parametrize("name", ["pcgrad", "mgda", "upgrad", "imtl_g", "aligned_mtl"])
def test_two_tasks_in_conflict_both_gain(name: str) -> None:
    """Where their sum would raise the loss of the smaller one."""
    jacobian = torch.tensor([[4.0, 1.0], [-1.0, 1.0]])
    assert jacobian.sum(0) @ jacobian[1] < 0
    assert (jacobian @ aggregate(name, jacobian, 0) > -1e-4).all()


def test_pcgrad_by_hand() -> None:
    """Each gradient loses its part along the other: (1, 0) less -1/2 (-1, 1), and (-1, 1) less -(1, 0)."""
    update = aggregate("pcgrad", torch.tensor([[1.0, 0.0], [-1.0, 1.0]]), 0)
    torch.testing.assert_close(update, torch.tensor([0.5, 0.5]) + torch.tensor([0.0, 1.0]))


def test_a_draw_follows_from_the_seed_alone() -> None:
    jacobian = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    first, state = aggregate("pcgrad", jacobian, 3), torch.get_rng_state()
    torch.rand(5)
    assert torch.equal(aggregate("pcgrad", jacobian, 3), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator was left alone
    others = [aggregate("pcgrad", jacobian, seed) for seed in range(4, 12)]
    assert any(not torch.equal(other, first) for other in others)


def gradients(config: RunConfig, task: str | None = None) -> dict[str, Tensor]:
    """Of the first step; of one of its tasks alone."""
    model, _, schedule = fresh(config)
    (minibatches,) = [next(iter(ArrayFeed(config, schedule=schedule).train(1)))]
    with torch.no_grad():
        for head in model.heads.values():
            head.weight.normal_(generator=torch.Generator().manual_seed(0))

    class Still:
        def step(self, lr: float) -> None:
            """Nothing moves."""

    chosen = [m for m in minibatches if task in (None, m.task)]
    train_step(model, Still(), chosen, 0.1, config, SingleProcess())
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["upgrad", "mgda"])
def test_a_step_balances_shared_weights_and_sums_the_rest(name: str) -> None:
    config = accumulating(f"schedule.balancing={name}", "optim.clip_norm=null")
    model, _, _ = fresh(config)
    shared = shared_by_all(model, list(config.tasks))
    assert set(shared) == {n for n, _ in model.named_parameters() if n.startswith("shared.")}
    balanced, alone = gradients(config), {task: gradients(config, task) for task in config.tasks}
    jacobian = torch.stack([torch.cat([g[n].reshape(-1) for n in shared]) for g in alone.values()])
    whole = torch.cat([balanced[n].reshape(-1) for n in shared])
    torch.testing.assert_close(whole, aggregate(name, jacobian, 0), rtol=1e-4, atol=1e-5)
    assert (jacobian @ whole > -1e-3 * jacobian.norm(dim=1) * whole.norm()).all()
    own = [n for n in balanced if n not in shared]
    assert any(n.startswith("adaptors.audio") for n in own)  # two tasks, summed
    for n in own:
        torch.testing.assert_close(balanced[n], sum(g[n] for g in alone.values() if n in g), rtol=1e-4, atol=1e-6)


def test_clipping_is_of_the_balanced_gradient() -> None:
    free = gradients(accumulating("schedule.balancing=upgrad", "optim.clip_norm=null"))
    norm = torch.stack([g.square().sum() for g in free.values()]).sum().sqrt()
    clipped = gradients(accumulating("schedule.balancing=upgrad", f"optim.clip_norm={norm.item() / 4}"))
    for n, g in free.items():
        torch.testing.assert_close(clipped[n], g / 4, rtol=1e-4, atol=1e-7)


CONFIGS = {
    "upgrad": accumulating("schedule.balancing=upgrad", "train.microbatch=3"),
    "pcgrad": accumulating("schedule.balancing=pcgrad"),
    "dwa": accumulating("schedule.loss_weights=dwa", "train.eval_every=2"),
    "uncertainty": accumulating(
        "schedule.loss_weights=uncertainty", "schedule.uncertainty_lr=0.2", "train.log_every=1"
    ),
}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("balancing") / "2"
    run_ranks(2, folder, CONFIGS)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_two_ranks_train_as_one(two_ranks: Path, name: str) -> None:
    alone, state, events = trained(CONFIGS[name], SingleProcess())
    plain, _, _ = trained(accumulating(), SingleProcess())
    for rank in (0, 1):
        parameters, kept = result_of(two_ranks, name, rank)
        for key, value in alone.items():
            # float32 sums in another order, and a solver's tolerance, over six steps that move by up to 1.
            torch.testing.assert_close(parameters[key], value, rtol=0, atol=2e-5, msg=key)
        assert kept["losses"] == pytest.approx([s["loss"] for s in events.snapshots], rel=1e-3)
        assert kept["state"].read == state.read
        if rank == 0 and name == "uncertainty":
            curves = [
                [values["train/word/loss_weight"] for _, values in each]
                for each in (kept["points"], events.points)
            ]
            assert curves[0] == pytest.approx(curves[1], rel=1e-5)
            assert curves[0][0] == 1 != curves[0][-1]
    assert max((alone[key] - plain[key]).abs().max().item() for key in alone) > 2e-4  # ten times the tolerance


def evaluation(**losses: float) -> dict[str, Any]:
    return {"tasks": {task: {"loss": loss} for task, loss in losses.items()}}


def test_dwa_by_hand() -> None:
    config = CONFIGS["dwa"]
    first = evaluation(picture=2.0, clip=1.0, sound=1.0, word=1.0)
    assert dwa_weights(config, [first]) == {}
    weights = dwa_weights(config, [first, evaluation(picture=1.0, clip=1.0, sound=1.0, word=1.0)])
    low, high = 2.718281828**0.25, 2.718281828**0.5  # ratios 1/2 and 1 over the temperature of 2
    assert weights["picture"] == pytest.approx(4 * low / (low + 3 * high))
    assert sum(weights.values()) == pytest.approx(4)
    assert dwa_weights(accumulating(), [first, first]) == {}


def test_uncertainty_by_hand() -> None:
    """The loss exp(-s) L + s / 2 by autograd, and AdamW's first two steps by hand: it moves by lr x sign first."""
    losses = torch.tensor([2.0, 0.25])
    s = torch.tensor([0.0, 0.0], requires_grad=True)
    (torch.exp(-s) * losses + s / 2).sum().backward()
    assert s.grad is not None
    assert s.grad.tolist() == [0.5 - 2.0, 0.5 - 0.25]
    learned = UncertaintyWeights(["a", "b"], 0.1, torch.device("cpu"))
    assert list(learned.weights().values()) == [1, 1]
    learned.update(losses)
    assert learned.log_variance_T.grad is not None
    assert learned.log_variance_T.grad.tolist() == s.grad.tolist()
    assert learned.log_variance_T.tolist() == pytest.approx([0.1, -0.1])
    assert [w.item() for w in learned.weights().values()] == pytest.approx([2.718281828**-0.1, 2.718281828**0.1])
    before = learned.log_variance_T.tolist()
    learned.update(losses)
    for n, (first, loss) in enumerate(zip((-1.5, 0.25), (2.0, 0.25), strict=True)):
        second = 0.5 - 2.718281828 ** -before[n] * loss
        mean, square = (0.09 * first + 0.1 * second) / 0.19, (0.000999 * first**2 + 0.001 * second**2) / 0.001999
        assert learned.log_variance_T[n].item() == pytest.approx(before[n] - 0.1 * mean / square**0.5, rel=1e-5)


def test_uncertainty_rests_where_a_weight_is_half_of_the_inverse_loss() -> None:
    learned = UncertaintyWeights(["a", "b"], 0.05, torch.device("cpu"))
    for _ in range(400):
        learned.update(torch.tensor([4.0, 0.5]))
    assert [w.item() for w in learned.weights().values()] == pytest.approx([1 / 8, 1.0], rel=1e-2)


def test_uncertainty_scales_gradients_by_its_weight() -> None:
    """The gradient of a step whose s are not 0, on what a single task reaches, is exp(-s) times the plain one."""
    config, kept = accumulating("optim.clip_norm=null"), []
    for s in (0.0, 0.5):
        model, _, schedule = fresh(config)
        learned = UncertaintyWeights(list(config.tasks), 0.0, torch.device("cpu"))
        with torch.no_grad():
            learned.log_variance_T[0] = s

        class Still:
            def step(self, lr: float) -> None:
                """Nothing moves."""

        step = TrainStep(model, Still(), config, SingleProcess(), None, learned)
        numbers = step.start(next(iter(ArrayFeed(config, schedule=schedule).train(1))), 0.1)
        kept.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        weights = numbers.result(numbers.values.tolist()).weights
        assert weights == pytest.approx([2.718281828**-s, 1, 1, 1])
    own = [name for name in kept[0] if name.startswith("heads.picture") and kept[0][name].any()]
    assert own
    for name in own:
        torch.testing.assert_close(kept[1][name], kept[0][name] * 2.718281828**-0.5)
    torch.testing.assert_close(kept[1]["heads.clip.bias"], kept[0]["heads.clip.bias"])


def test_reported_losses_are_not_weighted() -> None:
    config = accumulating()
    reported = []
    for weights in ({}, {"picture": 3.0, "clip": 0.5, "sound": 0.25, "word": 0.25}):
        model, optimiser, schedule = fresh(config)
        (minibatches,) = [next(iter(ArrayFeed(config, schedule=schedule).train(1)))]
        step = TrainStep(model, optimiser, config, SingleProcess())
        step.loss_weights = weights
        numbers = step.start(minibatches, 0.1)
        reported.append(numbers.result(numbers.values.tolist()))
    assert reported[0].losses == reported[1].losses
    assert reported[0].grad_norm != reported[1].grad_norm


def test_memory_is_counted() -> None:
    config = accumulating("schedule.balancing=mgda")
    model, _, _ = fresh(config)
    shared = sum(p.numel() for n, p in model.named_parameters() if n.startswith("shared."))
    assert balancing_bytes(model, config) == 4 * shared * 9  # four tasks' gradients, their matrix, the update
    assert balancing_bytes(model, accumulating()) == 0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["schedule.balancing=upgrad"],
            "schedule.balancing=upgrad is of schedule.kind=accumulating, not of weighted",
        ),
        (["schedule.kind=accumulating", "schedule.loss_weights=dwa"], "set train.eval_every"),
        (
            ["schedule.kind=accumulating", "schedule.balancing=mgda", "train.sharding=full"],
            "set train.sharding=none",
        ),
    ],
)
def test_what_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        small_config(*overrides)
    assert words in "\n".join([caught.value.message, *caught.value.problems])
