"""What takes long says so within two seconds; what does not says nothing."""

import io
import re
import subprocess
import sys
import time

import pytest

from pipelines.runtime import console, notices_while, slow_notice


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    out = io.StringIO()
    monkeypatch.setattr(console, "_file", out)
    return out


def test_nothing_is_said_of_what_is_done_at_once(shown: io.StringIO) -> None:
    began = time.monotonic()
    with notices_while(lambda: "never"):
        pass
    assert time.monotonic() - began < 1
    assert shown.getvalue() == ""


def test_how_far_it_is_is_said_again_and_again(shown: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    assert slow_notice.FIRST_S < 2
    monkeypatch.setattr(slow_notice, "FIRST_S", 0.01)
    monkeypatch.setattr(slow_notice, "EVERY_S", 0.01)
    done: list[int] = []
    until = time.monotonic() + 20
    with notices_while(lambda: f"writing: {len(done)} of 3 ..."):
        for i in range(3):
            while f"{i} of 3" not in shown.getvalue() and time.monotonic() < until:
                time.sleep(0.01)
            done.append(i)
    lines = shown.getvalue().splitlines()
    assert all(re.fullmatch(r"writing: \d of 3 \.\.\. \(\d+ s\)", line) for line in lines)
    assert {line[9] for line in lines} >= {"0", "1", "2"}
    time.sleep(0.05)
    assert len(shown.getvalue().splitlines()) == len(lines)  # over


def test_an_index_of_what_lies_here_waits_for_no_import_of_ray() -> None:
    code = "import sys, pipelines.index; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
