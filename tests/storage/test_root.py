"""Roots: the same index and the same bytes from an object store as from a folder, patience, and clear errors."""

import itertools
import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit import TASK, task, write
from pipelines_kit import pair_config, planned
from pyarrow import fs
from s3_kit import gs_server, s3_server

from pipelines.index import Indexes
from polyvit.config.paper_tasks import PAPER_TASKS
from polyvit.data.index.io import Example, index_hash
from polyvit.data.layouts.scanner import scan
from polyvit.data.loading import reader
from polyvit.data.loading.minibatch import Decoder
from polyvit.data.loading.reader import load, load_many, reading_ahead
from polyvit.data.loading.requests import InlineFeed, Requests
from polyvit.errors import BadMedia, UserError
from polyvit.storage import remote
from polyvit.storage.local import LocalRoot
from polyvit.storage.location import as_location, under
from polyvit.storage.opening import open_root
from polyvit.storage.remote import RemoteRoot
from polyvit.storage.root import StoreUnavailable
from polyvit.synthetic.write import write_synthetic

SYNTHETIC = ("imagenet", "cifar10", "pets", "kinetics400", "audioset", "vggsound")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small datasets of several layouts."""
    root = tmp_path_factory.mktemp("kit") / "data"
    write_synthetic(root, tasks=SYNTHETIC, classes=2, train=8, evaluation=2, side=32)
    shards = root / "shards"
    shards.mkdir()
    pictures = sorted((root / "imagenet/train").rglob("*.JPEG"))
    with tarfile.open(shards / "train-000000.tar", "w") as tar:
        for number, picture in enumerate(pictures):
            write(root.parent / "labels", {f"{number}.cls": str(number % 2)})
            tar.add(picture, f"{number}.jpg")
            tar.add(root.parent / f"labels/{number}.cls", f"{number}.cls")
    (root / "tables").mkdir()
    columns = {"label": [0, 1, 0], "image": [picture.read_bytes() for picture in pictures[:3]]}
    pq.write_table(pa.table(columns), root / "tables/train-0.parquet", row_group_size=2)
    return root


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Iterator[str]:
    """The same in a bucket of S3."""
    with s3_server() as url:
        yield filled(url, folder)


@pytest.fixture(scope="module")
def google(folder: Path) -> Iterator[str]:
    """The same in Google's store: no folder is an object."""
    with gs_server() as url:
        yield filled(url, folder)


def filled(url: str, folder: Path) -> str:
    root = open_root(under(url, "data sets"))
    assert isinstance(root, RemoteRoot)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            root.write(str(path.relative_to(folder)), path)
    return under(url, "data sets")


def tasks() -> dict[str, Any]:
    configs = {name: TASK.validate_python(PAPER_TASKS[name]) for name in SYNTHETIC}
    return configs | {"shards": task("webdataset"), "tables": task("parquet")}


@pytest.mark.parametrize("name", [*SYNTHETIC, "shards", "tables"])
@pytest.mark.parametrize("store", ["bucket", "google"])
def test_a_bucket_gives_the_index_and_the_bytes_of_the_folder(
    folder: Path, store: str, name: str, request: pytest.FixtureRequest
) -> None:
    config, url = tasks()[name], under(request.getfixturevalue(store), name)
    here, there = scan(config, folder / name, name), scan(config, url, name)
    assert len(here.examples) > 2
    assert index_hash(here) == index_hash(there)
    assert here.problems == there.problems
    for example, media in zip(there.examples, load_many(there.examples, url), strict=True):
        np.testing.assert_array_equal(load(example, folder / name), media)


def test_a_missing_object_is_the_examples_fault_and_a_cut_shard_too(bucket: str) -> None:
    url = under(bucket, "shards")
    for path, keys, reason in (
        ("gone.jpg", {}, "file is missing"),
        ("gone.tar", {"container": "tar", "length": 5}, "file is missing"),
        ("train-000000.tar", {"container": "tar", "offset": 10**6, "length": 5},
         "shard is shorter than its index says"),
        ("../x", {}, "path leaves the root"),
    ):  # fmt: skip
        with pytest.raises(BadMedia) as caught:
            load(Example(path, path, (0,), "train", **keys), url)  # type: ignore[arg-type]
        assert caught.value.reason == reason


