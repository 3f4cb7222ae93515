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


@pytest.mark.parametrize("announced", [True, False])
def test_what_can_wait_is_done_at_the_first_step_or_at_the_end(announced: bool) -> None:
    at, done = threading.Event(), threading.Event()

    def work() -> bool:
        if announced:
            at.set()
            assert done.wait(10)
        return done.is_set()

    assert stoppable(work, lambda: None, lambda: None, done.set, at) == (announced, None)
    assert done.is_set()


def test_what_can_wait_does_not_hide_why_the_work_failed() -> None:
    def work() -> None:
        raise KeyError("the work")

    def later() -> None:
        raise AssertionError("not called")

    with pytest.raises(KeyError, match="the work"):
        stoppable(work, lambda: None, lambda: None, later, threading.Event())


def test_the_second_signal_is_an_interrupt() -> None:
    assert issubclass(StoppedAtOnce, KeyboardInterrupt)
