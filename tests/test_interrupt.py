import os
import signal
import subprocess
import sys
import threading

import pytest

from pneumo import interrupt
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupt.install()
    yield
    interrupt.install()  # forgets what is still asked
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_at_once(number):
    with pytest.raises(KeyboardInterrupt):
        send(number)


def test_the_clean_up_is_left_in_peace_for_a_while():
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    send(signal.SIGTERM)
    interrupt.install()  # as after the grace
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGTERM)


class Destroyed:
    def __del__(self):
        send(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_was_lost_comes_again():
    interrupt.check()
    Destroyed()  # Python ignores what a destructor raises
    with pytest.raises(KeyboardInterrupt):
        interrupt.check()


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
        tell("begun")  # so that the signal comes while the other thread waits
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
        "except KeyboardInterrupt: pass\n"
        "print('clean')\n"
        "interrupt.leave(3)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 3
    assert process.stdout == ("clean\n" if asked else "clean\ncomputed\n")
