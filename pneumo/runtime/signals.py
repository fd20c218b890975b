"""Ctrl-C and SIGTERM, heard where nothing is broken by it.

An exception out of a signal handler comes up wherever the main thread is: amid what it says to a
database it leaves that locked, and in a destructor or in a function that TensorFlow traces it can
be lost. A signal is therefore kept for the next `check`, and training, of which a compiled function
lets nothing in for half a minute, has a thread of its own, for which the main one waits.
"""

import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Thread
from typing import NoReturn, TypeVar

T = TypeVar("T")

SIGNALS = signal.SIGINT, signal.SIGTERM

# After the terminal's own signal `mlflow run` sends another, which must not break into the
# clean-up that the first has started.
GRACE = 10  # seconds
LIMIT = 3  # seconds after which a signal that no `check` has heard breaks in wherever it is
WAKE = 0.5  # seconds after which who waits looks for signals


class _State:
    """A process has one set of signal handlers, and so one state."""

    asked = False  # a signal has come
    deaf_until = 0.0  # on the monotonic clock


def install() -> None:
    """Makes both signals a `KeyboardInterrupt`: of the next `check`, or after `LIMIT` seconds."""
    signal.alarm(0)
    _State.asked, _State.deaf_until = False, 0.0
    signal.signal(signal.SIGALRM, _break_in)
    for number in SIGNALS:
        signal.signal(number, _handle)


def _handle(*_: object) -> None:
    if time.monotonic() < _State.deaf_until:
        return
    _State.deaf_until = time.monotonic() + GRACE
    if _State.asked:  # who asks again is not to wait
        raise KeyboardInterrupt
    _State.asked = True
    signal.alarm(LIMIT)


def _break_in(*_: object) -> None:
    raise KeyboardInterrupt


def check() -> None:
    """Raises `KeyboardInterrupt` if a signal has come, again where that was lost before."""
    if _State.asked:
        signal.alarm(0)
        raise KeyboardInterrupt


def end_with_input() -> None:
    """Have this process get SIGTERM at the end of its standard input.

    That is a pipe from the process that started it, and ends with that one, however it does.
    """

    def wait_for_end() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=wait_for_end, daemon=True).start()


def in_own_thread(work: Callable[[], T], meanwhile: Callable[[], None] = lambda: None) -> T:
    """Run work in a thread of its own, and wait for it in this one, which handles signals.

    A signal does not wait for the work, which goes on until it ends or the process does.

    Args:
        work: Called once, in the other thread.
        meanwhile: Called in this thread every `WAKE` seconds.

    Returns:
        What the work returns.

    Raises:
        KeyboardInterrupt: A signal has come.
        Exception: Whatever the work or `meanwhile` raises.
    """
    executor = ThreadPoolExecutor(max_workers=1)
    try:
        result = executor.submit(work)
        while not wait([result], timeout=WAKE).done:
            check()
            meanwhile()
    finally:
        executor.shutdown(wait=False)
    return result.result()


def leave(code: int) -> NoReturn:
    """Ends the process; after a signal without waiting for a thread that still computes."""
    if _State.asked:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    gc.freeze()  # else Python's last collection would go through all modules, to find nothing
    sys.exit(code)
