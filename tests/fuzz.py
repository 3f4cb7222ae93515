"""Mutated files against the decoders and the index readers: `python tests/fuzz.py --count 2000 [--json FILE]`.

In: real files (the kit's, where it is there, and made ones) and a seed. Each case is a function of (kind, seed,
number) alone: `--kind video --first 1234 --count 1` plays one again. Out: counts of each kind, as JSON: files;
decoded or read; refused (BadMedia of the decoders, UserError of the index readers); crashed, hung and memory (what
`polyvit/data/isolation/limits.py` is there for); bugs: any other exception, and tokens that are not finite.

The cases run in worker processes of this file, which say what they begin, so that a native crash is counted and
the next one goes on behind it.
"""

import argparse
import ctypes
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fuzz_corpus import INDEXES, media_corpus, write_roots  # noqa: E402

MEDIA = ("image", "video", "audio", "decord")
KINDS = (*MEDIA, *INDEXES)
SELF_TEST = "self-test"
"""A kind that decodes, refuses, crashes, hangs, swells and has a bug, in turn."""
HANG_SECONDS = 20.0
MEMORY = 4 * 2**30
SHOWN = 20
_VALUES = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\0\0\0\x80",
    b"\x80\0\0\0",
    b"\xff\xff\xff\x7f",
)


