"""Checkpoints as whole things: manifests, damage, what stays, and the writer that never holds a run up."""

import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from pipelines_kit import pair_config
from pyarrow import fs

from pipelines.training import cotrain, new_run
from polyvit.checkpoint import async_writer
from polyvit.checkpoint.async_writer import AsyncCheckpointWriter, Keep
from polyvit.checkpoint.locate import find_checkpoint
from polyvit.checkpoint.state import CheckpointData
from polyvit.checkpoint.store import (
    LocalStore,
    RemoteStore,
    best_step,
    damage,
    folder_name,
    newest_whole,
    open_store,
    prune,
    read_manifest,
)  # fmt: skip
from polyvit.errors import UserError
from polyvit.storage import remote
from polyvit.storage.location import under
from polyvit.storage.opening import open_root
from polyvit.storage.root import StoreUnavailable


def checkpoint(step: int, value: float = 1.0, scores: dict[str, float] | None = None) -> CheckpointData:
    tensors = {"model.safetensors": {"w": torch.full((3,), value)}}
    return CheckpointData(step, tensors, {"format": 2, "global_step": step}, scores or {})


def filled(folder: Path, *steps: int, scores: dict[int, float] | None = None) -> LocalStore:
    store = LocalStore(folder)
    for step in steps:
        with store.scratch() as scratch:
            checkpoint(step, scores={"mean": scores[step]} if scores and step in scores else None).write(scratch)
            store.commit(scratch, step)
    return store


def test_a_checkpoint_is_whole_or_absent(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with store.scratch() as scratch:
        checkpoint(5).write(scratch)
        assert store.steps() == []
        store.commit(scratch, 5)
    assert store.steps() == [5]
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000005"]
    assert sorted(read_manifest(tmp_path / "step_00000005")["files"]) == ["model.safetensors", "state.json"]
    with pytest.raises(OSError), store.scratch() as scratch:
        checkpoint(9).write(scratch / "nowhere")
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000005"]


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    store = filled(tmp_path, 5)
    (tmp_path / ".writing-123").mkdir()
    (tmp_path / ".writing-123" / "model.safetensors").write_bytes(b"half")
    store.sweep()
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000005"]


def test_a_checkpoint_is_replaced(tmp_path: Path) -> None:
    store = filled(tmp_path, 5)
    with store.scratch() as scratch:
        checkpoint(5, value=7.0).write(scratch)
        store.commit(scratch, 5)
    assert damage(tmp_path / "step_00000005") is None
    assert sorted(p.name for p in (tmp_path / "step_00000005").iterdir()) == [
        "manifest.json", "model.safetensors", "state.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "state.json").unlink(), "state.json is missing"),
        (lambda folder: (folder / "state.json").write_text("{}"), "state.json has 2 bytes instead of"),
        (lambda folder: _flip(folder / "model.safetensors"), r"model.safetensors is not what was written"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
    ],
    ids=["missing", "cut", "one bit", "manifest", "empty manifest"],
)
def test_damage_is_found_and_the_checkpoint_before_is_taken(tmp_path: Path, harm: Any, words: str) -> None:
    store = filled(tmp_path, 5, 10)
    assert newest_whole(store) == (10, [])
    harm(tmp_path / "step_00000010")
    step, (line,) = newest_whole(store)
    assert step == 5
    assert "checkpoint step_00000010" in line
    assert words in line
    assert find_checkpoint(tmp_path) == tmp_path / "step_00000005"
    harm(tmp_path / "step_00000005")
    step, lines = newest_whole(store)
    assert (step, len(lines)) == (None, 2)
    with pytest.raises(UserError, match="neither a checkpoint nor a run"):
        find_checkpoint(tmp_path)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_that_is_named_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, 5)
    _flip(tmp_path / "step_00000005" / "model.safetensors")
    with pytest.raises(UserError, match=r"is damaged: model\.safetensors .* use another checkpoint"):
        find_checkpoint(tmp_path / "step_00000005")


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    scores = {1: 0.5, 2: 0.9, 3: 0.9, 5: 0.7}
    store = filled(tmp_path, 1, 2, 3, 4, 5, 6, scores=scores)
    assert best_step(store, "mean") == 3
    assert best_step(store, "pets") is None
    prune(store, keep_last=2, keep_best=1, metric="mean")
    assert store.steps() == [3, 5, 6]
    prune(store, keep_last=1, keep_best=0, metric="mean")
    assert store.steps() == [6]


