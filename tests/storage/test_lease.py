"""One owner at a time of a run's folder and bucket: races, dead owners, owners elsewhere, replaced owners."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_kit import s3_server
from small import small_config

from pipelines.training import cotrain, new_run
from polyvit.errors import UserError
from polyvit.storage import Location, open_root, sole_owner, under
from polyvit.storage import lease as leases
from polyvit.storage.lease import Lease
from polyvit.storage.remote import RemoteRoot


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Location:
    monkeypatch.setattr(leases, "SETTLE_S", 0.15)
    monkeypatch.setattr(leases, "STALE_S", 0.4)
    if request.param == "folder":
        return tmp_path / "run"
    return under(request.getfixturevalue("bucket"), tmp_path.name)


def lease(place: Location, notice: Callable[[str], None] = lambda text: None) -> Lease:
    return Lease(place, os.urandom(8).hex(), set(), notice)


def claim(place: Location, number: int, **changes: Any) -> None:
    """An owner's file, as another process would have written it."""
    document = {"owner": "f" * 16, "host": "far", "machine": "far", "pid": 7, "started": "1", "held": True}
    root, text = open_root(place), json.dumps({**document, **changes})
    if isinstance(root, RemoteRoot):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(text)
            file.flush()
            root.write(f"owner/{number:06d}-{'f' * 16}.json", Path(file.name))
        return
    folder = Path(place, "owner")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number:06d}.json").write_text(text)


def until_replaced(place: Location) -> None:
    """Own it, and work until another takes it over."""
    with sole_owner([place], ""):
        claim(place, 2)
        time.sleep(30)


def here(**changes: Any) -> dict[str, Any]:
    """What says that an owner is a process of this machine."""
    return {"machine": leases._machine(), "host": socket.gethostname(), **changes}


def test_a_second_owner_is_refused_and_the_next_is_not(place: Location) -> None:
    with sole_owner([place], "give another name"):
        with pytest.raises(UserError, match=rf"in use by process {os.getpid()} on .*; give another name$"):
            with sole_owner([place], "give another name"):
                pass
    for _ in range(2):
        with sole_owner([place], ""):
            pass


def test_of_several_that_start_together_one_becomes_the_owner(place: Location) -> None:
    starts, outcomes = threading.Barrier(5), []

    def start() -> None:
        mine = lease(place)
        starts.wait()
        try:
            mine.acquire("")
            outcomes.append("owner")
        except UserError:
            outcomes.append("refused")

    threads = [threading.Thread(target=start) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["owner"] + ["refused"] * 4


def test_an_owner_of_this_machine_whose_process_is_gone_is_replaced_at_once(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "STALE_S", 1e6)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    while leases._start_of(gone.pid):  # ended, and not yet waited for: a zombie counts as gone
        time.sleep(0.01)
    claim(place, 1, **here(pid=gone.pid, started="1"))
    lease(place).acquire("")
    gone.wait()
    claim(place, 5, **here(pid=os.getpid(), started="another process had this number"))
    lease(place).acquire("")
    claim(place, 9, **here(pid=os.getpid(), started=leases._start_of(os.getpid())))
    with pytest.raises(UserError, match="in use"):
        lease(place).acquire("")


def test_an_owner_elsewhere_is_given_time_for_a_sign_of_life(place: Location) -> None:
    notices: list[str] = []
    claim(place, 1)
    lease(place, notices.append).acquire("")
    assert len(notices) == 1
    assert "process 7 on far: waiting for a sign of life, 0 s at most" in notices[0]


def test_an_owner_elsewhere_that_gives_a_sign_of_life_stays(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "STALE_S", 5.0)
    claim(place, 1)
    beat = threading.Timer(0.2, claim, (place, 1), {"beat": 2})
    beat.start()
    with pytest.raises(UserError, match="in use by process 7 on far"):
        lease(place).acquire("")
    beat.join()


def test_an_old_sign_of_life_is_not_waited_for(tmp_path: Path) -> None:
    """By the times that the storage gives its files, not by this machine's clock."""
    claim(tmp_path, 1)
    old = time.time() - 100
    os.utime(tmp_path / "owner/000001.json", (old, old))
    notices: list[str] = []
    lease(tmp_path, notices.append).acquire("")
    assert not notices


def test_damaged_files_and_foreign_names_do_not_block(place: Location) -> None:
    claim(place, 1, owner=None, pid="1/../2")
    if isinstance(place, Path):
        (place / "owner/000002.json").write_text('{"pid"')
        (place / "owner/000003.json.bak").write_text("x")
    lease(place).acquire("")


def test_a_folder_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no hard links")

    monkeypatch.setattr(os, "link", refuses)
    first = lease(tmp_path)
    first.acquire("")
    assert first._claim(1) is None
    with pytest.raises(UserError, match="in use"):
        lease(tmp_path).acquire("")
    assert [path.name for path in (tmp_path / "owner").iterdir()] == ["000001.json"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "owner").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"), sole_owner([tmp_path], ""):
        pass


def test_who_was_replaced_is_interrupted_twice_and_writes_no_more(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped for a minute wakes up and finds another in its place."""
    monkeypatch.setattr(leases, "BEAT_S", 0.05)
    caught: list[int] = []

    def handler(signum: int, frame: object) -> None:  # as in pipelines/runtime/signals.py
        caught.append(signum)
        if len(caught) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(UserError, match="was taken over by process 7 on far"):
            until_replaced(place)
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught == [signal.SIGINT] * 2
    assert lease(place)._top()[2]["pid"] == 7


def test_an_outage_of_the_storage_is_borne(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.02)
    with sole_owner([tmp_path], ""):
        write = leases._FolderClaims.write
        monkeypatch.setattr(leases._FolderClaims, "write", lambda *_: Path("/no such file").stat())
        time.sleep(0.2)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        monkeypatch.setattr(leases._FolderClaims, "write", write)
        beat = lease(tmp_path)._top()[2]["beat"]
        time.sleep(0.2)
        assert lease(tmp_path)._top()[2]["beat"] > beat


def test_a_run_is_trained_by_one_process(tmp_path: Path) -> None:
    """Two `--resume`, two `--name one` that start together, and a second one that comes when the first is done."""
    (tmp_path / "data").mkdir()
    config = small_config(f"storage={tmp_path}", f"data.root={tmp_path / 'data'}", "tracking.uri=sqlite:///x.db")
    for task in config.tasks:
        (tmp_path / "data" / task).mkdir()
    run_dir = new_run(config, "one")
    other = config.model_copy(update={"seed": 77})
    assert new_run(other, "one") == run_dir
    assert run_dir.read("config.json")["seed"] == config.seed
    with (
        run_dir.owned(config, print),
        pytest.raises(UserError, match=r"is in use by process .*another --name"),
    ):
        cotrain(other, run_dir, "its MLflow run")
    assert run_dir.read("config.json")["seed"] == config.seed
    run_dir.write("run.json", {"mlflow_run": "of the first"})
    with pytest.raises(UserError, match=r"run one exists in .*--resume one"):
        new_run(other, "one")
