"""The decoder on real files: substitutes by a fixed rule, quarantine, evaluation; the same for any ranks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyvit.config import RunConfig, validate_config
from polyvit.data.index.io import Example, Scan
from polyvit.data.layouts.scanning.context import EMPTY
from polyvit.data.loading.minibatch import Decoder, Minibatch, Quarantined, Request, multi_hot
from polyvit.data.loading.requests import EVAL_BATCH, InlineFeed, Requests, evaluation_requests
from polyvit.schedule.plan import Plan
from polyvit.schedule.schedule import build_schedule

BROKEN = ("e02", "e05", "e06")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures, e00 to e09, three of them broken: noise, empty, missing."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"e{i:02d}.png")
    (folder / "e02.png").write_bytes(b"this is not a picture")
    (folder / "e05.png").write_bytes(b"")
    (folder / "e06.png").unlink()
    return folder


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return validate_config(
        {
            "model": {"width": 16, "num_heads": 2, "image": {"size": 16, "patch_size": 8}},
            "tasks": {"pics": {"modality": "image", "layout": "imagefolder", "num_classes": 4, "steps": 12,
                               "batch": 6, "eval_split": "train"}},
        }
    )  # fmt: skip


EXAMPLES = [Example(f"e{i:02d}", f"e{i:02d}.png", (i % 4,), "train") for i in range(10)]


@pytest.fixture(scope="module")
def decoder(root: Path, config: RunConfig) -> Decoder:
    return Decoder(config.tasks, {"pics": config.model.image}, {"pics": root}, seed=5)


def request(*numbers: int, epochs: tuple[int, ...] | None = None, spares: tuple[int, ...] = ()) -> Request:
    return Request(
        1, "pics", [EXAMPLES[i] for i in numbers], (0,) * len(numbers) if epochs is None else epochs, 0,
        len(numbers), [EXAMPLES[i] for i in spares],
    )  # fmt: skip


def test_shapes_types_and_labels(decoder: Decoder) -> None:
    made = decoder.decode(request(0, 1, 3))
    assert made.inputs["tokens"].shape == (3, 4, 192)
    assert made.inputs["tokens"].dtype == np.uint8
    assert made.labels.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    assert made.labels.dtype == np.uint8
    assert made.keys == ("e00", "e01", "e03")
    assert made.bad == ()
    assert made.undecodable == 0


def test_pixels_are_those_of_the_seed_epoch_and_key(decoder: Decoder) -> None:
    first = decoder.decode(request(0, 1, 3)).inputs["tokens"]
    assert np.array_equal(decoder.decode(request(3, 0)).inputs["tokens"], first[[2, 0]])  # place does not matter
    assert np.array_equal(
        decoder.decode(replace(request(0, 1, 3), step=99)).inputs["tokens"], first
    )  # nor the step
    assert not np.array_equal(decoder.decode(request(0, 1, 3, epochs=(1, 1, 1))).inputs["tokens"], first)
    assert not np.array_equal(replace(decoder, seed=6).decode(request(0, 1, 3)).inputs["tokens"], first)


def test_broken_examples_give_way_to_spares_by_slot(decoder: Decoder) -> None:
    """Slot s tries spares s, s + 1, ... (turned round); each broken one met on the way is named."""
    made = decoder.decode(request(0, 2, 1, 5, spares=(7, 8, 6, 9)))
    # slot 1 (e02): spare 1 = e08. slot 3 (e05): spare 3 = e09.
    assert made.keys == ("e00", "e08", "e01", "e09")
    assert made.labels.argmax(axis=1).tolist() == [0, 0, 1, 1]
    assert [(q.key, q.path) for q in made.bad] == [("e02", "e02.png"), ("e05", "e05.png")]
    assert made.bad[0].reason.startswith("image:")
    assert made.bad[1] == Quarantined("pics", "e05", "e05.png", EMPTY)


def test_a_broken_spare_is_named_and_passed_over(decoder: Decoder) -> None:
    made = decoder.decode(request(0, 1, 2, spares=(7, 8, 6, 9)))
    assert made.keys == ("e00", "e01", "e09")  # slot 2: spare 2 = e06 is missing, then e09
    assert [(q.key, q.reason) for q in made.bad[1:]] == [("e06", "file is missing")]
    assert made.undecodable == 1  # the spare is listed, not counted


def test_a_spare_has_its_own_augmentation(decoder: Decoder) -> None:
    """The same spare in two slots is not the same pixels, nor those of the example itself."""
    made = decoder.decode(request(2, 5, 8, spares=(8,)))
    assert made.keys == ("e08", "e08", "e08")
    assert len({made.inputs["tokens"][i].tobytes() for i in range(3)}) == 3


def test_when_no_spare_can_be_read_the_slot_is_left_out(decoder: Decoder) -> None:
    made = decoder.decode(request(0, 2, 1, spares=(5, 6)))
    assert made.keys == ("e00", "e01")
    assert made.inputs["tokens"].shape == (2, 4, 192)
    assert sorted(q.key for q in made.bad) == ["e02", "e05", "e06"]
    assert made.undecodable == 1
    nothing = decoder.decode(request(2, spares=(5,)))
    assert nothing.inputs["tokens"].shape == (0, 4, 192)
    assert nothing.inputs["tokens"].dtype == np.uint8
    assert nothing.labels.shape == (0, 4)


def test_evaluation_leaves_out_what_is_broken_and_augments_nothing(decoder: Decoder) -> None:
    asked = Request(0, "pics", EXAMPLES, global_batch=10)
    made = decoder.decode(asked)
    assert made.keys == ("e00", "e01", "e03", "e04", "e07", "e08", "e09")
    assert [q.key for q in made.bad] == list(BROKEN)
    assert made.undecodable == 3
    assert np.array_equal(replace(decoder, seed=99).decode(asked).inputs["tokens"], made.inputs["tokens"])


def inline(config: RunConfig, decoder: Decoder, rank: int = 0, world_size: int = 1) -> InlineFeed:
    schedule = build_schedule(config.schedule, config.tasks, config.seed)
    plan = Plan(schedule, config.tasks, {"pics": 10}, config.seed)
    return InlineFeed(Requests.of(config, plan, {"pics": Scan(EXAMPLES, list("abcd"))}, rank, world_size), decoder)


def joined(parts: list[Minibatch]) -> tuple[bytes, bytes, tuple[str, ...], list[Quarantined]]:
    return (
        np.concatenate([part.inputs["tokens"] for part in parts]).tobytes(),
        np.concatenate([part.labels for part in parts]).tobytes(),
        sum((part.keys for part in parts), ()),
        [q for part in parts for q in part.bad],
    )


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_a_step_is_the_same_bytes_for_any_number_of_workers(
    config: RunConfig, decoder: Decoder, world_size: int
) -> None:
    """With a third of the files broken: substitutes and quarantine entries too."""
    alone = [joined(made) for made in inline(config, decoder).train(1)]
    ranks = [inline(config, decoder, rank, world_size).train(1) for rank in range(world_size)]
    together = [joined([part for (part,) in parts]) for parts in zip(*ranks, strict=True)]
    assert together == alone
    assert len(alone) == 12
    assert {q.key for _, _, _, bad in alone for q in bad} == set(BROKEN)
    assert all(len(keys) == 6 for _, _, keys, _ in alone)


def test_the_inline_feed_starts_anywhere(config: RunConfig, decoder: Decoder) -> None:
    feed = inline(config, decoder)
    whole = [joined(made) for made in feed.train(1)]
    assert [joined(made) for made in feed.train(9)] == whole[8:]
    assert list(feed.train(13)) == []


@pytest.mark.parametrize("world_size", [1, 2, 3, 11])
def test_an_evaluation_split_is_shared_out_once(config: RunConfig, decoder: Decoder, world_size: int) -> None:
    keys: list[str] = []
    bad: list[str] = []
    for rank in range(world_size):
        for made in inline(config, decoder, rank, world_size).evaluation():
            keys += made.keys
            bad += [q.key for q in made.bad]
    assert sorted(keys) == [f"e{i:02d}" for i in range(10) if f"e{i:02d}" not in BROKEN]
    assert sorted(bad) == list(BROKEN)


@pytest.mark.parametrize(
    ("world_size", "sizes"),
    [(1, [[64, 64, 22]]), (2, [[64, 22], [64]]), (4, [[38], [38], [38], [36]])],
)
def test_evaluation_batches_are_bounded_and_even(world_size: int, sizes: list[list[int]]) -> None:
    examples = [Example(f"{i:03d}", "p", (0,), "test") for i in range(150)]
    batch = min(EVAL_BATCH, -(-150 // world_size))
    shares = [evaluation_requests("t", examples, batch, rank, world_size) for rank in range(world_size)]
    assert [[len(r.examples) for r in share] for share in shares] == sizes
    assert sorted(e.key for share in shares for r in share for e in r.examples) == [e.key for e in examples]
    assert all(r.epochs == () and r.spares == () for share in shares for r in share)


def test_multi_hot() -> None:
    assert multi_hot([(0, 2), (), (1,)], 3).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert multi_hot([], 3).shape == (0, 3)
