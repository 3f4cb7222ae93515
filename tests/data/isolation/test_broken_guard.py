"""Files that crash or hang a decoder: the process that may die dies, the second try names the file and goes on."""

import _thread
import faulthandler
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hostile_kit import BUG, CRASH, GREED, HANG, FragileDecoder
from PIL import Image

from polyvit.config import RunConfig, validate_config
from polyvit.data.index.io import Example
from polyvit.data.isolation import limits
from polyvit.data.isolation.limits import TimeLimit, import_uninterrupted
from polyvit.data.isolation.worker import is_fatal
from polyvit.data.loading.isolated import MEMORY, isolated_arrays
from polyvit.data.loading.minibatch import Decoder, Minibatch, Request
from polyvit.errors import BadMedia

FATAL = {"f0": CRASH, "f1": HANG, "f2": GREED, "f3": b"only broken"}
EXAMPLES = [Example(f"e{i}", f"e{i}.png", (i % 4,), "train") for i in range(8)]
BAD = [Example(key, f"{key}.png", (0,), "train") for key in FATAL]


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return validate_config(
        {
            "model": {"width": 16, "num_heads": 2, "image": {"size": 16, "patch_size": 8}},
            "tasks": {"pics": {"modality": "image", "layout": "imagefolder", "num_classes": 4, "steps": 1,
                               "batch": 6}},
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def decoder(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> FragileDecoder:
    root = tmp_path_factory.mktemp("fragile")
    rng = np.random.default_rng(0)
    for example in EXAMPLES:
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(root / example.path)
    for key, content in FATAL.items():
        (root / f"{key}.png").write_bytes(content)
    (root / "bug.png").write_bytes(BUG)
    return FragileDecoder(config.tasks, {"pics": config.model.image}, {"pics": root}, 5, decode_timeout_s=2.0)


def request(*examples: Example, spares: tuple[Example, ...] = tuple(EXAMPLES[4:])) -> Request:
    return Request(1, "pics", examples, (0,) * len(examples), 0, len(examples), spares)


def same(one: Minibatch, other: Minibatch) -> bool:
    arrays = np.array_equal(one.inputs["tokens"], other.inputs["tokens"]) and np.array_equal(
        one.labels, other.labels
    )
    return arrays and replace(one, inputs={"tokens": 0}, labels=0) == replace(
        other, inputs={"tokens": 0}, labels=0
    )


@pytest.fixture(scope="module")
def careful(decoder: FragileDecoder) -> Minibatch:
    return decoder.decode(request(EXAMPLES[0], BAD[0], EXAMPLES[1], BAD[1], BAD[2], BAD[3]), careful=True)


def test_the_careful_way_names_what_kills_and_keeps_the_rest(decoder: FragileDecoder, careful: Minibatch) -> None:
    assert [(q.key, q.path, q.task) for q in careful.bad] == [(k, f"{k}.png", "pics") for k in FATAL]
    reasons = [q.reason for q in careful.bad]
    assert reasons[:3] == [
        "the decoder died on it (SIGSEGV)", "decoding took longer than 2 s", "decoding needs too much memory"
    ]  # fmt: skip
    assert reasons[3].startswith("image: ")
    assert careful.undecodable == 4
    # The bytes are those of a decoder to which the four files are merely broken.
    plain = Decoder(decoder.tasks, decoder.inputs, decoder.roots, decoder.seed)
    expected = plain.decode(request(EXAMPLES[0], BAD[0], EXAMPLES[1], BAD[1], BAD[2], BAD[3]))
    assert careful.keys == expected.keys == ("e0", "e5", "e1", "e7", "e4", "e5")
    assert np.array_equal(careful.inputs["tokens"], expected.inputs["tokens"])
    assert same(replace(careful, bad=()), replace(expected, bad=()))


def test_good_requests_are_the_same_bytes_either_way(decoder: FragileDecoder) -> None:
    asked = request(*EXAMPLES[:3])
    plain = decoder.decode(asked)
    assert plain.inputs["tokens"].shape == (3, 4, 192)
    assert same(plain, decoder.decode(asked, careful=False))
    assert same(plain, decoder.decode(asked, careful=True))
    views = replace(asked, epochs=())
    assert same(decoder.decode(views), decoder.decode(views, careful=True))
    assert not np.array_equal(decoder.decode(views).inputs["tokens"], plain.inputs["tokens"])


def test_files_behind_links_that_lead_out_of_the_root_are_read_the_careful_way_too(
    decoder: FragileDecoder, tmp_path: Path
) -> None:
    """A dataset often is links to a shared disk: to folders, and to single files."""
    root = Path(decoder.roots["pics"])
    (tmp_path / "linked").symlink_to(root)
    (tmp_path / "e0.png").symlink_to(root / "e0.png")
    linked = replace(decoder, roots={"pics": tmp_path})
    asked = request(EXAMPLES[0], *(replace(e, path=f"linked/{e.path}") for e in EXAMPLES[1:3]), spares=())
    careful = linked.decode(asked, careful=True)
    assert not careful.bad
    assert same(careful, linked.decode(asked))


def dies_of(decoder: FragileDecoder, *examples: Example) -> int:
    """Exit status of a process that decodes them as the feed does at the first try."""
    pid = os.fork()
    if not pid:
        faulthandler.disable()
        decoder.decode(request(*examples), careful=False)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_first_try_dies_where_it_crashes_or_hangs(decoder: FragileDecoder) -> None:
    assert dies_of(decoder, *EXAMPLES[:2]) == 0
    assert dies_of(decoder, EXAMPLES[0], BAD[0]) == -signal.SIGSEGV
    assert dies_of(replace(decoder, decode_timeout_s=0.3), EXAMPLES[0], BAD[1]) == -signal.SIGALRM


def test_what_is_known_to_be_fatal_is_not_tried_again(decoder: FragileDecoder, careful: Minibatch) -> None:
    asked = request(EXAMPLES[0], BAD[0], EXAMPLES[1], BAD[1], BAD[2], BAD[3])
    known = {entry.key: entry.reason for entry in careful.bad[:3]}
    assert all(map(is_fatal, known.values()))
    assert not is_fatal(careful.bad[3].reason)
    assert same(decoder.decode(replace(asked, fatal=known)), careful)


def test_a_first_try_without_memory_goes_the_careful_way(decoder: FragileDecoder) -> None:
    with pytest.raises(MemoryError):
        decoder.decode(request(EXAMPLES[0], BAD[2]))
    made = decoder.decode(request(EXAMPLES[0], BAD[2]), careful=False)
    assert [q.reason for q in made.bad] == ["decoding needs too much memory"]
    assert made.keys == ("e0", "e5")


def test_a_bug_is_not_bad_media(decoder: FragileDecoder) -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'a bug'"):
        decoder.decode(request(Example("bug", "bug.png", (0,), "train")), careful=True)


def test_the_time_of_one_example_does_not_run_on(decoder: FragileDecoder) -> None:
    with TimeLimit(50.0):
        assert 49 < signal.getitimer(signal.ITIMER_REAL)[0] <= 50
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    with pytest.raises(KeyError), TimeLimit(50.0):
        raise KeyError
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    with TimeLimit(None):
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    decoder.decode(request(*EXAMPLES[:3]), careful=False)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


CAREFULLY = """
import pickle, sys
decoder, request = pickle.load(sys.stdin.buffer)
decoder.decode(request, careful=True)
"""


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_no_child_is_left_behind(decoder: FragileDecoder) -> None:
    """Neither after the work, nor where the parent is killed while its child hangs."""
    before = children_of(os.getpid())
    with isolated_arrays(decoder, "pics") as arrays:
        assert arrays("pics", EXAMPLES[0], 0, "e0")["tokens"].shape == (1, 4, 192)
        assert len(children_of(os.getpid())) == len(before) + 1
    assert children_of(os.getpid()) == before
    parent = subprocess.Popen(
        [sys.executable, "-c", CAREFULLY], stdin=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert parent.stdin is not None
    parent.stdin.write(pickle.dumps((replace(decoder, decode_timeout_s=None), request(BAD[1]))))
    parent.stdin.close()
    until = time.monotonic() + 60
    while not (found := children_of(parent.pid)):
        assert time.monotonic() < until
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in found):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_memory_of_a_child_is_bounded(decoder: FragileDecoder) -> None:
    assert MEMORY == 8 * 2**30
    with isolated_arrays(decoder, "pics") as arrays, pytest.raises(BadMedia, match="too much memory"):
        arrays("pics", BAD[2], 0, "f2")


def test_an_interrupt_waits_for_the_end_of_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """So does Ray cancel a task. A process with half a torch could decode nothing more."""
    imported = []

    def slow(name: str) -> None:
        _thread.interrupt_main()
        for _ in range(1000):
            time.sleep(1e-5)
        imported.append(name)

    monkeypatch.delitem(sys.modules, "polyvit.data.decode.audio", raising=False)
    monkeypatch.setattr(limits, "importlib", SimpleNamespace(import_module=slow))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        import_uninterrupted("polyvit.data.decode.audio")
    assert imported == ["polyvit.data.decode.audio"]
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(limits, "importlib", SimpleNamespace(import_module=imported.append))
    thread = threading.Thread(
        target=import_uninterrupted, args=("polyvit.data.decode.none",)
    )  # where signals cannot be handled
    thread.start()
    thread.join()
    assert imported[1:] == ["polyvit.data.decode.none"]
