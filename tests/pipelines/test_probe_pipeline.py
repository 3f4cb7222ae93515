"""`polyvit probe` on a random tiny model: features once, cached, damaged, and the mistakes of its user."""

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from checkpoint_kit import save_checkpoint
from pipelines_kit import pair_document, scanned
from small import fresh, write_yaml

from pipelines import cli, probe
from pipelines.batch.extract_features import FeatureSplit, encode_requests, minibatch_features
from pipelines.feed.worker_feed import make_decoder
from polyvit.checkpoint.state import TrainState, TrainUnit
from polyvit.config import RunConfig, load_config
from polyvit.data.index.io import Example
from polyvit.data.loading.minibatch import Minibatch, Quarantined, multi_hot
from polyvit.data.loading.requests import evaluation_requests
from polyvit.errors import UserError
from polyvit.evaluation.features import Features, read_features
from polyvit.model.polyvit import PolyViT
from polyvit.model.tokenizer import normalise

ray = pytest.mark.ray
with_ray = pytest.mark.usefixtures("ray_cluster")


@dataclass(frozen=True)
class Trained:
    """A run with one checkpoint, the YAML of tasks to probe, and the model."""

    run: Path
    recipe: Path
    model: PolyViT
    config: RunConfig

    def probe(self, folder: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
        """Exit status, JSON and terminal output."""
        as_data = folder / "out.json"
        with contextlib.redirect_stdout(io.StringIO()) as out:
            status = cli.main(["probe", str(self.run), str(self.recipe), *arguments, "--json", str(as_data)])
        return status, json.loads(as_data.read_text()), out.getvalue()

    def files(self) -> Mapping[str, tuple[int, bytes]]:
        """Name: time of writing and content of every cached file."""
        folder = self.run / "features"
        return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def trained(pair_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("probe")
    document = pair_document(pair_root)
    config = load_config(str(write_yaml(folder / "trained.yaml", document)))
    model, optimiser, _ = fresh(config)
    run = folder / "run"
    save_checkpoint(run / "step_00000001", TrainUnit(model, optimiser), TrainState(1), config, {})
    # Inputs and width that the model does not have: its own must be taken.
    del document["model"]
    return Trained(run, write_yaml(folder / "tasks.yaml", document), model, config)


@pytest.fixture(scope="module")
def first(trained: Trained, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[dict, str]:
    """JSON and output of the first probe, which extracts."""
    status, document, out = trained.probe(tmp_path_factory.mktemp("first"))
    assert status == 0
    return document, out


@ray
def test_the_document_and_the_table(first: tuple[dict, str], trained: Trained, pair_root: Path) -> None:
    document, out = first
    assert document["checkpoint"] == str(trained.run / "step_00000001")
    assert document["cache"] == str(trained.run / "features")
    assert list(document["tasks"]) == ["shapes", "sounds"]
    for name, row in document["tasks"].items():
        assert (row["metric"], row["chance"]) == ("top1", pytest.approx(1 / 3))
        assert row["value"] == row["top1"]
        assert 0 <= row["value"] <= 1
        assert row["tried"][f"{row['lr']:g}"] == max(row["tried"].values())
        assert row["features"] == {"train": "extracted", "validation": "extracted"}
        lines = [line for line in out.splitlines() if f" {name} " in line and f"{row['value']:.3f}" in line]
        assert len(lines) == 1
        assert row["tokenizer"] in lines[0]
    shapes, sounds = document["tasks"]["shapes"], document["tasks"]["sounds"]
    assert shapes["tokenizer"] == "image 8x8 of 16x16"
    assert sounds["tokenizer"] == "audio 16x16 of 32x16"
    (skipped,) = shapes["skipped_files"]
    assert (pair_root / "shapes" / skipped["path"]).read_bytes() == b"no picture"
    assert (shapes["train_examples"], shapes["eval_examples"]) == (23, 12)
    assert (sounds["train_examples"], sounds["eval_examples"], sounds["skipped_files"]) == (24, 12, [])
    assert "features of shapes (train): extracted 23, left out 1 that cannot be decoded" in out
    assert "features of sounds (validation): extracted 12" in out


@ray
@with_ray
def test_features_are_those_of_the_model_here(first: tuple[dict, str], trained: Trained) -> None:
    """The same forward pass in this process, on what the decoder gives: evaluation views of train too."""
    indexes = scanned(trained.config)
    decoder = make_decoder(trained.config, indexes)
    for name, split in (("shapes", "train"), ("sounds", "validation")):
        examples = indexes.scans[name].split(split)
        (request,) = evaluation_requests(name, examples, 64, 0, 1)
        minibatch = decoder.decode(request)
        with torch.inference_mode():
            tokens = normalise(torch.from_numpy(minibatch.inputs["tokens"]))
            expected = trained.model.forward_features({"tokens": tokens}, trained.model.modality[name])
        (path,) = (trained.run / "features").glob(f"{name}-{split}-*.parquet")
        key = pq.read_schema(path).metadata[b"polyvit.features"].decode()
        found = read_features(path, key, len(examples), 3)
        assert found.keys == minibatch.keys
        assert (found.labels == minibatch.labels).all()
        # One process, but other threads at the same sums: float32 rounding.
        np.testing.assert_allclose(found.features, expected.numpy(), rtol=1e-5, atol=1e-5)


@ray
@with_ray
def test_a_second_probe_reads_no_media(first: tuple[dict, str], trained: Trained, tmp_path: Path) -> None:
    """Also with another grid of rates; the same grid gives the same figures."""
    before = trained.files()
    status, document, out = trained.probe(tmp_path)
    assert status == 0
    assert trained.files() == before
    assert len(before) == 4
    assert "extracted" not in out
    assert "features of sounds (train): cached, 24" in out
    assert "features of shapes (train): cached, 23; to try the 1 undecodable again delete" in out
    for name, row in document["tasks"].items():
        assert row.pop("features") == {"train": "cached", "validation": "cached"}
        assert row == {key: value for key, value in first[0]["tasks"][name].items() if key != "features"}
    status, document, out = trained.probe(tmp_path, "--lrs", "0.02,0.05", "--epochs", "3", "--only", "sounds")
    assert (status, list(document["tasks"])) == (0, ["sounds"])
    assert document["tasks"]["sounds"]["lr"] in (0.02, 0.05)
    assert trained.files() == before
    assert "extracted" not in out


@ray
@with_ray
def test_a_damaged_cache_file_is_extracted_again(
    first: tuple[dict, str], trained: Trained, tmp_path: Path
) -> None:
    before = trained.files()
    (path,) = (trained.run / "features").glob("sounds-validation-*.parquet")
    path.write_bytes(before[path.name][1][:-100])
    status, document, out = trained.probe(tmp_path, "--only", "sounds")
    assert status == 0
    assert "warning: a damaged cache file is extracted again" in out
    assert document["tasks"]["sounds"]["features"] == {"train": "cached", "validation": "extracted"}
    after = trained.files()
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in before.items()
    }
    assert {name for name in after if after[name][0] != before[name][0]} == {path.name}
    assert document["tasks"]["sounds"]["value"] == first[0]["tasks"]["sounds"]["value"]


# --------------------------------------------------------------------------------- what needs no cluster


def refused(trained: Trained, capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: str) -> str:
    status, document, _ = trained.probe(tmp_path, *arguments)
    assert status == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {document['error']}")
    assert "Traceback" not in err
    return err


def test_modalities_that_the_model_has_no_tokenizer_for(
    trained: Trained, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """All of them in one message, before any data is looked for."""
    recipe = write_yaml(
        tmp_path / "more.yaml", {"tasks": {"kinetics400": {}, "cifar10": {}, "moments_in_time": {}}}
    )
    err = refused(Trained(trained.run, recipe, trained.model, trained.config), capsys, tmp_path)
    assert "the model has no tokenizer for these tasks (it has image, audio)" in err
    assert "tasks.kinetics400: video" in err
    assert "tasks.moments_in_time: video" in err
    assert "cifar10" not in err


def test_mistakes(trained: Trained, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    err = refused(trained, capsys, tmp_path, "model.image.size=32", "model.width=8")
    assert "model.image.size=32, model.width=8: a probe takes the model as it was trained" in err
    err = refused(trained, capsys, tmp_path, "tasks.sounds.eval_split=train")
    assert "tasks.sounds.eval_split=train: a probe is scored on other examples" in err
    err = refused(trained, capsys, tmp_path, f"data.root={tmp_path}/none")
    assert err.count("is not a folder") == 2
    (tmp_path / "file").write_text("")
    err = refused(trained, capsys, tmp_path, "--cache", f"{tmp_path}/file/x")
    assert f"{tmp_path}/file/x cannot be written" in err
    err = refused(Trained(tmp_path, trained.recipe, trained.model, trained.config), capsys, tmp_path)
    assert "neither a checkpoint nor a run" in err


@pytest.mark.parametrize(
    ("flag", "value"), [("--lrs", "0.1,x"), ("--lrs", "-1"), ("--lrs", "nan"), ("--epochs", "0")]
)
def test_flags_that_make_no_sense(capsys: pytest.CaptureFixture[str], flag: str, value: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["probe", "run", "demo", f"{flag}={value}"])
    assert ended.value.code == 2
    assert f"{value!r} is no " in capsys.readouterr().err


def test_too_much_that_cannot_be_decoded(trained: Trained) -> None:
    """As in training: judged from a hundred examples on; a split of which nothing is left, always."""

    def split(good: int, bad: int) -> Features:
        broken = tuple(Quarantined("sounds", str(i), f"{i}.wav", "audio: broken") for i in range(bad))
        keys = tuple(f"good{i}" for i in range(good))
        return Features(np.zeros((good, 2), np.float32), np.ones((good, 3), np.uint8), keys, broken)

    probe._check_bad_fraction(trained.config, "sounds", split(90, 10), split(90, 10))
    probe._check_bad_fraction(trained.config, "sounds", split(10, 9), split(3, 9))
    with pytest.raises(UserError, match=r"task sounds: 21 of 200 examples .*max_bad_fraction=0.1.*first: 0.wav"):
        probe._check_bad_fraction(trained.config, "sounds", split(89, 11), split(90, 10))
    with pytest.raises(UserError, match="12 of 20 examples"):
        probe._check_bad_fraction(trained.config, "sounds", split(8, 0), split(0, 12))


def test_views_of_an_example_are_averaged(trained: Trained) -> None:
    tokens = np.random.default_rng(0).normal(size=(6, 2, 256)).astype(np.float16)

    def features(rows: np.ndarray, examples: int) -> np.ndarray:
        labels = multi_hot([(0,)] * examples, 3)
        minibatch = Minibatch(0, "sounds", {"tokens": rows}, labels, ("k",) * examples, 0, examples)
        return minibatch_features(trained.model, minibatch, trained.config, "cpu")

    apart = features(tokens, 6)
    assert apart.shape == (6, 16)
    # Batches of another size round otherwise.
    np.testing.assert_allclose(features(tokens, 3), apart.reshape(3, 2, 16).mean(axis=1), rtol=1e-5, atol=1e-6)
    assert features(tokens[:0], 0).shape == (0, 16)


def test_requests_hold_every_example_once_in_bounded_minibatches(trained: Trained) -> None:
    """Long clips go in small minibatches, and views count."""
    examples = [Example(f"k{i:03d}", f"{i}", (0,), "train") for i in range(130)]
    split = FeatureSplit("sounds", "train", examples, Path("x"), "key")

    def sizes(config: RunConfig) -> list[int]:
        requests = encode_requests(config, split)
        assert [e.key for request in requests for e in request.examples] == [e.key for e in examples]
        assert not any(request.epochs for request in requests)
        return [len(request.examples) for request in requests]

    assert sizes(trained.config) == [64, 64, 2]
    task = trained.config.tasks["sounds"].model_copy(update={"eval_clips": 4})
    assert max(sizes(trained.config.model_copy(update={"tasks": {"sounds": task}}))) == 16
    audio = trained.config.model.audio.model_copy(update={"frames": 16 * 2**16})  # 32 MiB an example
    model = trained.config.model.model_copy(update={"audio": audio})
    assert max(sizes(trained.config.model_copy(update={"model": model}))) == 2


@ray
@with_ray
def test_a_model_that_is_not_trained_yet(
    first: tuple[dict, str], trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`init` with a start from this run's weights scores as this run does: the heads are new either way."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "init.json"
    recipe, start = trained.recipe.with_name("trained.yaml"), trained.run / "step_00000001"
    arguments = ["probe", "init", str(recipe), f"init.path={start}", "--epochs", "3", "--lrs", "0.1"]
    assert cli.main([*arguments, "--json", str(out)]) == 0
    document = json.loads(out.read_text())
    assert (document["model"], document["step"], document["checkpoint"]) == ("init", 0, str(start))
    assert (tmp_path / "features").is_dir()
    status, own, _ = trained.probe(tmp_path, "--epochs", "3", "--lrs", "0.1")
    assert status == 0
    for name, row in own["tasks"].items():
        assert document["tasks"][name]["value"] == row["value"]
        assert document["tasks"][name]["loss"] == row["loss"]


def test_init_needs_a_checkpoint(trained: Trained) -> None:
    with pytest.raises(UserError, match=r"give init\.path=FILE"):
        probe.initial_model(str(trained.recipe), [], [])
