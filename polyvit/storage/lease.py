"""One owner at a time: which process writes into a run's folder and bucket, and whether it is still there.

In: the places that one process is to own. Out: a block in which it owns them, or a UserError that names the owner.

Below a place lie `owner/000001.json`, `000002.json` ...: the highest number is the owner. It writes its file again
every BEAT_S seconds; an owner that ends marks it as released. Whoever takes over from an owner that is dead makes
the next number. A folder makes a file exclusively. An object store cannot: there every claim is an object of its
own, and a claim counts once nobody else's was seen SETTLE_S after it was written.

Dead is an owner whose process is gone from this machine, or, on another machine, whose file has not changed for
STALE_S. No two machines' clocks are compared: ages are differences of the storage's own times, or watched here.
"""

import contextlib
import json
import logging
import os
import re
import secrets
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from polyvit.errors import UserError
from polyvit.storage.location import Location
from polyvit.storage.opening import open_root
from polyvit.storage.remote import RemoteRoot

logger = logging.getLogger(__name__)
BEAT_S = 10.0
"""Seconds between two signs of life."""
STALE_S = 60.0
"""An owner elsewhere that gives no sign of life for this long is dead."""
SETTLE_S = 2.0
"""How long a claim in an object store waits for others."""
_NAME = re.compile(r"(\d{6,})(?:-[0-9a-f]{16})?\.json")


class _FolderClaims:
    """Claims in a folder: of two that make the same number, one fails."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.settle_s = folder / "owner", 0.0

    def names(self) -> list[str]:
        return [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def age_s(self, name: str) -> float:
        """By the clock that stamps files here."""
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".clock-") as probe:
            probe.write(b"0")
            probe.flush()
            return os.fstat(probe.fileno()).st_mtime - (self.folder / name).stat().st_mtime

    def make(self, number: int, owner: str, content: bytes) -> str | None:
        """The name of a new claim; None where another has this number."""
        name = f"{number:06d}.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self._beside(content)
        try:
            os.link(beside, self.folder / name)  # exclusive, and never seen half written
        except FileExistsError:
            return None
        except OSError:  # a file system without hard links
            try:
                with (self.folder / name).open("xb") as file:
                    file.write(content)
            except FileExistsError:
                return None
        finally:
            beside.unlink()
        return name

    def write(self, name: str, content: bytes) -> None:
        beside = self._beside(content)
        try:
            beside.replace(self.folder / name)
        finally:
            beside.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def _beside(self, content: bytes) -> Path:
        path = self.folder / f".writing-{secrets.token_hex(8)}"
        try:
            path.write_bytes(content)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return path


class _BucketClaims:
    """Claims in an object store: several of one number are possible, each under a name of its own."""

    def __init__(self, root: RemoteRoot) -> None:
        self.root, self.settle_s = root, SETTLE_S

    def names(self) -> list[str]:
        return list(self.root.folder("owner").files)

    def read(self, name: str) -> bytes:
        return self.root.read(f"owner/{name}")

    def age_s(self, name: str) -> float:
        """Not known without another object: it is watched for the whole time."""
        return 0.0

    def make(self, number: int, owner: str, content: bytes) -> str | None:
        name = f"{number:06d}-{owner}.json"
        self.write(name, content)
        return name

    def write(self, name: str, content: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="polyvit-owner-") as folder:
            path = Path(folder, name)
            path.write_bytes(content)
            self.root.write(f"owner/{name}", path)

    def delete(self, name: str) -> None:
        self.root.delete(f"owner/{name}")


class Lease:
    """A place that this process owns; `keep` is called every BEAT_S seconds, `release` at the end.

    place: a folder or URL. owner: a random name of this owner. dead: owners known to be dead, added to.
    notice: shown while it waits.
    """

    def __init__(self, place: Location, owner: str, dead: set[str], notice: Callable[[str], None]) -> None:
        root = open_root(place)
        self.place, self.owner, self._dead, self._notice = str(place), owner, dead, notice
        self._claims = _BucketClaims(root) if isinstance(root, RemoteRoot) else _FolderClaims(Path(place))
        self._beat, self._number, self._name = 0, 0, ""

    def acquire(self, advice: str) -> None:
        """Own the place. Raises UserError where another process does, and OSError of the storage."""
        while not self._name:
            number, name, document = self._top()
            if name and not document.get("released") and not self._is_dead(name, document):
                raise UserError(f"{self.place} is in use by {_description(document)}; {advice}")
            if self._top()[:2] != (number, name):  # another has acted while this one looked
                continue
            self._number, self._name = number + 1, self._claim(number + 1) or ""
        for name in self._claims.names():
            if (match := _NAME.fullmatch(name)) and int(match[1]) < self._number:
                self._claims.delete(name)

    def keep(self) -> str | None:
        """A sign of life. Returns who has taken the place over; None where it is still owned. Raises OSError."""
        number, name, document = self._top()
        if number >= self._number and name != self._name:
            return _description(document)
        self._write()
        return None

    def release(self) -> None:
        """Own it no more. Raises OSError."""
        if self._top()[0] == self._number:
            self._write(released=True)

    def _write(self, **more: Any) -> None:
        self._beat += 1
        self._claims.write(self._name, self._content(held=True, **more))

    def _content(self, **more: Any) -> bytes:
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        document = {"owner": self.owner, "host": socket.gethostname(), "machine": _machine(), "pid": os.getpid()}
        return json.dumps(
            {**document, "started": _start_of(os.getpid()), "beat": self._beat, "written": since, **more}
        ).encode()

    def _top(self) -> tuple[int, str, dict[str, Any]]:
        """The highest number with the file and the document of its owner; of claims in contention the first."""
        numbers = {name: int(match[1]) for name in self._claims.names() if (match := _NAME.fullmatch(name))}
        number = max(numbers.values(), default=0)
        documents = {name: self._document(name) for name in sorted(numbers) if numbers[name] == number}
        claims = [(name, document) for name, document in documents.items() if document is not None]
        held = [claim for claim in claims if claim[1].get("held")]
        return (number, *(held or claims or [("", {})])[0])

    def _document(self, name: str) -> dict[str, Any] | None:
        """Empty where the file is damaged; None where it has gone: a claim that was given up."""
        try:
            document = json.loads(self._claims.read(name))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return document if isinstance(document, dict) else {}

    def _claim(self, number: int) -> str | None:
        """The name of this process's claim to a number; None where another was first."""
        name = self._claims.make(number, self.owner, self._content(held=not self._claims.settle_s))
        if name is None:
            return None
        time.sleep(self._claims.settle_s)
        looked = time.monotonic()
        top, first, _ = self._top()
        late = False
        if (top, first) == (number, name) and self._claims.settle_s:
            self._claims.write(name, self._content(held=True))
            late = time.monotonic() - looked > self._claims.settle_s  # another may have settled meanwhile
        if (top, first) == (number, name) and not late:
            return name
        self._claims.delete(name)
        return None

    def _is_dead(self, name: str, document: dict[str, Any]) -> bool:
        """Whether the owner is gone. Waits for a sign of life of an owner on another machine, STALE_S at most."""
        owner = str(document.get("owner"))
        if owner not in self._dead:
            if document.get("machine") == _machine():
                if _start_of(document.get("pid")) == document.get("started"):
                    return False
            elif self._lives(name, document):
                return False
            if "owner" in document:
                self._dead.add(owner)
        return True

    def _lives(self, name: str, document: dict[str, Any]) -> bool:
        wait_s = STALE_S
        with contextlib.suppress(FileNotFoundError):
            wait_s -= max(0.0, self._claims.age_s(name))
        if wait_s > 0:
            self._notice(
                f"{self.place} belongs to {_description(document)}: "
                f"waiting for a sign of life, {wait_s:.0f} s at most"
            )
        until = time.monotonic() + wait_s
        while time.monotonic() < until:
            time.sleep(min(1.0, STALE_S / 10))
            if self._document(name) != document:
                return True
        return False


