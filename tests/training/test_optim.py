"""Learning rate, clipping, optimisers: official values, torch's own optimisers, small sums by hand."""

import subprocess
import sys

import pytest
import torch
from small import fresh, small_config
from torch import Tensor, nn

from polyvit.config import OptimConfig
from polyvit.errors import UserError
from polyvit.training.optim import AdamW, MomentumSGD, build_optimiser, clip_, global_norm, lr_factor

# facts.md, section 4. 417,920 is ours: the release wraps to 1.0 at its last step.
OFFICIAL = {
    1: 2.1128e-5, 500: 0.010564, 23_665: 0.5, 47_330: 1.0, 100_000: 0.95098, 200_000: 0.63653, 232_625: 0.5,
    300_000: 0.22970, 400_000: 0.005758, 417_920: 0.0,
}  # fmt: skip


@pytest.mark.parametrize(("step", "factor"), OFFICIAL.items())
def test_lr_factor_of_the_official_run(step: int, factor: float) -> None:
    # The facts have five digits.
    assert lr_factor(step, total=417_920, warmup=47_330) == pytest.approx(factor, rel=1e-4, abs=1e-9)


def test_lr_factor_at_the_edges() -> None:
    assert lr_factor(1, total=10, warmup=0) == pytest.approx(0.975528258)  # 0.5 (1 + cos(0.1 pi))
    assert lr_factor(10, total=10, warmup=10) == 1.0
    assert lr_factor(5, total=5, warmup=50) == pytest.approx(0.1)  # a warmup longer than the run
    factors = [lr_factor(step, 100, 20) for step in range(1, 101)]
    assert factors[:20] == sorted(factors[:20])
    assert factors[19:] == sorted(factors[19:], reverse=True)
    assert factors[19] == 1.0
    assert factors[-1] == 0.0


def test_global_norm_is_that_of_all_together() -> None:
    assert global_norm([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])]).item() == pytest.approx(5.0)


@pytest.mark.parametrize(("limit", "scale"), [(1.0, 0.2), (5.0, 1.0), (50.0, 1.0)])
def test_clip(limit: float, scale: float) -> None:
    gradients = [torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])]
    assert clip_(gradients, limit).item() == pytest.approx(5.0)
    torch.testing.assert_close(gradients, [torch.tensor([3.0]) * scale, torch.tensor([[0.0, 4.0]]) * scale])


def test_clip_agrees_with_torch() -> None:
    ours, theirs = parameters(), parameters()
    for one, other in zip(ours.values(), theirs.values(), strict=True):
        one.grad, other.grad = one.detach().clone() * 3, other.detach().clone() * 3
    norm = clip_([p.grad for p in ours.values() if p.grad is not None], 1.0)
    expected = torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
    torch.testing.assert_close(norm, expected)
    for one, other in zip(ours.values(), theirs.values(), strict=True):
        # torch divides by norm + 1e-6
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7)


