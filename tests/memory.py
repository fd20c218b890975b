"""Memory of this process, and memory that it has freed and still has."""

import os

import pytest


def anonymous_memory() -> float:
    """In MiB; memory-mapped files are no part of it."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs Linux, to read how much memory is in use")
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024


def hold_freed_memory(mebibytes: int) -> bytes:
    """Have the allocator hold so much freed memory, as long as what is returned is kept."""
    pieces = [bytes(1 << 16) for _ in range(16 * mebibytes)]
    return pieces.pop()  # which lies above the others
