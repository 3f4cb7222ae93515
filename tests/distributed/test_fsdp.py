"""Parameters divided among two processes: as the run that is not divided, with its checkpoints and evaluation."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from ranks_kit import GlooWorld, meet
from small import ArrayFeed, fresh, small_config

from polyvit.config import RunConfig, validate_config
from polyvit.data.loading import Minibatch
from polyvit.distributed import full_state, is_sharded, is_split, load_optimiser, load_parameters, local, shard
from polyvit.errors import UserError
from polyvit.evaluation.evaluator import evaluate
from polyvit.model.polyvit import PolyViT
from polyvit.training.ema import Ema
from polyvit.training.optim import Optimiser, build_optimiser
from polyvit.training.step import train_step

EMPTY = ("tasks.picture.batch=2", "tasks.sound.batch=2", "tasks.clip.batch=2", "tasks.word.batch=2")
CASES: dict[str, tuple[str, ...]] = {
    "sgd": ("optim.weight_decay=0.01",),
    "momentum": ("optim.inactive_params=momentum", "optim.momentum_dtype=bfloat16"),
    # a larger epsilon of the comparison: AdamW divides by the size of gradients that are zero but for rounding
    "adamw": ("optim.kind=adamw",),
    "empty": EMPTY,
    "accumulating": ("schedule.kind=accumulating", "schedule.steps=40", "train.microbatch=2"),
    "low_rank": ("model.sharing.modalities=low_rank", "model.sharing.rank=4"),
    "one_layer": ("model.sharing.modalities=low_rank", "model.sharing.rank=4", "model.sharing.layers=all"),
    "checkpointing": ("train.activation_checkpointing=true",),
    "bfloat16": ("train.precision=bfloat16", "train.microbatch=2"),
    "microbatches": ("train.microbatch=2",),
}
SWITCH = 4
LR = {"adamw": 1e-3}


def built(config: RunConfig) -> tuple[PolyViT, Optimiser]:
    """As a worker builds them: the model is divided before the optimiser is made."""
    model = PolyViT(config.model, config.tasks, seed=config.seed)
    model.activation_checkpointing = config.train.activation_checkpointing
    if config.train.sharding == "full":
        shard(model.sharding_units(), config.train.precision == "bfloat16")
    return model, build_optimiser(dict(model.named_parameters()), config.optim)


def trained(config: RunConfig, lr: float, other: RunConfig, rank: int) -> dict:
    """All steps; after SWITCH of them everything moves to a model that is divided as `other` says."""
    model, optimiser = built(config)
    ema, world, steps = Ema(model, 0.5), GlooWorld(), []
    for minibatches in ArrayFeed(config, rank, 2).train(1):
        if minibatches[0].step == SWITCH and other is not config:
            (tensors, state), average = full_state(model, optimiser), ema.state()
            config = other
            model, optimiser = built(config)
            load_parameters(model, tensors)
            load_optimiser(model, optimiser, state)
            ema = Ema(model, 0.5)
            ema.load_state(average)
        result = train_step(model, optimiser, minibatches, lr, config, world)
        ema.update()
        if minibatches[0].step == SWITCH - 1:  # what it gathers of the average must not stay for the next step
            with ema.swapped():
                evaluate(model, Uneven(config, rank, 2).evaluation(), config, world)
        reached = sorted(name for name, p in model.named_parameters() if p.grad is not None)
        steps.append((result.losses, result.grad_norm, result.examples, result.bad, reached))
    whole_blocks: list[int] = []
    with ema.swapped(), watched(model, whole_blocks):
        evaluation = evaluate(model, Uneven(config, rank, 2).evaluation(), config, world)[0]
    held = sum(local(p).numel() for p in model.parameters())
    kept = [
        t.numel() for t in (*full_state(model, optimiser, rank == 0)[0].values(), *ema.state(rank == 0).values())
    ]
    tensors, state = full_state(model, optimiser)
    return {
        "steps": steps, "model": tensors, "state": state, "ema": ema.state(), "held": held, "eval": evaluation,
        "whole_blocks": whole_blocks, "kept": sum(kept),
    }  # fmt: skip


class Uneven(ArrayFeed):
    """Rank 1 has all of `clip`, nothing of `word`, and an evaluation minibatch without a readable example."""

    def evaluation(self) -> Iterator[Minibatch]:
        for whole in ArrayFeed(self.config, 0, 1).evaluation():
            if whole.task == "clip" and self.rank == 1:
                yield dataclasses.replace(whole, inputs={k: v[:0] for k, v in whole.inputs.items()},
                                          labels=whole.labels[:0], keys=())  # fmt: skip
            owner = {"clip": 1, "word": 0}.get(whole.task)
            if owner is None:
                yield next(m for m in super().evaluation() if m.task == whole.task)
            elif owner == self.rank:
                yield whole


@contextmanager
def watched(model: PolyViT, counts: list[int]) -> Iterator[None]:
    """Before each block of a pass, how many blocks of the model are whole on this rank."""
    blocks = [module for module in model.modules() if is_sharded(module) and module is not model]

    def count(*_: object) -> None:
        counts.append(sum(not any(is_split(p) for p in block.parameters()) for block in blocks))

    hooks = [block.register_forward_pre_hook(count) for block in blocks]
    yield
    for hook in hooks:
        hook.remove()


def work(rank: int, folder: str) -> None:
    """One rank: every case whole, divided, and changing over in the middle."""
    meet(rank, 2, folder)
    found = {}
    for name, keys in CASES.items():
        whole, divided = (small_config(f"train.sharding={kind}", *keys) for kind in ("none", "full"))
        runs = {"whole": (whole, whole), "divided": (divided, divided)}
        if name in ("sgd", "adamw"):
            runs |= {"joined": (divided, whole), "parted": (whole, divided)}
        found[name] = {way: trained(a, LR.get(name, 0.05), b, rank) for way, (a, b) in runs.items()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("sharding")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]  # written by this test


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rank", [0, 1])
def test_divided_trains_as_whole(found: list[dict], rank: int, name: str) -> None:
    """Losses, norms, what is reached, parameters, optimiser state, average; also across a change in the middle."""
    runs = found[rank][name]
    expected = runs["whole"]
    rough = {"adamw": 1e-3, "bfloat16": 2e-2, "momentum": 1e-3}.get(name, 1e-5)
    for way in runs.keys() - {"whole"}:
        for mine, theirs in zip(runs[way]["steps"], expected["steps"], strict=True):
            assert mine[0] == pytest.approx(theirs[0], rel=rough)
            assert mine[1] == pytest.approx(theirs[1], rel=10 * rough)
            assert mine[2:] == theirs[2:]
        for kind in ("model", "state", "ema"):
            assert runs[way][kind].keys() == expected[kind].keys()
            for key, tensor in expected[kind].items():
                found_ = runs[way][kind][key]
                assert (found_.shape, found_.dtype) == (tensor.shape, tensor.dtype), key
                if name == "bfloat16":  # norms and positions are float32 in autocast, bfloat16 when divided
                    apart = (found_ - tensor).norm() / tensor.norm().clamp(min=1e-3)
                    assert kind == "state" or float(apart) < 0.1, key
                elif not (name == "adamw" and key.endswith("qkv.bias")):  # the keys' gradient is rounding alone
                    rounding = 2e-2 if tensor.dtype == torch.bfloat16 else rough  # it may fall the other way
                    torch.testing.assert_close(
                        found_, tensor, rtol=rounding, atol=max(2e-6, 0.2 * rounding), msg=key
                    )
        for task, result in expected["eval"].items():
            assert runs[way]["eval"][task]["loss"] == pytest.approx(result["loss"], rel=max(rough, 1e-4))
            assert runs[way]["eval"][task]["examples"] == 10
            assert runs[way]["eval"][task]["top1"] == result["top1"] or name == "bfloat16"


@pytest.mark.slow
def test_each_rank_holds_about_half(found: list[dict]) -> None:
    whole, parts = found[0]["sgd"]["whole"]["held"], [f["sgd"]["divided"]["held"] for f in found]
    assert sum(parts) == whole
    assert max(parts) < 0.55 * whole


@pytest.mark.slow
def test_no_rank_has_the_whole_model_at_once(found: list[dict]) -> None:
    """An evaluation gathers a block at a time; a checkpoint is gathered where it is written alone."""
    for rank, runs in enumerate(found):
        held = runs["sgd"]["divided"]["whole_blocks"]
        assert len(held) > 12
        assert set(held) == {1}  # of eleven
        assert (runs["sgd"]["divided"]["kept"] > 0) is (rank == 0)


@pytest.mark.slow
def test_the_loss_fell(found: list[dict]) -> None:
    """So that equal is not merely still."""
    steps = found[0]["accumulating"]["divided"]["steps"]
    assert sum(steps[-1][0]) < sum(steps[0][0])


def test_reference_clipping_is_refused() -> None:
    from small import document

    changed = document()
    changed["optim"]["clip_order"] = "reference"
    changed["train"] = {"sharding": "full"}
    with pytest.raises(UserError) as caught:
        validate_config(changed)
    assert "train.sharding=full" in str(caught.value)


def test_whole_models_pass_through_the_same_functions() -> None:
    model, optimiser, _ = fresh(small_config())
    tensors, state = full_state(model, optimiser)
    assert list(tensors) == [name for name, _ in model.named_parameters()]
    assert state == {}
    with torch.no_grad():
        model.shared.norm.weight.zero_()
    load_parameters(model, {name: tensor + 1 for name, tensor in tensors.items()})
    assert model.shared.norm.weight.tolist() == [1.0] * 16