def test_clip_of_zero_gradients_leaves_zeros() -> None:
    gradients = [torch.zeros(3)]
    assert clip_(gradients, 1.0).item() == 0.0
    assert gradients[0].tolist() == [0.0, 0.0, 0.0]


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (4, 3), "b": (3,), "v": (2, 2, 2)}
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def give_gradients(step: int, *all_parameters: dict[str, nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for name, p in all_parameters[0].items():
        gradient = torch.randn(p.shape, generator=generator)
        for parameters_ in all_parameters:
            parameters_[name].grad = gradient.clone()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_momentum_sgd_is_torch_sgd(weight_decay: float) -> None:
    ours, theirs = parameters(), parameters()
    optimiser = MomentumSGD(ours, OptimConfig(weight_decay=weight_decay))
    reference = torch.optim.SGD(theirs.values(), lr=1.0, momentum=0.9, weight_decay=weight_decay)
    for step in range(1, 25):
        give_gradients(step, ours, theirs)
        reference.param_groups[0]["lr"] = lr = 0.3 / step
        optimiser.step(lr)
        reference.step()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)  # rounding of 24 float32 steps


def scalar_run(inactive_params: str, dtype: str, gradients: list[float | None], lrs: list[float]) -> list[float]:
    p = nn.Parameter(torch.tensor([1.0]))
    config = OptimConfig.model_validate(
        {"inactive_params": inactive_params, "momentum_dtype": dtype, "momentum": 0.5}
    )
    optimiser, values = MomentumSGD({"p": p}, config), []
    for gradient, lr in zip(gradients, lrs, strict=True):
        p.grad = None if gradient is None else torch.tensor([gradient])
        optimiser.step(lr)
        values.append(p.item())
    return values


def test_inactive_parameters_by_hand() -> None:
    """momentum 0.5. m: 4 | kept or 2 | then 0.5 m + 1."""
    gradients, lrs = [None, 4.0, None, 1.0], [9.0, 0.25, 0.5, 1.0]
    # frozen: 1 | 1 - 0.25 * 4 = 0 | 0 | m = 0.5 * 4 + 1 = 3: 0 - 3
    assert scalar_run("frozen", "float32", gradients, lrs) == [1.0, 0.0, 0.0, -3.0]
    # momentum: 1 (never reached: still) | 0 | m = 2: 0 - 0.5 * 2 = -1 | m = 0.5 * 2 + 1 = 2: -1 - 2
    assert scalar_run("momentum", "float32", gradients, lrs) == [1.0, 0.0, -1.0, -3.0]
    assert scalar_run("momentum", "bfloat16", gradients, lrs) == [1.0, 0.0, -1.0, -3.0]


def test_frozen_and_momentum_part_ways_in_the_end() -> None:
    gradients, lrs = [4.0, None, 1.0], [0.25, 0.5, 0.5]
    assert scalar_run("frozen", "float32", gradients, lrs) == [0.0, 0.0, -1.5]
    assert scalar_run("momentum", "float32", gradients, lrs) == [0.0, -1.0, -2.0]


def test_weight_decay_by_hand() -> None:
    p = nn.Parameter(torch.tensor([2.0]))
    optimiser = MomentumSGD({"p": p}, OptimConfig(weight_decay=0.5))
    p.grad = torch.tensor([1.0])
    optimiser.step(0.25)
    assert p.item() == 1.5  # 2 - 0.25 (1 + 0.5 * 2)
    assert p.grad.item() == 1.0  # the gradient itself is left as it was


def test_bfloat16_momentum_is_the_release_rule() -> None:
    """facts.md, section 4: v = g + bf16(0.9) float(m); p -= lr v; m = bf16(v)."""
    ours, by_hand = parameters(), {name: p.detach().clone() for name, p in parameters().items()}
    optimiser = MomentumSGD(ours, OptimConfig(momentum_dtype="bfloat16"))
    assert optimiser.decay == 0.8984375
    momentum = {name: torch.zeros_like(p, dtype=torch.bfloat16) for name, p in by_hand.items()}
    for step in range(1, 10):
        give_gradients(step, ours)
        optimiser.step(0.1)
        for name, p in ours.items():
            assert p.grad is not None
            v = p.grad + 0.8984375 * momentum[name].float()
            by_hand[name] -= 0.1 * v
            momentum[name] = v.to(torch.bfloat16)
    for name in ours:
        torch.testing.assert_close(ours[name].detach(), by_hand[name], rtol=1e-6, atol=1e-6)
        assert optimiser.momentum[name].dtype == torch.bfloat16
        assert torch.equal(optimiser.momentum[name], momentum[name])


def test_adamw_is_torch_adamw_with_decay_on_matrices_only() -> None:
    ours, theirs = parameters(), parameters()
    config = OptimConfig(kind="adamw", lr=0.01, weight_decay=0.3, betas=(0.8, 0.95))
    optimiser = build_optimiser(ours, config)
    assert isinstance(optimiser, AdamW)
    matrices, vectors = [theirs["w"], theirs["v"]], [theirs["b"]]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}], betas=(0.8, 0.95)
    )
    for step in range(1, 12):
        give_gradients(step, ours, theirs)
        for group in reference.param_groups:
            group["lr"] = 0.1 / step
        optimiser.step(0.1 / step)
        reference.step()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])


