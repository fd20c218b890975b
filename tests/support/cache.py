"""Entries of the cache that tests make."""

import os
from pathlib import Path

import pytest

from pneumo.runtime import cache
from pneumo.runtime.cache_entries import release


def make(name: str, size: int = 1000, used: int | None = None) -> Path:
    """Make an entry that no process uses, in the cache under that name."""
    entry = cache.get_or_build(name, lambda draft: (draft / "data").write_bytes(os.urandom(size)))
    release(entry)
    if used is not None:
        os.utime(entry, (used, used))
    return entry


def keep(name: str) -> Path:
    """Return an existing entry; it must not be built."""
    return cache.get_or_build(name, pytest.fail)