def test_what_is_not_there_is_a_user_error_that_says_where(bucket: str) -> None:
    server = bucket.partition("?")[2]
    with pytest.raises(UserError, match="s3://bucket/nowhere is not there; layout pets expects"):
        scan(tasks()["pets"], f"s3://bucket/nowhere?{server}", "pets")
    with pytest.raises(UserError, match=r"no-such-bucket/x is not there|there is no such bucket"):
        scan(tasks()["pets"], f"s3://no-such-bucket/x?{server}", "pets")
    with pytest.raises(UserError, match=r"s3://bucket/data sets/imagenet/annotations/trainval\.txt is not there"):
        scan(tasks()["pets"], under(bucket, "imagenet"), "pets")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s4://bucket/x", "s4://bucket/x cannot be opened"),
        ("s3://id:secret@bucket/x", "put them into the environment"),
        ("s3://bucket/x?zone=1", "unknown zone; known are anonymous, endpoint_override, region, scheme"),
        ("s3://", "names no bucket"),
        ("gs://me@bucket/x", "put them into"),
        ("gs://bucket/x?region=1", "unknown region; known are anonymous, endpoint_override, scheme"),
    ],
)
def test_a_url_that_cannot_be_opened(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_root(url)
    assert "secret" not in str(caught.value)


def test_fsspec_opens_what_pyarrow_does_not_know(folder: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(folder / "pets"), "/deep/pets", recursive=True)
    here, there = scan(tasks()["pets"], folder / "pets"), scan(tasks()["pets"], "memory://deep/pets")
    assert index_hash(here) == index_hash(there)
    assert load(there.examples[0], "memory://deep/pets") == load(here.examples[0], folder / "pets")


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert as_location("data") == tmp_path / "data"
    assert as_location(f"file://{tmp_path}/x") == tmp_path / "x"
    assert as_location("s3://b/x") == "s3://b/x"
    assert isinstance(open_root("data"), LocalRoot)
    assert open_root(tmp_path) == open_root(str(tmp_path))


class Shaky:
    """A file system that fails `times` times before each file opens; counts the tries."""

    def __init__(self, real: fs.FileSystem, times: int, error: Exception) -> None:
        self.real, self.times, self.error, self.tries = real, times, error, 0

    def open_input_file(self, path: str) -> pa.NativeFile:
        self.tries += 1
        if self.tries <= self.times:
            raise self.error
        return self.real.open_input_file(path)


@pytest.fixture
def shaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteRoot:
    monkeypatch.setattr(remote, "WAITS_S", (0.0, 0.0, 0.0))
    write(tmp_path, {"a.jpg": b"content"})
    return RemoteRoot(f"file://{tmp_path}")


def test_what_may_pass_is_tried_again(shaky: RemoteRoot) -> None:
    shaky.files = Shaky(shaky.files, 3, OSError("AWS Error SLOW_DOWN"))
    assert load(Example("a", "a.jpg", (0,), "train"), shaky) == b"content"
    assert shaky.files.tries == 4


@pytest.mark.parametrize(
    ("error", "tries", "message"),
    [
        (OSError("AWS Error NETWORK_CONNECTION during GetObject"), 4, "NETWORK_CONNECTION"),
        (ValueError("a backend's own exception"), 4, "a backend's own exception"),
        (OSError("AWS Error ACCESS_DENIED during HeadObject"), 1, "give credentials that may list and read it"),
        (OSError("AWS Error NO_SUCH_BUCKET"), 1, "no such bucket"),
    ],
)
def test_a_store_that_is_gone_quarantines_nothing(
    shaky: RemoteRoot, error: Exception, tries: int, message: str
) -> None:
    """Else the plan would depend on the network's mood."""
    shaky.files = Shaky(shaky.files, 100, error)
    with pytest.raises(StoreUnavailable, match=message):
        load(Example("a", "a.jpg", (0,), "train"), shaky)
    assert shaky.files.tries == tries


class SlowRoot(LocalRoot):
    """A folder that answers like an object store: 50 ms a request."""

    @property
    def remote(self) -> bool:
        return True

    def read(self, path: str) -> bytes:
        time.sleep(0.05)
        return super().read(path)


def test_latency_is_waited_for_once_and_not_once_an_example(tmp_path: Path) -> None:
    write(tmp_path, {f"{n}.jpg": b"x%d" % n for n in range(40)})
    examples = [Example(str(n), f"{n}.jpg", (0,), "train") for n in range(42)]  # the last two are not there
    wanted, root = [*examples[:40], examples[3], *examples[40:]], SlowRoot(tmp_path)
    began = time.perf_counter()
    media = list(load_many(wanted, root))
    assert time.perf_counter() - began < 1.0  # 43 requests one by one: 2.2 s
    assert media[:41] == [*(b"x%d" % n for n in range(40)), b"x3"]
    assert [str(error) for error in media[41:]] == ["file is missing"] * 2
    began = time.perf_counter()
    with reading_ahead(wanted, root):
        assert [load(example, root) for example in wanted[:41]] == media[:41]
        with pytest.raises(BadMedia, match="file is missing"):
            load(wanted[41], root)
    assert time.perf_counter() - began < 1.0
    assert reader._AHEAD.get() is None


def test_no_more_than_a_window_is_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "AHEAD", 4)
    write(tmp_path, {f"{n}.jpg": b"x" for n in range(20)})
    asked: list[str] = []
    monkeypatch.setattr(SlowRoot, "read", lambda self, path: asked.append(path) or b"x")
    media = load_many([Example(str(n), f"{n}.jpg", (0,), "train") for n in range(20)], SlowRoot(tmp_path))
    next(media)
    time.sleep(0.1)
    assert len(asked) == 5
    media.close()  # type: ignore[attr-defined]


