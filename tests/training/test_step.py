"""One step: ranks in real processes equal one rank; who gets gradients; clipping; by-hand gradients."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks_kit import BAD, SingleProcess, result_of, run_ranks, trained
from small import ArrayFeed, fresh, small_config
from torch.nn import functional as F

from polyvit.config import RunConfig
from polyvit.data.loading.minibatch import Minibatch, Quarantined
from polyvit.distributed.communicator import Done
from polyvit.model.tokenizer import normalise
from polyvit.training.step import local_loss, mixup_weight, train_step

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIGS = {
    "weighted": small_config("train.eval_every=7", "data.max_bad_fraction=1"),
    "accumulating": small_config(
        "schedule.kind=accumulating", "schedule.steps=40", "schedule.accumulating_lr_coef=0.5",
        "data.max_bad_fraction=1",
    ),
    "adaptive": small_config(
        "schedule.kind=adaptive", "schedule.adaptive.exponent=20", "train.eval_every=3", "data.max_bad_fraction=1"
    ),
    # three ranks for a batch of two: one part is always empty
    "empty": small_config(
        "tasks.picture.batch=2", "tasks.sound.batch=2", "tasks.clip.batch=2", "tasks.word.batch=2",
        "data.max_bad_fraction=1",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """{world size: what its ranks kept}."""
    folders = {}
    for world_size in (2, 3):
        folders[world_size] = tmp_path_factory.mktemp("ranks") / str(world_size)
        run_ranks(world_size, folders[world_size], CONFIGS)
    return folders


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_train_as_one(worlds: dict[int, Path], world_size: int, name: str) -> None:
    """With mixup, drop path, undecodable examples, and parts of uneven size."""
    alone, state, events = trained(CONFIGS[name], SingleProcess())
    start = dict(fresh(CONFIGS[name])[0].named_parameters())
    for rank in range(world_size):
        parameters, kept = result_of(worlds[world_size], name, rank)
        for key, value in alone.items():
            # float32 sums in another order, over all steps; parameters are 0.1 to 1 and move by about as much.
            torch.testing.assert_close(parameters[key], value, rtol=0, atol=2e-5, msg=key)
        other = kept["state"]
        assert other.global_step == state.global_step
        assert other.decisions == state.decisions
        assert (other.read, other.bad, other.quarantine) == (state.read, state.bad, state.quarantine)
        assert kept["losses"] == pytest.approx([s["loss"] for s in events.snapshots], rel=1e-4)
        assert [e["step"] for e in other.evaluations] == [e["step"] for e in state.evaluations]
        for mine, theirs in zip(other.evaluations, state.evaluations, strict=True):
            for task, result in theirs["tasks"].items():
                assert mine["tasks"][task]["examples"] == result["examples"] == 10
                assert mine["tasks"][task]["loss"] == pytest.approx(result["loss"], rel=1e-4)
    moved = max((alone[key] - start[key]).abs().max().item() for key in alone)
    assert moved > 0.1  # 5000 times the tolerance
    assert len(state.quarantine) > 0


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_end_with_the_same_bits(worlds: dict[int, Path], world_size: int) -> None:
    first, _ = result_of(worlds[world_size], "weighted", 0)
    for rank in range(1, world_size):
        other, _ = result_of(worlds[world_size], "weighted", rank)
        assert all(torch.equal(first[key], other[key]) for key in first)


def minibatches(config: RunConfig, step: int) -> list[Minibatch]:
    feed = ArrayFeed(config, bad=BAD)
    return [feed.minibatch(batch) for batch in feed.plan.at(step)]


def step_of(config: RunConfig, task: str) -> int:
    return int(ArrayFeed(config).plan.schedule.steps_of(task)[0])


OWN = {
    "picture": ("tokenizers.image", "adaptors.image", "heads.picture"),
    "clip": ("tokenizers.video", "adaptors.video", "heads.clip"),
    "sound": ("tokenizers.audio", "adaptors.audio", "heads.sound"),
    "word": ("tokenizers.audio", "adaptors.audio", "heads.word"),
}


@pytest.mark.parametrize("task", OWN)
def test_only_what_the_task_reaches_moves(task: str) -> None:
    config = small_config()
    model, optimiser, _ = fresh(config)
    with torch.no_grad():  # heads of video and audio start at zero, and no gradient passes a zero head
        for head in model.heads.values():
            head.weight.normal_(generator=torch.Generator().manual_seed(0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_step(model, optimiser, minibatches(config, step_of(config, task)), 0.1, config, SingleProcess())
    for name, p in model.named_parameters():
        if name.startswith(("shared.", *(f"{prefix}." for prefix in OWN[task]))):
            assert p.grad is not None, name
            assert not torch.equal(p, before[name]), name
        else:
            assert p.grad is None, name
            assert torch.equal(p, before[name]), name
    assert {name.removeprefix("momentum.") for name in optimiser.state()} == set(model.touched(task))


def test_an_accumulating_step_moves_everything_by_the_sum_of_the_gradients() -> None:
    config = small_config("schedule.kind=accumulating", "optim.clip_norm=null")
    model, optimiser, _ = fresh(config)
    whole = minibatches(config, 1)
    assert [m.task for m in whole] == ["picture", "clip", "sound", "word"]
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    losses = []
    for minibatch in whole:
        model.zero_grad(set_to_none=True)
        loss = local_loss(model, minibatch, config, torch.device("cpu"))
        loss.backward()
        losses.append(loss.item())
        for name, p in model.named_parameters():
            if p.grad is not None:
                total[name] += p.grad
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = train_step(model, optimiser, whole, 0.1, config, SingleProcess())
    assert result.losses == pytest.approx(losses)
    whole_gradient = torch.cat([g.flatten() for g in total.values()])
    assert result.grad_norm == pytest.approx(whole_gradient.norm().item(), rel=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - 0.1 * total[name], rtol=0, atol=1e-6)


def test_the_local_loss_by_hand() -> None:
    """No mixup, no drop path: torch's cross-entropy over the batch."""
    config = small_config()
    model, _, _ = fresh(config)
    (minibatch,) = minibatches(config, step_of(config, "clip"))
    logits = model({"tokens": normalise(torch.from_numpy(minibatch.inputs["tokens"]))}, "clip")
    targets = torch.from_numpy(minibatch.labels.argmax(axis=1))
    expected = F.cross_entropy(logits, targets, label_smoothing=0.1)
    torch.testing.assert_close(local_loss(model, minibatch, config, torch.device("cpu")), expected)


