"""Memory of this process."""

import os

import pytest


def anonymous_memory() -> float:
    """Return it in MiB; memory-mapped files are not part of it."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs Linux, to read how much memory is in use")
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024