@contextmanager
def sole_owner(
    places: Sequence[Location], advice: str, notice: Callable[[str], None] = lambda text: None
) -> Iterator[None]:
    """A block in which this process alone owns the places: folders and URLs.

    advice: what to do where another process owns one. notice: shown where an owner's death has to be waited for.

    Raises UserError where another process owns one of them. Where another takes one over (this process had been
    stopped, or cut off from the storage) it is interrupted at once as by two Ctrl-C, and UserError is raised.
    """
    owner, dead, over = secrets.token_hex(8), set[str](), threading.Event()
    leases = [Lease(place, owner, dead, notice) for place in places]
    taken: list[str] = []
    with ExitStack() as stack:
        for lease in leases:
            try:
                lease.acquire(advice)
            except OSError as error:
                raise UserError(f"{lease.place} cannot be written ({error}); give another place") from None
            stack.callback(_release, lease)
        for lease in leases:  # each in a thread: a bucket that does not answer must not silence the folder
            threading.Thread(target=_beat, args=(lease, over, taken), name="polyvit-owner", daemon=True).start()
        try:
            yield
        finally:
            over.set()
            if taken:
                raise UserError(f"{taken[0]}; this process has ended its work there")


def _beat(lease: Lease, over: threading.Event, taken: list[str]) -> None:
    silent = False
    while not over.wait(BEAT_S):
        try:
            new_owner = lease.keep()
            silent = False
        except OSError as error:
            if not silent:
                logger.warning("%s: no sign of life could be written (%s)", lease.place, error)
            silent = True
            continue
        if new_owner and not taken:
            taken.append(f"{lease.place} was taken over by {new_owner}")
            os.kill(os.getpid(), signal.SIGINT)
            if not over.wait(0.05):  # it asks for a last checkpoint, which would be written into another's run
                os.kill(os.getpid(), signal.SIGINT)
            return


def _release(lease: Lease) -> None:
    with contextlib.suppress(OSError):  # it is taken over later
        lease.release()


def _description(document: dict[str, Any]) -> str:
    if "pid" not in document:
        return "another process"
    return f"process {document['pid']} on {document.get('host')}"


def _machine() -> str:
    """This machine since it was started, and the numbers of processes that are meant: a container has its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _start_of(pid: Any) -> str | None:
    """When a process of this machine started; None where it has ended."""
    if not isinstance(pid, int):
        return None
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except OSError:
        pass
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.0f}"
    except (psutil.Error, ValueError):
        return None