def test_mixup_mixes_tokens_and_labels_of_neighbours() -> None:
    config = small_config("tasks.sound.drop_path=0")
    model, _, _ = fresh(config)
    with torch.no_grad():
        model.heads["sound"].weight.normal_(generator=torch.Generator().manual_seed(0))
    (minibatch,) = minibatches(config, step_of(config, "sound"))
    weights = {step: mixup_weight(0.3, config.seed, step, "sound") for step in range(1, 50)}
    # Far from 0, from 1, and from the symmetric 0.5.
    step, weight = min(weights.items(), key=lambda item: abs(item[1] - 0.7))
    minibatch = replace(minibatch, step=step)
    tokens, labels = (
        torch.from_numpy(minibatch.inputs["tokens"]).float(),
        torch.from_numpy(minibatch.labels).float(),
    )
    partner = [1, 0, 3, 2, 5, 4, 7, 6, 8]
    logits = model({"tokens": weight * tokens + (1 - weight) * tokens[partner]}, "sound")
    mixed = weight * labels + (1 - weight) * labels[partner]
    expected = F.binary_cross_entropy_with_logits(logits, mixed, reduction="sum") / 9
    found = local_loss(model, minibatch, config, torch.device("cpu"))
    torch.testing.assert_close(found, expected)
    plain = F.binary_cross_entropy_with_logits(model({"tokens": tokens}, "sound"), labels, reduction="sum") / 9
    assert abs(found.item() - plain.item()) > 1e-3


def test_mixup_weights_are_beta_and_fixed() -> None:
    weights = np.array([mixup_weight(0.3, 0, step, "sound") for step in range(4000)])
    assert weights.mean() == pytest.approx(0.5, abs=0.03)
    assert weights.var() == pytest.approx(0.25 / 1.6, rel=0.06)  # Beta(a, a): 1 / (4 (2a + 1))
    assert mixup_weight(0.3, 0, 5, "sound") == weights[5]
    assert len({weights[5], mixup_weight(0.3, 1, 5, "sound"), mixup_weight(0.3, 0, 5, "word")}) == 3


def split(minibatch: Minibatch, at: int) -> list[Minibatch]:
    """Two ranks' parts."""
    slot = minibatch.first_slot + at
    return [
        replace(minibatch, inputs={"tokens": minibatch.inputs["tokens"][:at]}, labels=minibatch.labels[:at]),
        replace(
            minibatch,
            inputs={"tokens": minibatch.inputs["tokens"][at:]},
            labels=minibatch.labels[at:],
            first_slot=slot,
        ),
    ]


