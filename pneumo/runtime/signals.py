"""Handling of Ctrl-C (SIGINT) and SIGTERM at points of the code that an interrupt cannot break.

An exception raised in a signal handler can interrupt the main thread anywhere. Inside a database
transaction it leaves the database locked. Inside a destructor, or in a function that TensorFlow
traces, it can be lost. So a signal is stored until the next `raise_if_interrupted`. A compiled
function can delay a signal by half a minute. So training runs in a thread of its own, for which
the main thread waits.
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

# `mlflow run` sends another signal after the terminal's own one. It must not interrupt the clean-up
# that the first one has started.
DEBOUNCE_SECONDS = 10
MAX_DELAY_SECONDS = 3  # after which a signal interrupts the main thread anywhere
POLL_SECONDS = 0.5  # between two checks for a signal while the main thread waits


class _State:
    """State of the signal handlers, of which a process has one set."""

    requested = False  # whether a signal has arrived
    ignore_until = 0.0  # on the monotonic clock; signals before it are ignored


def install_handlers() -> None:
    """Turn both signals into a `KeyboardInterrupt`.

    The next `raise_if_interrupted` raises it, or an alarm after `MAX_DELAY_SECONDS`.
    """
    signal.alarm(0)
    _State.requested, _State.ignore_until = False, 0.0
    signal.signal(signal.SIGALRM, _on_alarm)
    for number in SIGNALS:
        signal.signal(number, _on_signal)


def _on_signal(*_: object) -> None:
    if time.monotonic() < _State.ignore_until:
        return
    _State.ignore_until = time.monotonic() + DEBOUNCE_SECONDS
    if _State.requested:  # a second signal interrupts at once
        raise KeyboardInterrupt
    _State.requested = True
    signal.alarm(MAX_DELAY_SECONDS)


def _on_alarm(*_: object) -> None:
    raise KeyboardInterrupt


def raise_if_interrupted() -> None:
    """Raise `KeyboardInterrupt` if a signal has arrived.

    Every later call raises it again, in case an earlier exception was lost.
    """
    if _State.requested:
        signal.alarm(0)
        raise KeyboardInterrupt


def terminate_with_stdin() -> None:
    """Send SIGTERM to this process at the end of its standard input.

    Standard input is a pipe from the parent process, and is closed when the parent ends in any way.
    """

    def wait_for_end() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=wait_for_end, daemon=True).start()


def run_in_thread(function: Callable[[], T], meanwhile: Callable[[], None] = lambda: None) -> T:
    """Run `function` in a thread, and wait for it in the calling thread, which handles signals.

    A signal does not wait for the work. The work continues until it or the process ends.

    Args:
        function: Called once, in the other thread.
        meanwhile: Called in the calling thread every `POLL_SECONDS` seconds.

    Returns:
        What `function` returns.

    Raises:
        KeyboardInterrupt: A signal has arrived.
        Exception: Whatever `function` or `meanwhile` raises.
    """
    executor = ThreadPoolExecutor(max_workers=1)
    try:
        future = executor.submit(function)
        while not wait([future], timeout=POLL_SECONDS).done:
            raise_if_interrupted()
            meanwhile()
    finally:
        executor.shutdown(wait=False)
    return future.result()


def exit_process(code: int) -> NoReturn:
    """End the process; after a signal, do not wait for threads that still compute."""
    if _State.requested:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    gc.freeze()  # spares Python a last collection of all modules, which frees nothing
    sys.exit(code)