def test_the_writer_copies_and_the_step_goes_on(tmp_path: Path) -> None:
    """What training does to the tensors after `save` returned is not in the checkpoint."""
    go, contents = threading.Event(), checkpoint(5)
    order: list[str] = []

    def before(step: int) -> None:
        go.wait(10)
        order.append(f"history {step}")

    writer = AsyncCheckpointWriter(LocalStore(tmp_path), Keep(), before)
    writer.save(contents)
    contents.tensors["model.safetensors"]["w"].fill_(9.0)
    order.append("next step")
    go.set()
    writer.close()
    assert order == ["next step", "history 5"]
    from safetensors.torch import load_file

    assert load_file(tmp_path / "step_00000005" / "model.safetensors")["w"].tolist() == [1.0, 1.0, 1.0]


def test_a_store_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").write_text("in the way")
    writer = AsyncCheckpointWriter(LocalStore(tmp_path / "run"), Keep())
    writer.save(checkpoint(5))
    writer.close()
    assert writer.failed == 1
    assert "checkpoint step_00000005 could not be written" in caplog.text
    (tmp_path / "run").unlink()
    writer.save(checkpoint(10))
    writer.close()
    assert LocalStore(tmp_path / "run").steps() == [10]
    assert "the storage works again" in caplog.text


def test_a_slow_store_costs_a_checkpoint_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(async_writer, "WAIT_S", 0.05)
    go = threading.Event()
    writer = AsyncCheckpointWriter(LocalStore(tmp_path), Keep(), lambda step: go.wait(10))
    writer.save(checkpoint(5))
    writer.save(checkpoint(10))
    assert "no checkpoint at step 10" in caplog.text
    go.set()
    writer.close()
    assert LocalStore(tmp_path).steps() == [5]


def test_the_last_checkpoint_insists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_writer, "INSIST_S", 0.2)
    (tmp_path / "run").write_text("in the way")
    writer = AsyncCheckpointWriter(LocalStore(tmp_path / "run"), Keep())
    with pytest.raises(UserError, match=r"the last checkpoint \(step 5\) cannot be written .* --resume"):
        writer.finish(checkpoint(5))
    monkeypatch.setattr(async_writer, "INSIST_S", 20.0)
    threading.Timer(0.5, (tmp_path / "run").unlink).start()
    writer.finish(checkpoint(5))
    assert LocalStore(tmp_path / "run").steps() == [5]


