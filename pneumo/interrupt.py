"""Ctrl-C and SIGTERM, at moments that can bear them.

An exception out of a signal handler can come up where nobody can catch it (a destructor, a
function that TensorFlow traces) and is lost: the process would run on. In training a signal
therefore waits for `check`, which also brings up again what was lost before.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

# After the terminal's own signal `mlflow run` sends another, which must not break into the
# clean-up that the first has started.
GRACE = 10  # seconds


class _State:
    """A process has one set of signal handlers, and so one state."""

    waits = False  # inside `deferred`
    asked = False  # a signal has come
    deaf_until = 0.0  # on the monotonic clock


def install() -> None:
    """Makes both signals a `KeyboardInterrupt`."""
    _State.waits, _State.asked, _State.deaf_until = False, False, 0.0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _handle)


def _handle(*_: object) -> None:
    if time.monotonic() < _State.deaf_until:
        return
    _State.deaf_until = time.monotonic() + GRACE
    _State.asked = True
    if not _State.waits:
        raise KeyboardInterrupt


def check() -> None:
    """Raises `KeyboardInterrupt` if a signal has come, however long ago."""
    if _State.asked:
        raise KeyboardInterrupt


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, a signal waits for the next `check`; the end of the block is one."""
    _State.waits = True
    try:
        yield
    finally:
        _State.waits = False
    check()
