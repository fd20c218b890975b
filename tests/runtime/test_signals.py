"""Signals: where they interrupt, and where they do not."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pneumo.runtime import signals
from pneumo.runtime.console import track
from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def handlers(monkeypatch):
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGALRM
    before = {number: signal.getsignal(number) for number in numbers}
    monkeypatch.setattr(signals, "MAX_DELAY_SECONDS", 1)
    signals.install_handlers()
    yield
    signals.install_handlers()  # forgets what is still asked
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_nothing_before_the_next_check(number):
    signals.raise_if_interrupted()
    send(number)
    with pytest.raises(KeyboardInterrupt):
        signals.raise_if_interrupted()
    time.sleep(1.5)  # and that is all


def test_without_a_check_a_signal_interrupts_after_a_while():
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        time.sleep(30)


def test_signals_during_the_cleanup_are_ignored_for_a_while(monkeypatch):
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signals.raise_if_interrupted()
    send(signal.SIGTERM)
    monkeypatch.setattr(signals._State, "ignore_until", 0.0)
    with pytest.raises(KeyboardInterrupt):  # at once: a person insists
        send(signal.SIGTERM)


class Destroyed:
    def __del__(self):
        send(signal.SIGINT)
        time.sleep(1.5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_lost_interrupt_is_raised_again():
    signals.raise_if_interrupted()
    Destroyed()  # Python ignores what a destructor raises
    with pytest.raises(KeyboardInterrupt):
        signals.raise_if_interrupted()


def test_each_item_of_a_long_list_is_a_check():
    seen = track(range(3), 3, "Counting")
    assert next(seen) == 0
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        next(seen)


def test_work_in_a_thread_returns():
    main, waited = threading.get_ident(), threading.Event()

    def work():
        assert threading.get_ident() != main
        assert waited.wait(10)
        return "done"

    def meanwhile():
        assert threading.get_ident() == main
        waited.set()

    assert signals.run_in_thread(work, meanwhile) == "done"


@pytest.mark.parametrize("where", ["function", "meanwhile"])
def test_an_exception_reaches_the_caller(where):
    ended = threading.Event()

    def fail():
        raise ValueError("inside")

    calls = {"function": lambda: ended.wait(10), "meanwhile": lambda: None, where: fail}
    with pytest.raises(ValueError, match="inside"):
        signals.run_in_thread(**calls)
    ended.set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_does_not_wait_for_the_work(number, monkeypatch):
    monkeypatch.setattr(signals, "MAX_DELAY_SECONDS", 100)  # it is a check that handles the signal
    computed, ended = threading.Event(), threading.Event()

    def work():
        send(number)
        computed.wait(timeout=5)  # as a compiled function that lets nothing in
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        signals.run_in_thread(work)
    assert not ended.is_set()
    computed.set()
    assert ended.wait(timeout=10)


def test_a_process_ends_with_its_input():
    code = (
        "import signal, sys, time\n"
        "from pneumo.runtime import signals\n"
        "signals.install_handlers()\n"
        "signals.terminate_with_stdin()\n"
        "print('ready', flush=True)\n"
        "try:\n"
        "    while True: signals.raise_if_interrupted(); time.sleep(0.1)\n"
        "except KeyboardInterrupt: sys.exit(7)\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        assert process.poll() is None
        process.stdin.close()
        try:
            assert process.wait(10) == 7
        finally:
            process.kill()  # else a process that does not end would be waited for


@pytest.mark.parametrize("interrupted", [False, True])
def test_leaving(interrupted):
    """After a signal, the exit does not wait for a thread that still computes."""
    code = (
        "import os, signal, threading, time\n"
        "from pneumo.runtime import signals\n"
        "signals.install_handlers()\n"
        "threading.Thread(target=lambda: (time.sleep(2), print('computed'))).start()\n"
        "try:\n"
        f"    os.kill(os.getpid(), signal.SIGINT) if {interrupted} else None\n"
        "    signals.raise_if_interrupted()\n"
        "except KeyboardInterrupt: pass\n"
        "print('clean')\n"
        "signals.exit_process(3)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 3
    assert process.stdout == ("clean\n" if interrupted else "clean\ncomputed\n")