def test_stamps_follow_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"d/a.txt": "1"})
    root = LocalRoot(tmp_path)
    assert root.folder("d").stamp == ""  # changed this moment: it may change again within the clock's tick
    monkeypatch.setattr("polyvit.storage.local.RECENT_NS", 0)
    first = (root.folder("d").stamp, root.file_stamp("d/a.txt"))
    assert all(first)
    assert first == (root.folder_stamp("d"), root.file_stamp("d/a.txt"))
    time.sleep(0.02)
    write(tmp_path, {"d/a.txt": "2"})
    assert root.folder("d").stamp == first[0]
    assert root.file_stamp("d/a.txt") != first[1]
    time.sleep(0.02)
    write(tmp_path, {"d/b.txt": "2"})
    assert root.folder_stamp("d") != first[0]
    (tmp_path / "d/link").symlink_to(tmp_path / "elsewhere")
    assert root.folder("d").stamp == ""  # what a link leads to may change unseen
    assert root.folder("none").stamp == root.file_stamp("none") == "absent"


def test_stamps_of_a_bucket(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = open_root(under(bucket, "pets"))
    listing = root.folder("annotations")
    monkeypatch.setattr(remote, "RECENT_NS", 0)
    first = root.folder_stamp("annotations")
    assert listing.stamp in (first, "")
    assert first == root.folder_stamp("annotations")
    assert json.loads(json.dumps(root.file_stamp("annotations/test.txt"))) not in ("", "absent")
    assert root.file_stamp("nothing") == "absent"


def test_minibatches_of_a_bucket_are_those_of_the_folder(
    pair_root: Path, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One picture of the pair is broken: it gives way to the same spare."""
    config = pair_config(pair_root, tmp_path)
    for path in sorted(pair_root.rglob("*")):
        if path.is_file():
            place = open_root(under(bucket, "pair"))
            assert isinstance(place, RemoteRoot)
            place.write(str(path.relative_to(pair_root)), path)
    monkeypatch.setattr(reader, "AHEAD", 3)
    inputs = {name: config.model.input(task.modality) for name, task in config.tasks.items()}
    steps = []
    for root in (str(pair_root), under(bucket, "pair")):
        places = {name: as_location(under(root, name)) for name in config.tasks}
        indexes = Indexes({name: scan(task, places[name], name) for name, task in config.tasks.items()}, places)
        requests = Requests.of(config, planned(config, indexes), indexes.scans, 0, 1)
        feed = InlineFeed(requests, Decoder(config.tasks, inputs, places, config.seed))
        minibatches = [minibatch for step in itertools.islice(feed.train(1), 12) for minibatch in step]
        steps.append([(m.task, m.keys, m.inputs["tokens"].tobytes(), m.bad) for m in minibatches])
    assert steps[0] == steps[1]
    assert any(bad for *_, bad in steps[0])
