"""Disk cache of folders that are built once and appear complete or not at all."""

import errno
import functools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from filelock import FileLock, Timeout

from pneumo.runtime.cache_entries import (
    OWN_PREFIX,
    cache_path,
    evict_least_recently_used,
    hold,
    make_draft,
    publish,
    release,
    remove_leftovers,
)
from pneumo.runtime.checksums import is_intact, seal, sync
from pneumo.runtime.console import echo
from pneumo.runtime.errors import UserError

SILENT_WAIT_SECONDS = 1.0  # a longer wait for another process prints a line
DISK_FULL_ERRNOS = errno.ENOSPC, errno.EDQUOT  # of a full disk and of an exhausted quota


def get_or_build(name: str, build: Callable[[Path], None], verify: bool = True) -> Path:
    """Return the folder `name` of the cache, and build it if it does not exist.

    The folder is built next to its final path and then renamed, so a killed or failed build leaves
    nothing that is used later. If several processes need the same folder, one builds it and the
    others wait. No process removes the folder until this one ends or passes it to `release`.

    Args:
        name: Path of the folder in the cache.
        build: Called with an empty folder, which it fills.
        verify: Whether the files get checksums, so that a damaged folder is detected and built
            again. They are verified once per boot: see `checksums.is_intact`.

    Returns:
        The complete folder, held by this process.

    Raises:
        UserError: The disk is full, or the cache was deleted during the build.
    """
    folder = cache_path(name)
    _tidy(cache_path(""))
    if _is_whole(folder, verify):
        return folder
    with lock(name) as file_lock:
        if not _is_whole(folder, verify):
            _build(folder, build, verify)
        # Waiting processes will find the complete folder, so nothing needs the lock file now
        Path(file_lock.lock_file).unlink(missing_ok=True)
    return folder


@functools.cache  # once per cache and process
def _tidy(_: Path) -> None:
    remove_leftovers()


def _is_whole(folder: Path, verify: bool) -> bool:
    # Hold the folder before the check, since until then another process may remove it
    if hold(folder) and (not verify or is_intact(folder)):
        return True
    release(folder)
    return False


def _build(folder: Path, build: Callable[[Path], None], verify: bool) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # damaged, or made by an older version
    draft = make_draft(folder)
    # Sentinel: if it is gone, the draft was deleted during the build. `build` may have created the
    # folder again, but without the earlier files
    mark = draft / f"{OWN_PREFIX}{uuid4().hex}"
    try:
        mark.touch()
        build(draft)
        if verify:
            seal(draft)
        mark.unlink()
        publish(draft, folder)
        sync(folder.parent)
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise _disk_full_error(folder, error) from None
        if error.errno == errno.ENOENT and is_in_cache(error.filename):
            raise cache_deleted_error() from None
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        release(draft)


def is_in_cache(path: str | Path | None) -> bool:
    """Return whether a path is in the cache; None is not."""
    return path is not None and Path(path).is_relative_to(cache_path(""))


def cache_deleted_error() -> UserError:
    """Build the error for a file that disappeared from the cache while it was in use."""
    return UserError(
        f"the cache at {cache_path('')} was deleted while it was in use. Run the same command "
        "again."
    )


def _disk_full_error(folder: Path, error: OSError) -> UserError:
    group = folder.relative_to(cache_path("")).parts[0]
    return UserError(
        f"the cache needs more disk space than is free at {cache_path('')} ({error.strerror} for "
        f"{group}). Free some space, or set PNEUMO_CACHE to a folder on a larger disk."
    )


def require_space(folder: Path, size: int) -> None:
    """Make room for a file of `size` bytes in `folder`.

    Entries are evicted within the budget: see `evict_least_recently_used`. The check comes before
    the work is done, and before the file takes space that other programs need.

    Args:
        folder: Folder in the cache that will contain the file.
        size: Bytes of the file.

    Raises:
        OSError: The disk still has fewer than `size` bytes free.
    """
    evict_least_recently_used(size)
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_at(file: BinaryIO, data: bytes, offset: int) -> None:
    """Write bytes at a position in a file; several threads may do so at the same time.

    A full disk raises `OSError` here. A write to a memory map would kill the process with SIGBUS
    instead. Only allocated space prevents that, and macOS has no function to allocate it.

    Args:
        file: Open for writing, with an empty buffer.
        data: Bytes to write; all of them are written.
        offset: Bytes from the start of the file.

    Raises:
        OSError: The disk is full.
    """
    while data:  # a disk that is almost full writes only some of the bytes, without an error
        written = os.pwrite(file.fileno(), data, offset)
        data, offset = data[written:], offset + written


@contextmanager
def lock(name: str, timeout: float = -1) -> Iterator[FileLock]:
    """Hold a lock between the processes that share the cache.

    Args:
        name: Name of what is locked.
        timeout: Seconds to wait for the lock. If negative, the wait has no limit, and a line is
            printed after `SILENT_WAIT_SECONDS`.

    Yields:
        The acquired lock.

    Raises:
        filelock.Timeout: Another process still holds the lock after `timeout` seconds.
    """
    file = cache_path("locks") / f"{name.replace('/', '-')}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    file_lock = FileLock(file)
    try:
        file_lock.acquire(SILENT_WAIT_SECONDS if timeout < 0 else timeout)
    except Timeout:
        if timeout >= 0:
            raise
        echo(f"waiting for another process that holds the cache lock '{name.partition('/')[0]}'")
        file_lock.acquire()
    try:
        yield file_lock
    finally:
        file_lock.release()
