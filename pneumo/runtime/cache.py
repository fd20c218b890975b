"""What is made once and kept: folders that appear whole or not at all."""

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

SILENT_WAIT_SECONDS = 1.0  # seconds that a wait for another process may take before a line says so
DISK_FULL_ERRNOS = errno.ENOSPC, errno.EDQUOT  # what a disk says that has no more room


def get_or_build(name: str, build: Callable[[Path], None], verify: bool = True) -> Path:
    """Return the folder `name` of the cache, built by `build(folder)` if it is not there yet.

    It is built next to its place and renamed, so that a killed or failed build leaves nothing that
    is later used. Of several processes that ask for the same folder at once, one builds and the
    others wait. No process removes the folder before this one ends, or gives it to `release`.

    Args:
        name: Path of the folder in the cache.
        build: Fills the empty folder that it is called with.
        verify: Whether the files have checksums, by which a damaged folder is found and built
            again. They are verified once per boot: see `checksums.is_intact`.

    Raises:
        UserError: The disk is full, or the cache was deleted meanwhile.
    """
    folder = cache_path(name)
    _tidy(cache_path(""))
    if _is_whole(folder, verify):
        return folder
    with lock(name) as held:
        if not _is_whole(folder, verify):
            _build(folder, build, verify)
        # Who waits for it will find the folder whole
        Path(held.lock_file).unlink(missing_ok=True)
    return folder


@functools.cache  # once for each cache that a process uses
def _tidy(_: Path) -> None:
    remove_leftovers()


def _is_whole(folder: Path, verify: bool) -> bool:
    # Another process may remove the folder until it is held, but not between the two questions
    if hold(folder) and (not verify or is_intact(folder)):
        return True
    release(folder)
    return False


def _build(folder: Path, build: Callable[[Path], None], verify: bool) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # damaged, or made by an older version
    draft = make_draft(folder)
    mark = (
        draft / f"{OWN_PREFIX}{uuid4().hex}"
    )  # a build may make its folder again, without its files
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
    """Whether something lies in the cache."""
    return path is not None and Path(path).is_relative_to(cache_path(""))


def cache_deleted_error() -> UserError:
    """What to say where something that was in the cache has gone."""
    return UserError(
        f"the cache at {cache_path('')} was deleted while it was in use; give the same command "
        "again"
    )


def _disk_full_error(folder: Path, error: OSError) -> UserError:
    what = folder.relative_to(cache_path("")).parts[0]
    return UserError(
        f"the cache needs more disk than is free at {cache_path('')} ({error.strerror} for "
        f"{what}): free some, or set PNEUMO_CACHE to a larger disk"
    )


def require_space(folder: Path, size: int) -> None:
    """Make room for a file of `size` bytes in `folder`, which is in the cache.

    Room is made within the budget, see `evict_least_recently_used`. Raises `OSError` if the disk
    still has less free space than that. This is found before the work is done, and before the file
    takes what other programs need.
    """
    evict_least_recently_used(size)
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_at(file: BinaryIO, data: bytes, offset: int) -> None:
    """Write at a place in a file; several threads may do so at the same time.

    A full disk is an `OSError` here. A write to a memory map would kill the process with SIGBUS,
    unless the space was allocated before, for which macOS has no function.

    Args:
        file: Open for writing, with nothing left in its own buffer.
        data: What is written, all of it.
        offset: Bytes from the start of the file.
    """
    while data:  # the last bytes that fit on a disk are written without an error
        written = os.pwrite(file.fileno(), data, offset)
        data, offset = data[written:], offset + written


@contextmanager
def lock(name: str, timeout: float = -1) -> Iterator[FileLock]:
    """Hold a lock between the processes that share the cache.

    Args:
        name: What is locked.
        timeout: Seconds to wait for it. Below 0 the wait has no end, and a line says that it waits.

    Raises:
        filelock.Timeout: Another process still holds the lock.
    """
    file = cache_path("locks") / f"{name.replace('/', '-')}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(file)
    try:
        held.acquire(SILENT_WAIT_SECONDS if timeout < 0 else timeout)
    except Timeout:
        if timeout >= 0:
            raise
        echo(f"waiting for another process that works on {name.partition('/')[0]} in the cache")
        held.acquire()
    try:
        yield held
    finally:
        held.release()
