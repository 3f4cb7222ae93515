"""Interference where the answer is known: tasks made to agree, to conflict and to be independent."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import avbert_small
import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks_kit import GlooWorld, meet, trained
from small import ArrayFeed, Heard, fresh, small_config

from polyvit.checkpoint.state import TrainState, TrainUnit
from polyvit.config import RunConfig, validate_config
from polyvit.data.loading.minibatch import Minibatch
from polyvit.distributed import Communicator, SingleProcess
from polyvit.model.build import build_model
from polyvit.model.polyvit import PolyViT
from polyvit.training.interference import (
    Gradients,
    compare_gradients,
    group_of,
    measure_gradients,
    objectives_of,
)
from polyvit.training.loop import train
from polyvit.training.step import run_pass

pytestmark = pytest.mark.usefixtures("one_thread")

TASK = {"modality": "image", "layout": "imagefolder", "num_classes": 2, "loss": "softmax", "steps": 4, "batch": 16}


def twin_config() -> RunConfig:
    """Four tasks of two classes on images."""
    document = small_config().model_dump(mode="json", exclude={"tasks"})
    return validate_config({**document, "tasks": dict.fromkeys(("first", "same", "swapped", "other"), TASK)})


def pictures(config: RunConfig) -> Iterator[Minibatch]:
    """`same` has the images and labels of `first`, `swapped` its images with the two labels permuted, `other`
    images and labels of its own. A label is whether an image is bright on its left."""
    for task, seed in (("first", 0), ("same", 0), ("swapped", 0), ("other", 1)):
        rng = np.random.Generator(np.random.Philox(seed))
        for n in range(8):
            tokens = rng.integers(0, 256, (16, 4, 192)).astype(np.uint8)
            labels = rng.integers(0, 2, 16)
            if task == "other":
                labels = rng.integers(0, 2, 16)
            else:
                tokens[labels == 1, 0] = 255
            hot = np.eye(2, dtype=np.uint8)[1 - labels if task == "swapped" else labels]
            keys = tuple(str(i) for i in range(16))
            yield Minibatch(n + 1, task, {"tokens": tokens}, hot, keys, 0, 16)


@pytest.fixture(scope="module")
def document() -> dict:
    config = twin_config()
    model = PolyViT(config.model, config.tasks, seed=0)
    direction = torch.randn(16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, head in model.heads.items():  # one reading for the twins, another for `other`
            own = direction if name != "other" else torch.randn(16, generator=torch.Generator().manual_seed(5))
            head.weight.copy_(0.005 * torch.stack([-own, own]))
    before = {name: p.clone() for name, p in model.named_parameters()}
    gradients = measure_gradients(model, pictures(config), config, SingleProcess())
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    return compare_gradients(gradients, model.modality, config.model.l_adapt)


def pair(document: dict, a: str, b: str, group: str = "shared") -> dict:
    (row,) = [row for row in document["pairs"] if row["group"] == group and row["tasks"] == [a, b]]
    return row


@pytest.mark.parametrize("group", ["shared", "shared.blocks.0", "shared.norm", "adaptors.image.0"])
def test_twins_agree(document: dict, group: str) -> None:
    row = pair(document, "first", "same", group)
    assert row["cosine"] == pytest.approx(1, abs=1e-6)
    assert row["conflict"] == 0
    assert row["negative"] < 0.05


@pytest.mark.parametrize("group", ["shared", "shared.blocks.0", "shared.norm"])
def test_permuted_labels_conflict(document: dict, group: str) -> None:
    row = pair(document, "first", "swapped", group)
    assert row["cosine"] < -0.8
    assert row["interval"][1] < 0
    assert row["negative"] > 0.95
    assert row["conflict"] > 0.8


def test_unlike_tasks_are_near_nothing(document: dict) -> None:
    row = pair(document, "first", "other")
    assert abs(row["cosine"]) < 0.5
    assert 0.3 < row["conflict"] < 0.7
    assert row["interval"][0] < row["cosine"] < row["interval"][1]


def test_the_pairs_that_pull_apart_are_proposed(document: dict) -> None:
    apart = [row["tasks"] for row in document["proposal"]["apart"]]
    assert ["first", "swapped"] in apart
    assert ["same", "swapped"] in apart
    assert ["first", "same"] not in apart
    assert document["proposal"]["l_adapt"] is None  # all tasks are images
    assert "different modalities" in document["proposal"]["why"]


def test_norms_and_signal(document: dict) -> None:
    tasks = document["tasks"]
    assert tasks["first"]["grad_norm"] == pytest.approx(tasks["same"]["grad_norm"])
    assert tasks["first"]["signal"] > 0.5  # a rule that every minibatch shows
    assert tasks["other"]["signal"] < tasks["first"]["signal"]  # labels without a rule
    assert tasks["first"]["minibatches"] == 8


def made_up(cosines: list[float], noise: float = 0.1) -> Gradients:
    """Two tasks of two modalities whose true gradients have these cosines in the shared blocks, with noise."""
    rng, gradients = np.random.Generator(np.random.Philox(2)), Gradients()
    for i, cosine in enumerate(cosines):
        own, across = np.linalg.qr(rng.normal(size=(400, 2)))[0].T
        truth = {"see": own, "hear": cosine * own + np.sqrt(1 - cosine**2) * across}
        group = f"shared.blocks.{i}"
        gradients.sizes[group] = 400
        gradients.vectors[group] = {
            task: [(g + noise * rng.normal(size=400) / 20).astype(np.float32) for _ in range(8)]
            for task, g in truth.items()
        }
    return gradients


@pytest.mark.parametrize(
    ("cosines", "expected"), [([-0.9, -0.5, 0.4], 4), ([0.5, -0.5, 0.5], 2), ([-0.9, -0.9, -0.9], 5)]
)
def test_l_adapt_is_todays_and_the_first_blocks_that_conflict(cosines: list[float], expected: int) -> None:
    document = compare_gradients(made_up(cosines), {"see": "image", "hear": "audio"}, 2)
    assert document["proposal"]["l_adapt"] == expected
    assert document["proposal"]["sureness"] > 0.99
    for i, cosine in enumerate(cosines):
        row = pair(document, "see", "hear", f"shared.blocks.{i}")
        assert row["cosine"] == pytest.approx(cosine, abs=0.05)


def test_nothing_is_proposed_of_independent_gradients() -> None:
    document = compare_gradients(made_up([0.0, 0.0, 0.0], noise=3), {"see": "image", "hear": "audio"}, 2)
    assert pair(document, "see", "hear")["interval"][0] < 0 < pair(document, "see", "hear")["interval"][1]
    assert document["proposal"]["apart"] == []
    assert document["tasks"]["see"]["signal"] < 0.6


def test_intervals_hold_the_truth() -> None:
    """Noise of the size of the gradient: 90 % intervals hold a cosine of 0 about as often as they say."""
    held = 0
    for seed in range(40):
        rng, gradients = np.random.Generator(np.random.Philox(seed)), Gradients()
        gradients.sizes["shared.norm"] = 50
        gradients.vectors["shared.norm"] = {
            task: [np.eye(50)[i] + rng.normal(size=50) / 7 for _ in range(12)] for i, task in enumerate("ab")
        }
        low, high = pair(compare_gradients(gradients, {"a": "image", "b": "image"}, 0), "a", "b")["interval"]
        held += low <= 0 <= high
    assert 30 <= held <= 40


def test_a_gradient_of_nothing_has_no_cosine() -> None:
    gradients = Gradients({"shared.norm": {"a": [np.zeros(3)], "b": [np.ones(3)]}}, {"shared.norm": 3})
    row = pair(compare_gradients(gradients, {"a": "image", "b": "image"}, 0), "a", "b", "shared.norm")
    assert (row["cosine"], row["conflict"]) == (None, None)


def test_the_final_norm_does_not_hide_what_blocks_say() -> None:
    """Its gradient is a hundred times as large and agrees; the blocks do not."""
    gradients = made_up([-0.8, -0.8])
    gradients.sizes["shared.norm"] = 400
    gradients.vectors["shared.norm"] = {
        task: [100 * (1 + 0 * vector) for vector in vectors]
        for task, vectors in gradients.vectors["shared.blocks.0"].items()
    }
    document = compare_gradients(gradients, {"see": "image", "hear": "audio"}, 0)
    assert pair(document, "see", "hear", "shared.norm")["cosine"] == pytest.approx(1)
    assert pair(document, "see", "hear")["cosine"] == pytest.approx(-0.8, abs=0.05)
    assert [row["tasks"] for row in document["proposal"]["apart"]] == [["see", "hear"]]


def test_groups() -> None:
    assert group_of("shared.blocks.3.attn.qkv.weight") == "shared.blocks.3"
    assert group_of("shared.norm.weight") == "shared.norm"
    assert group_of("adaptors.image.0.mlp.fc1.bias") == "adaptors.image.0"
    assert group_of("tokenizers.video.patch_embed.weight") == "tokenizers.video"


def test_a_large_group_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of a fifth of the coordinates comes near what all of them say."""
    config = twin_config()
    rows = []
    for most in (2**18, 600):
        monkeypatch.setattr("polyvit.training.interference.COORDINATES", most)
        model = PolyViT(config.model, config.tasks, seed=0)
        with torch.no_grad():
            for head in model.heads.values():
                head.weight.normal_(generator=torch.Generator().manual_seed(3))
        document = compare_gradients(
            measure_gradients(model, pictures(config), config, SingleProcess()), model.modality, 1
        )
        rows.append((pair(document, "first", "swapped", "shared.blocks.0"), document))
    assert rows[1][1]["groups"]["shared.blocks.0"]["measured"] == 600
    assert rows[0][1]["groups"]["shared.blocks.0"]["measured"] > 2000
    assert rows[1][0]["cosine"] == pytest.approx(rows[0][0]["cosine"], abs=0.1)
    norms = [document["groups"]["shared.blocks.0"]["grad_norm"]["first"] for _, document in rows]
    assert norms[1] == pytest.approx(norms[0], rel=0.15)


