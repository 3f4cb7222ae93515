"""Mutated files, a few here and many in `make soak`: no exception but BadMedia and UserError, no NaN."""

from typing import Any

import pytest
from fuzz import KINDS, MEDIA, SELF_TEST, fuzz, mutate

SOAK_CASES = {"image": 8000, "video": 5000, "decord": 4000, "audio": 5000}
READERS = ("webdataset", "parquet", "cifar10")


def check(kind: str, found: dict[str, Any], count: int) -> None:
    assert found["files"] == count
    assert found["bugs"] == 0, found["odd"]
    assert found["decoded"] > count // 20, found
    assert found["refused"] > count // 50, found


@pytest.mark.parametrize("kind", [*MEDIA, *READERS])
def test_damaged_files_are_read_or_refused(kind: str) -> None:
    count = 30 if kind in MEDIA else 40
    found = fuzz(kind, seed=11, first=0, count=count)
    check(kind, found, count)
    assert found["crashed"] + found["hung"] + found["memory"] == 0, found["odd"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", MEDIA)
def test_more_damaged_files(kind: str) -> None:
    found = fuzz(kind, seed=11, first=30, count=30)
    assert (found["files"], found["bugs"]) == (30, 0), found["odd"]
    assert found["crashed"] + found["hung"] + found["memory"] == 0, found["odd"]


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(kind: str) -> None:
    """Native crashes and hangs may come with other versions of the decoders; the feed survives them."""
    count = SOAK_CASES.get(kind, 2000)
    found = fuzz(kind, seed=12, first=0, count=count)
    check(kind, found, count)
    assert found["crashed"] + found["hung"] + found["memory"] <= count // 100, found["odd"]


def test_the_harness_counts_what_happens_and_goes_on() -> None:
    found = fuzz(SELF_TEST, seed=0, first=0, count=7, hang_seconds=2.0)
    odd = [(entry["case"], entry["outcome"], entry["detail"].splitlines()[-1:]) for entry in found.pop("odd")]
    assert found == {"files": 7, "decoded": 2, "refused": 1, "crashed": 1, "hung": 1, "memory": 1, "bugs": 1}
    assert odd == [
        (2, "crashed", ["SIGSEGV"]), (3, "hung", ["SIGALRM"]), (4, "memory", []), (5, "bugs", ["KeyError: 5"]),
    ]  # fmt: skip


def test_a_case_is_its_seed() -> None:
    import numpy as np

    whole, other = bytes(range(256)) * 8, b"x" * 500
    made = [mutate(whole, np.random.default_rng(seed), other) for seed in (1, 1, *range(2, 40))]
    assert made[0] == made[1]
    assert len(set(made[1:])) > 35
    assert all(len(content) < 20_000 for content in made)
