"""`polyvit tokenize`, the layout that reads it, and `pipelines.feed.dataset`: the bits of the originals."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pipelines_kit import pair_document, planned, scanned, signature
from small import write_yaml

from pipelines import tokenize
from pipelines.feed import dataset
from pipelines.feed.worker_feed import make_decoder
from pipelines.index import build_indexes
from polyvit.config import RunConfig, load_config
from polyvit.data.loading.requests import InlineFeed, Requests
from polyvit.errors import UserError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def recipe(pair_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_yaml(tmp_path_factory.mktemp("recipe") / "pair.yaml", pair_document(pair_root))


@pytest.fixture(scope="module")
def written(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("tokens with [brackets]")
    assert run(recipe, folder / "out", "--per-file", "7", "--json", str(folder / "made.json")) == 0
    return folder / "out", json.loads((folder / "made.json").read_text())


def run(recipe: Path, out: Path, *arguments: str) -> int:
    return tokenize.main([str(recipe), "--out", str(out), *arguments])


def on_tokens(
    recipe: Path, document: dict[str, Any], tmp_path: Path, *keys: str, only: Sequence[str] = ()
) -> RunConfig:
    root, *others = document["overrides"]
    overrides = [text for text in others if not only or text.split(".")[1] in only]
    return load_config(str(recipe), [root, *overrides, f"storage={tmp_path}", *keys], only)


def test_evaluation_minibatches_have_the_bits_of_the_originals(
    recipe: Path, written: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    original = load_config(str(recipe), [f"storage={tmp_path / 'a'}"], [])
    tokens = on_tokens(recipe, written[1], tmp_path / "b")
    made = []
    for config in (original, tokens):
        indexes = scanned(config)
        requests = Requests.of(config, planned(config, indexes), indexes.scans, 0, 1)
        decoder = make_decoder(config, indexes)
        made.append([signature([decoder.decode(request)]) for request in requests.evaluation()])
    assert made[0] == made[1]


def test_training_takes_the_same_examples_and_decodes_nothing(
    recipe: Path, written: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, keys = {}, ["schedule.steps=6"]
    for name, config in (
        ("original", load_config(str(recipe), [f"storage={tmp_path / 'a'}", *keys], ["sounds"])),
        ("tokens", on_tokens(recipe, written[1], tmp_path / "b", *keys, only=["sounds"])),
    ):
        indexes = scanned(config)
        if name == "tokens":
            monkeypatch.setattr("polyvit.data.loading.example.codec_of", None)
        requests = Requests.of(config, planned(config, indexes), indexes.scans, 0, 1)
        feed = InlineFeed(requests, make_decoder(config, indexes))
        taken[name] = [minibatch.keys for step in feed.train(1) for minibatch in step]
    assert len(taken["tokens"]) == 6
    assert taken["tokens"] == taken["original"]


def test_a_second_run_writes_what_is_missing(
    recipe: Path, written: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, first = written
    file = sorted((out / "shapes").glob("train-*.parquet"))[0]
    before = file.read_bytes()
    file.unlink()
    assert run(recipe, out, "--per-file", "7", "--json", str(tmp_path / "again.json")) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert [entry["written"] for entry in again["tasks"].values()] == [1, 0]
    assert again["tasks"]["shapes"]["files"] == first["tasks"]["shapes"]["files"]
    assert file.read_bytes() == before


def test_what_cannot_be_decoded_is_named_and_left_out(written: tuple[Path, dict[str, Any]]) -> None:
    out, document = written
    (entry,) = json.loads((out / "shapes" / "quarantine.json").read_text())
    assert entry["key"] == "train/circle/circle_12.png"
    assert "cannot identify image" in entry["reason"]
    assert document["tasks"]["shapes"]["examples"] == 35
    keys = [key for file in (out / "shapes").glob("*.parquet") for key in pq.read_table(file)["key"].to_pylist()]
    assert len(keys) == 35
    assert entry["key"] not in keys


def test_tokens_of_another_size_are_refused_before_anything_is_started(
    recipe: Path, written: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="do not fit") as caught:
        build_indexes(on_tokens(recipe, written[1], tmp_path, "model.image.size=32"), tmp_path)
    assert "polyvit tokenize" in str(caught.value.problems)


@pytest.mark.parametrize(("arguments", "words"), [(["--per-file", "0"], "--per-file 0"), ([], "decoded already")])
def test_mistakes(
    recipe: Path, written: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    arguments: list[str], words: str,
) -> None:  # fmt: skip
    overrides = [] if arguments else written[1]["overrides"]
    assert run(recipe, tmp_path, *arguments, *overrides) == 2
    assert words in capsys.readouterr().err


def test_the_dataset_of_a_task_has_named_columns(recipe: Path, tmp_path: Path) -> None:
    config = load_config(str(recipe), [f"storage={tmp_path}"], [])
    indexes = scanned(config)
    made = dataset(config, "shapes", "validation", indexes)
    assert set(made.columns() or []) == {"key", "labels", "tokens"}
    rows = made.take_all()
    examples = indexes.scans["shapes"].split("validation")
    assert [row["key"] for row in rows] == [example.key for example in examples]
    decoder = make_decoder(config, indexes)
    for row, example in zip(rows, examples, strict=True):
        np.testing.assert_array_equal(row["tokens"], decoder.arrays("shapes", example, None, "")["tokens"])
        assert tuple(np.flatnonzero(row["labels"])) == example.labels
    tensors = made.select_columns(["tokens", "labels"]).iter_torch_batches(batch_size=4)
    batch = next(iter(tensors))["tokens"]
    assert batch.shape == (4, *rows[0]["tokens"].shape)
    assert "shapes: decode" in made.stats()


@pytest.mark.parametrize(("task", "split", "words"), [("x", "train", "shapes, sounds"), ("shapes", "dev", "test")])
def test_a_dataset_that_there_is_not(recipe: Path, tmp_path: Path, task: str, split: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        dataset(load_config(str(recipe), [f"storage={tmp_path}"], []), task, split)