@pytest.mark.parametrize("at", [0, 2, 6, 9])
def test_parts_of_the_local_loss_sum_to_the_whole(at: int) -> None:
    """Mixup pairs and drop path masks fall the same wherever the batch is cut."""
    config = small_config()
    model, _, _ = fresh(config)
    with torch.no_grad():
        model.heads["sound"].weight.normal_(generator=torch.Generator().manual_seed(0))
    (minibatch,) = minibatches(config, step_of(config, "sound"))
    whole = local_loss(model, minibatch, config, torch.device("cpu"))
    parts = [local_loss(model, part, config, torch.device("cpu")) for part in split(minibatch, at)]
    torch.testing.assert_close(sum(parts, torch.zeros(())), whole)


def test_drop_path_changes_the_loss_and_differs_by_step() -> None:
    model, _, _ = fresh(small_config())
    losses = []
    for rate in (0.0, 0.9):
        config = small_config(f"tasks.picture.drop_path={rate}")
        (minibatch,) = minibatches(config, step_of(config, "picture"))
        losses += [
            local_loss(model, replace(minibatch, step=step), config, torch.device("cpu")).item() for step in (1, 2)
        ]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


class Twin:
    """A world of two whose other rank gives the gradients it was handed."""

    rank, size = 0, 2

    def __init__(self, other: torch.Tensor | None = None) -> None:
        self.other, self.seen = other, torch.empty(0)

    def sum_(self, flat: torch.Tensor) -> None:
        self.seen = flat.clone()
        if self.other is not None:
            flat += self.other

    def sum_async(self, flat: torch.Tensor) -> Done:
        self.sum_(flat)
        return Done()

    def gather(self, value: object) -> list:
        return [value, value]


def sent(config: RunConfig, part: Sequence[Minibatch]) -> torch.Tensor:
    """What a rank sends to the others: gradients, then losses, counts of bad examples, examples, flag."""
    model, optimiser, _ = fresh(config)
    with torch.no_grad():
        model.heads["clip"].weight.normal_(generator=torch.Generator().manual_seed(0))
    world = Twin()
    train_step(model, optimiser, part, 0.1, config, world)
    return world.seen


@pytest.mark.parametrize("order", ["global", "reference"])
def test_clip_order(order: str) -> None:
    """`reference`: each worker's mean gradient is clipped, then weighted by its share of the batch."""
    config = small_config("optim.clip_norm=0.01", f"optim.clip_order={order}")
    (minibatch,) = minibatches(config, step_of(config, "clip"))
    for part, share in zip(split(minibatch, 1), (0.25, 0.75), strict=True):
        norm = sent(config, [part])[:-4].norm().item()
        if order == "reference":
            assert norm == pytest.approx(0.01 * share, rel=1e-4)
        else:
            assert norm > 0.1  # untouched until all are summed


def test_clip_order_reference_leaves_images_to_the_end() -> None:
    config = small_config("optim.clip_norm=0.01", "optim.clip_order=reference")
    part = split(minibatches(config, step_of(config, "picture"))[0], 3)[0]
    assert sent(config, [part])[:-4].norm().item() > 0.1


def test_a_rank_without_examples_sends_zeros_of_the_same_length() -> None:
    config = small_config()
    for task in OWN:
        (minibatch,) = minibatches(config, step_of(config, task))
        empty, full = split(replace(minibatch, undecodable=0), 0)
        sent_empty = sent(config, [empty])
        assert sent_empty.shape == sent(config, [full]).shape
        assert not sent_empty.any()


def test_bad_examples_are_counted_over_ranks() -> None:
    config = small_config()
    model, optimiser, _ = fresh(config)
    whole = minibatches(config, step_of(config, "picture"))
    entry = Quarantined("picture", "k", "p", "r")
    whole = [replace(whole[0], bad=(entry,) * 6, undecodable=2)]  # four of them spares
    length = sum(p.numel() for p in model.touched("picture").values())
    other = torch.zeros(length + 4)
    other[-4:] = torch.tensor([0.5, 3.0, 2.0, 1.0])
    loss = local_loss(model, whole[0], config, torch.device("cpu")).item()
    result = train_step(model, optimiser, whole, 0.1, config, Twin(other), flag=0.5)
    assert result.bad == (5,)
    assert (result.flag, result.examples) == (1.5, whole[0].rows + 2)
    assert result.losses == (pytest.approx(loss + 0.5),)


def test_bfloat16_is_autocast_only() -> None:
    config = small_config("train.precision=bfloat16")
    model, optimiser, _ = fresh(config)
    whole = minibatches(config, step_of(config, "clip"))
    full = local_loss(model, whole[0], small_config(), torch.device("cpu")).item()
    result = train_step(model, optimiser, whole, 0.1, config, SingleProcess())
    assert result.losses[0] == pytest.approx(full, rel=0.02)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {t.dtype for t in optimiser.state().values()} == {torch.float32}
