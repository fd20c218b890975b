import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pneumo import interrupt
from pneumo.console import track
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def handlers(monkeypatch):
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGALRM
    before = {number: signal.getsignal(number) for number in numbers}
    monkeypatch.setattr(interrupt, "LIMIT", 1)
    interrupt.install()
    yield
    interrupt.install()  # forgets what is still asked
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_breaks_into_nothing_and_is_heard_by_the_next_check(number):
    interrupt.check()
    send(number)
    with pytest.raises(KeyboardInterrupt):
        interrupt.check()
    time.sleep(1.5)  # and that is all


def test_where_nothing_checks_it_breaks_in_after_a_while():
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        time.sleep(30)


def test_the_clean_up_is_left_in_peace_for_a_while(monkeypatch):
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupt.check()
    send(signal.SIGTERM)
    monkeypatch.setattr(interrupt._State, "deaf_until", 0.0)
    with pytest.raises(KeyboardInterrupt):  # at once: a person insists
        send(signal.SIGTERM)


class Destroyed:
    def __del__(self):
        send(signal.SIGINT)
        time.sleep(1.5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_was_lost_comes_again():
    interrupt.check()
    Destroyed()  # Python ignores what a destructor raises
    with pytest.raises(KeyboardInterrupt):
        interrupt.check()


def test_an_item_of_a_long_list_is_such_a_check():
    seen = track(range(3), 3, "Counting")
    assert next(seen) == 0
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        next(seen)


def in_own_thread(work):
    """What the work returns, and what it told."""
    told = []
    return interrupt.in_own_thread(work, lambda *news: told.append(news)), told


def test_work_in_a_thread_tells_and_returns():
    main = threading.get_ident()

    def work(tell):
        assert threading.get_ident() != main
        tell(1, "a")
        tell()
        tell(2, "b")
        return "done"

    assert in_own_thread(work) == ("done", [(1, "a"), (2, "b")])


def test_what_the_work_raises_comes_up_here():
    def work(tell):
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        in_own_thread(work)


def test_what_the_hearer_raises_ends_the_work():
    ended = []

    def work(tell):
        try:
            tell(1)
        except interrupt.Abandoned:
            ended.append(True)
            raise

    def hear(number):
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        interrupt.in_own_thread(work, hear)
    assert ended == [True]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_does_not_wait_for_the_work(number):
    computed, abandoned = threading.Event(), threading.Event()

    def work(tell):
        tell("begun")
        send(number)
        computed.wait(timeout=30)  # as a compiled function that lets nothing in
        try:
            tell()
        except interrupt.Abandoned:
            abandoned.set()

    with pytest.raises(KeyboardInterrupt):
        in_own_thread(work)
    assert not computed.is_set()
    assert not abandoned.is_set()
    computed.set()
    assert abandoned.wait(timeout=10)


@pytest.mark.parametrize("asked", [False, True])
def test_leaving(asked):
    """After a signal, a thread that still computes does not hold the process up."""
    code = (
        "import os, signal, threading, time\n"
        "from pneumo import interrupt\n"
        "interrupt.install()\n"
        "threading.Thread(target=lambda: (time.sleep(2), print('computed'))).start()\n"
        "try:\n"
        f"    os.kill(os.getpid(), signal.SIGINT) if {asked} else None\n"
        "    interrupt.check()\n"
        "except KeyboardInterrupt: pass\n"
        "print('clean')\n"
        "interrupt.leave(3)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 3
    assert process.stdout == ("clean\n" if asked else "clean\ncomputed\n")