def test_measuring_changes_nothing_of_a_run_and_is_in_its_curves() -> None:
    config, ends = small_config("data.max_bad_fraction=1"), []
    for every in (None, 6):
        config = config.model_copy(update={"train": config.train.model_copy(update={"interference_every": every})})
        model, optimiser, schedule = fresh(config)
        events = Heard()
        feed = ArrayFeed(config, schedule=schedule)
        train(TrainUnit(model, optimiser), schedule, feed, config, SingleProcess(), TrainState(), events)
        ends.append({name: p.detach() for name, p in model.named_parameters()})
    assert all(torch.equal(p, ends[1][name]) for name, p in ends[0].items())
    measured = {step: values for step, values in events.points if "interference/sound/word/cosine" in values}
    assert sorted(measured) == [6, 12, 18]
    assert all(-1 <= values["interference/picture/clip/cosine"] <= 1 for values in measured.values())
    assert all(values["interference/sound/grad_norm"] > 0 for values in measured.values())


def test_parts_of_a_minibatch_sum_to_its_gradient() -> None:
    """Microbatches, as ranks' parts, add up."""
    config = twin_config()
    model = PolyViT(config.model, config.tasks, seed=0)
    (whole, *_) = list(pictures(config))
    with torch.no_grad():
        model.heads["first"].weight.normal_(generator=torch.Generator().manual_seed(3))
    once = measure_gradients(model, [whole], config, SingleProcess())
    cut = measure_gradients(model, [replace(whole)], config, SingleProcess(), {"first": 3})
    for group, of_task in once.vectors.items():
        np.testing.assert_allclose(cut.vectors[group]["first"][0], of_task["first"][0], rtol=1e-4, atol=1e-4)


