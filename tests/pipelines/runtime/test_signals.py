"""Signals: the first ends the work with a checkpoint, the second at once."""

import os
import signal
import threading
import time

import pytest

from pipelines.runtime import command_line
from pipelines.runtime.signals import StoppedAtOnce, stoppable


def test_the_first_signal_is_passed_on_and_the_work_ends() -> None:
    stop = threading.Event()

    def work() -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(10)
        return "a checkpoint"

    before = signal.getsignal(signal.SIGTERM)
    assert stoppable(work, stop.set) == ("a checkpoint", signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_a_command_with_its_own_status(
    signum: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    def body(arguments: object) -> dict:
        stoppable(
            lambda: time.sleep(30), lambda: os.kill(os.getpid(), signum), lambda: os.kill(os.getpid(), signum)
        )
        return {}

    assert command_line.run(command_line.parser("x", "x"), body, []) == 128 + signum
    assert capsys.readouterr().err == "stopped\n"


def test_what_fails_meanwhile_waits_for_the_work_to_end() -> None:
    stop, ended = threading.Event(), []

    def meanwhile() -> None:
        stop.set()
        raise ValueError("no store")

    with pytest.raises(ValueError, match="no store"):
        stoppable(lambda: ended.append(stop.wait(10)), lambda: None, meanwhile)
    assert ended == [True]


def test_the_second_signal_is_an_interrupt() -> None:
    assert issubclass(StoppedAtOnce, KeyboardInterrupt)