def mutate(content: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """One to four changes: bits, bytes, telling numbers, pieces cut, doubled or of another file."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        size = max(1, len(data))
        # Half of the changes lie in the first kilobyte, where headers are.
        at = int(rng.integers(min(size, 1024) if rng.random() < 0.5 else size))
        length = int(rng.integers(1, max(2, min(size, 4096))))
        how = int(rng.integers(8))
        if how == 0 and data:
            data[at] ^= 1 << int(rng.integers(8))
        elif how == 1:
            data[at : at + 1] = rng.bytes(1)
        elif how == 2:
            data[at : at + 4] = _VALUES[int(rng.integers(len(_VALUES)))]
        elif how == 3:
            data[at : at + min(length, 64)] = rng.bytes(min(length, 64))
        elif how == 4:
            del data[at : at + length]
        elif how == 5:
            data[at:at] = data[at : at + length]
        elif how == 6:
            start = int(rng.integers(max(1, len(other))))
            data[at : at + length] = other[start : start + length]
        else:
            del data[int(rng.integers(size)) :]
    return bytes(data)


def mutated(kind: str, corpus: list[bytes], seed: int, number: int) -> tuple[bytes, np.random.Generator]:
    """The bytes of a case, and the generator for what else it draws."""
    rng = np.random.default_rng([seed, KINDS.index(kind), number])
    one, other = (corpus[int(rng.integers(len(corpus)))] for _ in range(2))
    return mutate(one, rng, other), rng


# ------------------------------------------------------------------------------------------ in a worker


def media_case(kind: str) -> Callable[[int, int], str]:
    """Decode for training or evaluation, after the look that `predict` takes."""
    from arrays_kit import evaluation_tokens, example_tokens
    from fuzz_corpus import decoding

    from polyvit.data.decode.media_type import detect_modality
    from polyvit.errors import BadMedia

    corpus = media_corpus(kind)
    task, spec = decoding(kind)
    evaluation_tokens(corpus[0], task, spec)  # the time of imports is no case's

    def run(seed: int, number: int) -> str:
        data, rng = mutated(kind, corpus, seed, number)
        try:
            if rng.random() < 0.1:
                detect_modality(data)
            if rng.random() < 0.5:
                tokens = example_tokens(data, task, spec, rng)
            else:
                tokens = evaluation_tokens(data, task, spec)
        except BadMedia:
            return "refused"
        if not np.isfinite(tokens.astype(np.float32)).all():
            raise ValueError("tokens are not finite")
        return "decoded"

    return run


def index_case(kind: str, folder: Path) -> Callable[[int, int], str]:
    """Scan a copy of a small data set in which one file is mutated, and load what was found."""
    from polyvit.data.index.io import read_index, write_index
    from polyvit.data.layouts.scanner import scan
    from polyvit.data.loading import reader
    from polyvit.errors import BadMedia, UserError

    task, targets = write_roots(folder, kind)
    whole = {path: (folder / path).read_bytes() for path in targets}
    written = folder.parent / f"{kind}.index"
    write_index(scan(task, folder), written)
    whole_index = written.read_bytes()

    def run(seed: int, number: int) -> str:
        rng = np.random.default_rng([seed, KINDS.index(kind), number])
        target = targets[int(rng.integers(len(targets)))]
        others = [*whole.values()]
        forged = rng.random() < 0.1
        content = whole_index if forged else whole[target]
        content = mutate(content, rng, others[int(rng.integers(len(others)))])
        (written if forged else folder / target).write_bytes(content)
        for cached in vars(reader).values():
            if hasattr(cached, "cache_clear"):
                cached.cache_clear()
        try:
            found = read_index(written) if forged else scan(task, folder)
            for example in itertools.islice(found.examples, 8):
                try:
                    reader.load(example, folder)
                except BadMedia:
                    continue
            for problem in found.problems:
                json.dumps([problem.where, problem.reason]).encode()
        except UserError as error:
            str(error).encode(errors="surrogateescape")
            return "refused"
        finally:
            written.write_bytes(whole_index)
            (folder / target).write_bytes(whole[target])
        return "decoded"

    return run


def self_case(_: int, number: int) -> str:
    """What `SELF_TEST` does at a number."""
    if number % 6 == 2:
        ctypes.string_at(0)
    if number % 6 == 3:
        ctypes.PyDLL(None).sleep(1000)
    if number % 6 == 4:
        np.ones(1 << 60, np.uint8)
    if number % 6 == 5:
        raise KeyError(number)
    return ("decoded", "refused")[number % 6]


def work(kind: str, seed: int, first: int, count: int, hang_seconds: float) -> None:
    """Run cases; say each one's number before and its outcome after."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = os.fdopen(os.dup(1), "w", buffering=1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    with tempfile.TemporaryDirectory(prefix="polyvit-fuzz-") as folder:
        if kind == SELF_TEST:
            case = self_case
        else:
            case = media_case(kind) if kind in MEDIA else index_case(kind, Path(folder) / kind)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        for number in range(first, first + count):
            out.write(json.dumps(["begin", number, ""]) + "\n")
            signal.setitimer(signal.ITIMER_REAL, hang_seconds)
            try:
                outcome, detail = case(seed, number), ""
            except MemoryError:
                outcome, detail = "memory", ""
            except Exception:
                outcome, detail = "bugs", traceback.format_exc()
            signal.setitimer(signal.ITIMER_REAL, 0)
            out.write(json.dumps([outcome, number, detail]) + "\n")


# ------------------------------------------------------------------------------------------- the driver


def outcomes(kind: str, seed: int, first: int, count: int, hang_seconds: float) -> Iterator[tuple[str, int, str]]:
    """(outcome, number, detail) of every case, whatever happens to the workers."""
    stop = first + count
    while first < stop:
        command = [sys.executable, __file__, "--worker", "--kind", kind, "--seed", str(seed)]
        command += ["--hang-seconds", str(hang_seconds)]
        with subprocess.Popen(
            [*command, "--first", str(first), "--count", str(stop - first)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as worker:  # fmt: skip
            assert worker.stdout is not None
            begun = None
            for line in worker.stdout:
                outcome, number, detail = json.loads(line)
                if outcome == "begin":
                    begun = number
                else:
                    begun, first = None, number + 1
                    yield outcome, number, detail
        if begun is None:
            if first < stop:
                raise RuntimeError(f"a worker of {kind} ended at case {first}: {worker.returncode}")
            return
        status = worker.returncode
        name = signal.Signals(-status).name if status < 0 else f"status {status}"
        yield ("hung" if status == -signal.SIGALRM else "crashed"), begun, name
        first = begun + 1


def fuzz(kind: str, seed: int, first: int, count: int, hang_seconds: float = HANG_SECONDS) -> dict[str, Any]:
    """Counts of one kind, and the first cases that were not an answer."""
    counts: Counter[str] = Counter(dict.fromkeys(("decoded", "refused", "crashed", "hung", "memory", "bugs"), 0))
    odd = []
    for outcome, number, detail in outcomes(kind, seed, first, count, hang_seconds):
        counts[outcome] += 1
        if outcome not in ("decoded", "refused") and len(odd) < SHOWN:
            odd.append({"case": number, "outcome": outcome, "detail": detail.strip()[-600:]})
    return {"files": counts.total(), **counts, "odd": odd}


def main() -> None:
    """Parse the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kind", action="append", choices=[*KINDS, SELF_TEST], help="may be repeated; all by default"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=200, help="cases of each kind")
    parser.add_argument("--hang-seconds", type=float, default=HANG_SECONDS, help="time for one case")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    how = (arguments.seed, arguments.first, arguments.count, arguments.hang_seconds)
    if arguments.worker:
        work(arguments.kind[0], *how)
        return
    found = {kind: fuzz(kind, *how) for kind in arguments.kind or KINDS}
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text)


if __name__ == "__main__":
    main()
