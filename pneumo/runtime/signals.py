"""Ctrl-C and SIGTERM, heard where nothing is broken by it.

An exception out of a signal handler comes up wherever the main thread is: amid what it says to a
database it leaves that locked, and in a destructor or in a function that TensorFlow traces it can
be lost. A signal is therefore kept for the next `raise_if_interrupted`, and training, of which a
compiled function lets nothing in for half a minute, has a thread of its own, for which the main one
waits.
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
DEBOUNCE_SECONDS = 10
MAX_DELAY_SECONDS = 3  # after which a signal is raised wherever the main thread is
POLL_SECONDS = 0.5  # between two looks for a signal while the main thread waits


class _State:
    """A process has one set of signal handlers, and so one state."""

    asked = False  # a signal has come
    deaf_until = 0.0  # on the monotonic clock


def install_handlers() -> None:
    """Turn both signals into a `KeyboardInterrupt`.

    The next `raise_if_interrupted` raises it, or an alarm after `MAX_DELAY_SECONDS`.
    """
    signal.alarm(0)
    _State.asked, _State.deaf_until = False, 0.0
    signal.signal(signal.SIGALRM, _on_alarm)
    for number in SIGNALS:
        signal.signal(number, _on_signal)


def _on_signal(*_: object) -> None:
    if time.monotonic() < _State.deaf_until:
        return
    _State.deaf_until = time.monotonic() + DEBOUNCE_SECONDS
    if _State.asked:  # who asks again is not to wait
        raise KeyboardInterrupt
    _State.asked = True
    signal.alarm(MAX_DELAY_SECONDS)


def _on_alarm(*_: object) -> None:
    raise KeyboardInterrupt


def raise_if_interrupted() -> None:
    """Raises `KeyboardInterrupt` if a signal has come, again where that was lost before."""
    if _State.asked:
        signal.alarm(0)
        raise KeyboardInterrupt


def terminate_with_stdin() -> None:
    """Have this process get SIGTERM at the end of its standard input.

    That is a pipe from the process that started it, and ends with that one, however it does.
    """

    def wait_for_end() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=wait_for_end, daemon=True).start()


def run_in_thread(work: Callable[[], T], meanwhile: Callable[[], None] = lambda: None) -> T:
    """Run work in a thread of its own, and wait for it in this one, which handles signals.

    A signal does not wait for the work, which goes on until it ends or the process does.

    Args:
        work: Called once, in the other thread.
        meanwhile: Called in this thread every `POLL_SECONDS` seconds.

    Returns:
        What the work returns.

    Raises:
        KeyboardInterrupt: A signal has come.
        Exception: Whatever the work or `meanwhile` raises.
    """
    executor = ThreadPoolExecutor(max_workers=1)
    try:
        result = executor.submit(work)
        while not wait([result], timeout=POLL_SECONDS).done:
            raise_if_interrupted()
            meanwhile()
    finally:
        executor.shutdown(wait=False)
    return result.result()


def exit_process(code: int) -> NoReturn:
    """Ends the process; after a signal without waiting for a thread that still computes."""
    if _State.asked:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    gc.freeze()  # else Python's last collection would go through all modules, to find nothing
    sys.exit(code)