def contrastive_pair() -> RunConfig:
    """A contrastive task beside one with classes; sums over ranks of a batch of four."""
    changed = copy.deepcopy(avbert_small.TINY)
    changed["model"]["dropout"] = 0.0
    changed["tasks"]["one"] |= {"loss": "contrastive", "metric": "retrieval"}
    return validate_config(changed)


def measured_sequences(config: RunConfig, world: Communicator, rows: slice) -> Gradients:
    """Of two minibatches of each task; this rank's rows of them."""
    model = build_model(config, seed=config.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # residual branches and heads that count
            if name.endswith("norm.weight") or name.startswith("heads."):
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    minibatches = [avbert_small.minibatch(config, task, step, rows) for task in config.tasks for step in (1, 2)]
    gradients = measure_gradients(model, minibatches, config, world)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    return gradients


def test_a_contrastive_task_is_its_two_objectives() -> None:
    """Masked and pair prediction are compared with each other and with a task of classes; together they are the
    task's gradient."""
    config = contrastive_pair()
    whole = config.model_copy(update={"tasks": {"one": config.tasks["one"]}})
    gradients = measured_sequences(config, SingleProcess(), slice(None))
    document = compare_gradients(gradients, {"one": "audiovisual", "two": "audiovisual"}, None)
    assert list(document["tasks"]) == ["one.masked", "one.pairs", "two"]
    overall = {tuple(row["tasks"]): row for row in document["pairs"] if row["group"] == "shared"}
    assert set(overall) == {("one.masked", "one.pairs"), ("one.masked", "two"), ("one.pairs", "two")}
    assert all(-1 <= row["cosine"] <= 1 for row in overall.values())
    one_name = {
        "masked": objectives_of(whole, "one")["one.masked"],
        "pairs": objectives_of(whole, "one")["one.pairs"],
    }
    assert (
        one_name["masked"].tasks["one"].contrastive.pairs == 0 == one_name["pairs"].tasks["one"].contrastive.audio
    )
    assert objectives_of(one_name["pairs"], "one") == {"one": one_name["pairs"]}

    model = build_model(config, seed=config.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight") or name.startswith("heads."):
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    model.eval()
    run_pass(model, avbert_small.minibatch(config, "one", 1), config, torch.device("cpu"), SingleProcess())
    for group, of_task in gradients.vectors.items():
        if "one.masked" in of_task:
            both = of_task["one.masked"][0] + of_task["one.pairs"][0]
            pieces = [
                torch.zeros_like(p) if p.grad is None else p.grad
                for name, p in model.touched("one").items() if group_of(name) == group
            ]  # fmt: skip
            together = torch.cat([piece.reshape(-1) for piece in pieces]).numpy()
            np.testing.assert_allclose(both, together, rtol=1e-3, atol=1e-4 * max(1, np.abs(together).max()))


def one_rank(rank: int, folder: str) -> None:
    """Half of every minibatch, and a run that measures itself."""
    meet(rank, 2, folder)
    gradients = measured_sequences(contrastive_pair(), GlooWorld(), slice(0, 2) if rank == 0 else slice(2, 4))
    torch.save((gradients.vectors, trained(MEASURING, GlooWorld())[2].points), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


MEASURING = small_config("data.max_bad_fraction=1", "train.interference_every=6", "optim.lr=0.05")


@pytest.mark.slow
def test_two_ranks_measure_what_one_process_does(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_rank, (str(tmp_path),), nprocs=2)
    gradients = measured_sequences(contrastive_pair(), SingleProcess(), slice(None))
    expected = {
        step: values for step, values in trained(MEASURING, SingleProcess())[2].points
        if any(key.startswith("interference/") for key in values)
    }  # fmt: skip
    assert sorted(expected) == [6, 12, 18]
    for rank in (0, 1):
        vectors, points = torch.load(tmp_path / f"{rank}.pt", weights_only=False)  # written by this test
        for group, of_task in gradients.vectors.items():
            assert vectors[group].keys() == of_task.keys()
            for name, arrays in of_task.items():
                largest = max(np.abs(array).max() for array in arrays)
                for mine, array in zip(vectors[group][name], arrays, strict=True):
                    np.testing.assert_allclose(mine, array, rtol=1e-3, atol=1e-5 + 1e-4 * largest)
        measured = {step: values for step, values in points if step in expected}
        for step, values in expected.items():
            keys = [key for key in values if key.startswith("interference/")]
            assert len(keys) == 4 + 2 * 6
            assert [measured[step][key] for key in keys] == pytest.approx([values[key] for key in keys], abs=2e-3)