def test_addresses(tmp_path: Path) -> None:
    assert open_store(tmp_path).address == str(tmp_path)
    with pytest.raises(UserError, match="nosuch://x/y cannot be opened"):
        open_store("nosuch://x/y")
    assert folder_name(12) == "step_00000012"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An S3 bucket on the loopback interface."""
    from s3_kit import s3_server

    with s3_server() as url:
        yield url


def test_a_bucket_holds_the_same(bucket: str, tmp_path: Path) -> None:
    store = open_store(under(bucket, "runs/one"))
    assert store.steps() == []
    for step in (5, 10, 15):
        with store.scratch() as scratch:
            checkpoint(step, value=float(step), scores={"mean": 1.0 / step}).write(scratch)
            store.commit(scratch, step)
    assert store.steps() == [5, 10, 15]
    assert newest_whole(store) == (15, [])
    prune(store, keep_last=1, keep_best=1, metric="mean")
    assert store.steps() == [5, 15]
    with store.scratch() as scratch:  # the same step again, with other content
        checkpoint(15, value=99.0).write(scratch)
        store.commit(scratch, 15)
    with store.fetched(15) as folder:
        assert damage(folder) is None
        assert json.loads((folder / "state.json").read_text())["global_step"] == 15
    store.root.delete("step_00000015/model.safetensors")  # type: ignore[union-attr]
    assert newest_whole(store)[0] == 5
    (tmp_path / "run.json").write_text(json.dumps({"checkpoints": store.address}))
    copied = find_checkpoint(tmp_path)
    assert copied == tmp_path / "fetched" / "step_00000005"
    assert damage(copied) is None


@pytest.mark.parametrize("record", [None, "the first folder"])
def test_a_run_that_was_copied_or_renamed_is_the_one_in_its_folder(tmp_path: Path, record: str | None) -> None:
    """Records of older runs name the folder that they began in."""
    first, copy, renamed = (tmp_path / name for name in ("first", "copy", "renamed"))
    (first / "step_00000005").mkdir(parents=True)
    checkpoint(5, value=1.0).write(first / "step_00000005")
    (first / "run.json").write_text(json.dumps({"checkpoints": record and str(first)}))
    shutil.copytree(first, copy)
    assert find_checkpoint(copy) == copy / "step_00000005"
    first.rename(renamed)
    assert find_checkpoint(renamed) == renamed / "step_00000005"


def test_an_upload_that_was_cut_off_is_no_checkpoint(bucket: str) -> None:
    store = open_store(under(bucket, "runs/two"))
    with store.scratch() as scratch:
        checkpoint(5).write(scratch)
        (scratch / "manifest.json").rename(scratch.parent / f"{scratch.name}.manifest")
        with pytest.raises(OSError):
            store.commit(scratch, 5)
    assert store.steps() == []
    (scratch.parent / f"{scratch.name}.manifest").unlink()


class Shaky:
    """A file system whose every operation fails `times` times before it works; counts the tries by operation."""

    def __init__(self, real: fs.FileSystem, times: int, error: Exception) -> None:
        self.real, self.times, self.error = real, times, error
        self.tries: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.real, name)
        if not callable(attribute):
            return attribute

        def shaky(*arguments: Any) -> Any:
            self.tries[name] += 1
            if self.tries[name] <= self.times:
                raise self.error
            return attribute(*arguments)

        return shaky


def shaky_store(name: str, times: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> RemoteStore:
    monkeypatch.setattr(remote, "WAITS_S", (0.0, 0.0, 0.0))
    store = RemoteStore(f"memory://{name}/run")
    monkeypatch.setattr(store.root, "files", Shaky(store.root.files, times, error))
    return store


def test_a_store_that_fails_twice_holds_whole_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    store = shaky_store("twice", 2, OSError("AWS Error SLOW_DOWN"), monkeypatch)
    for step in (5, 10):
        with store.scratch() as scratch:
            checkpoint(step).write(scratch)
            store.commit(scratch, step)
    assert store.steps() == [5, 10]
    assert store.manifest(10)["global_step"] == 10
    assert json.loads(store.text(5, "state.json"))["global_step"] == 5
    assert newest_whole(store) == (10, [])
    store.remove(5)
    assert store.steps() == [10]
    tries = store.root.files.tries
    assert (
        min(tries[name] for name in ("get_file_info", "open_output_stream", "open_input_file", "delete_dir")) >= 3
    )


def test_a_store_that_is_away_costs_training_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = shaky_store("away", 10**9, OSError("AWS Error NETWORK_CONNECTION"), monkeypatch)
    writer = AsyncCheckpointWriter(store, Keep())
    writer.save(checkpoint(5))
    writer.close()
    assert writer.failed == 1
    assert store.root.files.tries["get_file_info"] == 4
    assert "checkpoint step_00000005 could not be written to memory://away/run" in caplog.text
    with pytest.raises(StoreUnavailable, match="NETWORK_CONNECTION"):  # and is no damage
        newest_whole(store)
    store.root.files.times = 0
    writer.save(checkpoint(10))
    writer.close()
    assert store.steps() == [10]
    assert "the storage works again" in caplog.text


def test_a_refusal_is_not_tried_again_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    store = shaky_store("refused", 10**9, OSError("AWS Error ACCESS_DENIED during PutObject"), monkeypatch)
    with store.scratch() as scratch:
        checkpoint(5).write(scratch)
        with pytest.raises(StoreUnavailable, match="give credentials that may"):
            store.commit(scratch, 5)
    assert store.root.files.tries == {"get_file_info": 1}


@pytest.mark.parametrize(
    "url", ["s3://id:secret@bucket/runs", "gs://me@bucket/runs", "s3://bucket/x?zone=1", "s3://"]
)
def test_an_address_is_refused_in_the_words_that_data_are(url: str) -> None:
    with pytest.raises(UserError) as of_data:
        open_root(url)
    with pytest.raises(UserError) as of_checkpoints:
        open_store(url)
    assert str(of_checkpoints.value) == f"train.checkpoint_dir: {of_data.value}"
    assert "secret" not in str(of_checkpoints.value)


def test_credentials_are_refused_before_anything_is_started(pair_root: Path, tmp_path: Path) -> None:
    config = pair_config(pair_root, tmp_path, "train.checkpoint_dir=s3://id:secret@bucket/runs")
    with pytest.raises(UserError, match="put them into the environment") as caught:
        cotrain(config, new_run(config, "one"))
    assert "secret" not in str(caught.value)
    assert not ray.is_initialized()


def test_a_name_goes_below_an_address() -> None:
    assert under("/a/b/", "c") == "/a/b/c"
    assert (
        under("s3://b/p?scheme=http&endpoint_override=h:1", "c") == "s3://b/p/c?scheme=http&endpoint_override=h:1"
    )


@pytest.mark.parametrize("name", ["step_00000005.bak", "step_00000005 copy", "step_x", "old/step_00000007"])
def test_foreign_names_beside_checkpoints_are_ignored(tmp_path: Path, name: str) -> None:
    store = filled(tmp_path, 5, 10)
    shutil.copytree(tmp_path / "step_00000005", tmp_path / name)
    assert store.steps() == [5, 10]
    prune(store, 1, 1, "mean")
    assert store.steps() == [10]
    assert (tmp_path / name / "manifest.json").is_file()
    assert newest_whole(store) == (10, [])
    assert find_checkpoint(tmp_path).name == "step_00000010"


def test_foreign_names_in_a_bucket_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    store = shaky_store("foreign", 0, OSError(), monkeypatch)
    for name in ("run/step_00000005.bak", "run/old/step_00000007"):
        with store.root.files.open_output_stream(f"/foreign/{name}/manifest.json") as file:
            file.write(b"{}")
    assert store.steps() == []


def test_a_writer_that_dies_ends_the_run_with_its_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def breaks(step: int) -> None:
        raise ValueError(f"no good at {step}")

    writer = AsyncCheckpointWriter(LocalStore(tmp_path), Keep(), before=breaks)
    writer.save(checkpoint(5))
    with pytest.raises(UserError, match=r"died: ValueError: no good at 5; .* go on with --resume"):
        writer.save(checkpoint(10))
    assert "Traceback" in caplog.text


def test_a_damaged_manifest_does_not_stop_pruning(tmp_path: Path) -> None:
    store = filled(tmp_path, 5, 10, 15, scores={5: 0.9, 10: 0.5})
    (tmp_path / "step_00000010" / "manifest.json").write_text('{"files": {}, "metrics": [1]}')
    prune(store, 1, 1, "mean")
    assert store.steps() == [5, 15]
    assert best_step(store, "mean") == 5


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", "..", ".", "", "a\\b", ".hidden", "a\n"])
def test_a_manifest_that_names_what_lies_elsewhere_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = json.dumps({"files": {name: {"bytes": 0, "sha256": ""}}})
    filled(tmp_path, 5)
    (tmp_path / "step_00000005" / "manifest.json").write_text(forged)
    assert "is no file of a checkpoint" in (damage(tmp_path / "step_00000005") or "")
    store = shaky_store("forged", 0, OSError(), monkeypatch)
    with store.scratch() as scratch:
        (scratch / "manifest.json").write_text(forged)
        store.commit(scratch, 5)
    step, damaged = newest_whole(store)
    assert step is None
    assert "is no file of a checkpoint" in damaged[0]
    with pytest.raises(ValueError), store.fetched(5):
        pass