def test_a_worker_trains_without_what_takes_seconds_to_import() -> None:
    code = (
        "import sys, torch, polyvit.checkpoint.state, polyvit.training.loop, polyvit.evaluation.metrics\n"
        "from polyvit.config.run import OptimConfig\n"
        "from polyvit.training.optim import build_optimiser\n"
        "p = torch.nn.Parameter(torch.ones(2, 2))\n"
        "p.grad = torch.ones(2, 2)\n"
        "build_optimiser({'p': p}, OptimConfig(kind='adamw')).step(0.1)\n"
        "slow = {'torch._dynamo', 'torch.distributed.fsdp', 'torch.distributed.tensor', 'sklearn', 'mlflow'}\n"
        "print(sorted(slow & sys.modules.keys()), float(p[0, 0].detach()) < 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout.strip() == "[] True"


@pytest.mark.parametrize(
    "config",
    [
        OptimConfig(),
        OptimConfig(momentum_dtype="bfloat16", inactive_params="momentum"),
        OptimConfig(kind="adamw", lr=0.01),
    ],
    ids=["sgd", "bfloat16", "adamw"],
)
def test_state_carried_to_fresh_objects_goes_on_bit_for_bit(config: OptimConfig) -> None:
    straight = parameters()
    optimiser = build_optimiser(straight, config)
    for step in (1, 2, 3):
        give_gradients(step, straight)
        straight["v"].grad = None  # one parameter has no state yet
        optimiser.step(0.1)
    carried = {name: nn.Parameter(p.detach().clone()) for name, p in straight.items()}
    state: dict[str, Tensor] = {name: tensor.clone() for name, tensor in optimiser.state().items()}
    assert state
    assert not any(name.endswith(".v") for name in state)
    fresh = build_optimiser(carried, config)
    fresh.load_state(state)
    for step in (4, 5, 6):
        give_gradients(step, straight, carried)
        optimiser.step(0.1)
        fresh.step(0.1)
    for name in straight:
        assert torch.equal(straight[name], carried[name])
    after, after_fresh = optimiser.state(), fresh.state()
    assert after.keys() == after_fresh.keys()
    assert all(torch.equal(after[name], after_fresh[name]) for name in after)


@pytest.mark.parametrize(("kind", "other"), [("sgd", "adamw"), ("adamw", "sgd")])
def test_the_state_of_another_optimiser_is_refused(kind: str, other: str) -> None:
    one = build_optimiser(parameters(), OptimConfig.model_validate({"kind": kind}))
    give_gradients(1, one.parameters)
    one.step(0.1)
    with pytest.raises(UserError, match=r"optim\.kind"):
        build_optimiser(parameters(), OptimConfig.model_validate({"kind": other})).load_state(one.state())


def test_amsgrad_is_torchs() -> None:
    """Three steps with falling gradients, against torch.optim.AdamW(amsgrad=True)."""
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    ours, theirs = (torch.nn.Parameter(weights.clone()) for _ in range(2))
    config = OptimConfig(kind="adamw", amsgrad=True, betas=(0.9, 0.98), weight_decay=1e-2)
    mine = build_optimiser({"p": ours}, config)
    reference = torch.optim.AdamW([theirs], 0.1, (0.9, 0.98), 1e-8, 1e-2, amsgrad=True)
    for factor in (1.0, 0.1, 0.01):
        for parameter in (ours, theirs):
            parameter.grad = factor * (weights + 1.0)
        mine.step(0.1)
        reference.step()
    assert torch.equal(ours, theirs)
    assert set(mine.state()) == {"step.p", "exp_avg.p", "exp_avg_sq.p", "max_exp_avg_sq.p"}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_parts_have_learning_rates_of_their_own(kind: str) -> None:
    """The longest name that fits counts; what no name fits has the run's rate."""
    names = ("heads.a.weight", "heads.b.weight", "cnn.weight")
    apart = {name: torch.nn.Parameter(torch.zeros(2, 2)) for name in names}
    document = {"kind": kind, "momentum": 0.0, "lr_coefs": {"heads": 10.0, "heads.b": 100.0}}
    optimiser = build_optimiser(apart, OptimConfig.model_validate(document))
    for parameter in apart.values():
        parameter.grad = torch.ones(2, 2)
    optimiser.step(1e-3)
    moved = [float(-parameter.detach()[0, 0]) for parameter in apart.values()]
    assert moved == pytest.approx([1e-2, 1e-1, 1e-3])
    with pytest.raises(UserError, match="no part 'tail'"):
        build_optimiser(apart, OptimConfig.model_validate({"kind": kind, "lr_coefs": {"tail": 2.0}}))


def test_linear_decay() -> None:
    factors = [lr_factor(step, 10, 2, "linear") for step in range(1, 11)]
    assert factors == pytest.approx([0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0])


@pytest.mark.parametrize(
    "config",
    [
        OptimConfig(weight_decay=0.1),
        OptimConfig(momentum=0.0, inactive_params="momentum", lr_coefs={"b": 3.0}),
        OptimConfig(kind="adamw", lr=0.01, weight_decay=0.3, lr_coefs={"b": 3.0}, eps=1e-6),
        OptimConfig(kind="adamw", lr=0.01, amsgrad=True),
    ],
    ids=["sgd", "sgd moved on", "adamw", "amsgrad"],
)
def test_the_fused_kernels_of_a_gpu_do_the_same(config: OptimConfig) -> None:
    """torch has them for CPUs too. Equal but for rounding, and either form goes on from the other's state."""
    plain, fused = parameters(), parameters()
    one, other = build_optimiser(plain, config), build_optimiser(fused, config)
    assert not one.fused  # that is for GPUs
    other.fused = True
    for step in range(1, 12):
        give_gradients(step, plain, fused)
        if step % 3 == 0:  # not reached
            plain["v"].grad = fused["v"].grad = None
        one.step(0.1 / step)
        other.step(0.1 / step)
        if step == 6:
            swapped = [{name: t.clone() for name, t in optimiser.state().items()} for optimiser in (one, other)]
            one.load_state(swapped[1])
            other.load_state(swapped[0])
    assert one.state().keys() == other.state().keys()
    for name in plain:
        torch.testing.assert_close(plain[name], fused[name], rtol=1e-6, atol=1e-7)
    for name, tensor in one.state().items():
        torch.testing.assert_close(tensor, other.state()[name], rtol=1e-6, atol=1e-7)


def test_adamw_spares_what_timm_spares() -> None:
    """Without gradients to speak of, what decays shrinks: matrices, and no bias, norm, class token or position."""
    model = fresh(small_config())[0]
    named = dict(model.named_parameters())

    def shrunk(**keys: object) -> set[str]:
        with torch.no_grad():
            for p in named.values():
                p.fill_(1.0)
                p.grad = torch.zeros_like(p)
        config = OptimConfig.model_validate({"kind": "adamw", "weight_decay": 0.5, **keys})
        build_optimiser(named, config).step(0.1)
        return {name for name, p in named.items() if float(p.detach().flatten()[0]) < 1}

    spared = {n for n, p in named.items() if p.ndim < 2 or n.endswith(("cls_token", "pos_embed"))}
    assert {"tokenizers.image.cls_token", "tokenizers.audio.pos_embed", "shared.norm.weight"} <= spared
    assert shrunk() == named.keys() - spared
    assert shrunk(no_weight_decay=[]) == named.keys()
    heads = {n for n in named if n.startswith("heads.")}
    assert shrunk(no_weight_decay=["heads", "shared.norm"]) == named.keys() - heads - {
        "shared.norm.weight", "shared.norm.bias",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"no_weight_decay: the model has no part 'head'"):
        shrunk(no_weight_decay=["head"])


def test_eps_is_a_setting() -> None:
    p = nn.Parameter(torch.zeros(2, 2))
    p.grad = torch.full((2, 2), 1e-3)
    build_optimiser({"p": p}, OptimConfig(kind="adamw", eps=1e-3)).step(1.0)
    assert p.detach().flatten().tolist() == pytest.approx([-0.5] * 4)  # m / (sqrt(v) + eps) = 1e-3 / 2e-3


@pytest.mark.parametrize("keys", ["optim.momentum=1", "optim.betas=[0.9,1]", "optim.betas=[1.0,0.9]"])
def test_a_mean_that_never_learns_is_refused(keys: str) -> None:
    with pytest.raises(UserError, match="less than 1"):
        small_config(keys)
