"""Ctrl-C and SIGTERM, heard at once.

An exception out of a signal handler comes up wherever the main thread is: in a destructor or in a
function that TensorFlow traces it can be lost, and a compiled function of a large network lets
nothing in for half a minute. Training therefore has a thread of its own, and the main one waits.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

# After the terminal's own signal `mlflow run` sends another, which must not break into the
# clean-up that the first has started.
GRACE = 10  # seconds
WAKE = 0.5  # seconds after which who waits for another thread looks for signals


class _State:
    """A process has one set of signal handlers, and so one state."""

    asked = False  # a signal has come
    deaf_until = 0.0  # on the monotonic clock


def install() -> None:
    """Makes both signals a `KeyboardInterrupt`."""
    _State.asked, _State.deaf_until = False, 0.0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _handle)


def _handle(*_: object) -> None:
    if time.monotonic() < _State.deaf_until:
        return
    _State.deaf_until = time.monotonic() + GRACE
    _State.asked = True
    raise KeyboardInterrupt


def check() -> None:
    """Raises `KeyboardInterrupt` if a signal has come, so that a lost one comes up again."""
    if _State.asked:
        raise KeyboardInterrupt


class Abandoned(Exception):
    """Ends work that nobody waits for any more."""


def in_own_thread(work: Callable[[Callable[..., None]], T], hear: Callable[..., None]) -> T:
    """What `work(tell)` returns or raises; it runs in a thread, this one waits.

    `tell(…)` calls `hear(…)` in this thread and waits for it. When `hear` raises, or a signal
    comes, that leaves here, and `tell`, also with nothing to tell, raises `Abandoned` there. Only
    a signal does not wait until the work has ended.
    """
    told, heard, abandoned = SimpleQueue(), SimpleQueue(), Event()

    def tell(*news: Any) -> None:
        if news:
            told.put(news)
            heard.get()
        if abandoned.is_set():
            raise Abandoned

    thread = ThreadPoolExecutor(max_workers=1)
    try:
        result = thread.submit(work, tell)
        result.add_done_callback(lambda _: told.put(None))
        while news := _next(told):
            check()
            hear(*news)
            heard.put(True)
    except BaseException as error:
        abandoned.set()
        heard.put(True)
        thread.shutdown(wait=isinstance(error, Exception))
        raise
    thread.shutdown()
    return result.result()


def _next(told: SimpleQueue) -> Any:
    """What comes next. A signal that the system gave to another thread wakes nobody who waits."""
    while True:
        try:
            return told.get(timeout=WAKE)
        except Empty:
            check()


def leave(code: int) -> NoReturn:
    """Ends the process; after a signal without waiting for a thread that still computes."""
    if _State.asked:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
