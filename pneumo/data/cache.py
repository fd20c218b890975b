"""What is made once and kept: folders that appear whole or not at all."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from filelock import FileLock, Timeout

from pneumo.console import say
from pneumo.errors import Mistake

DRAFT = ".draft"
SILENT_WAIT = 1.0  # seconds that a wait for another process may take before a line says so
TRIES = 3  # to build what somebody deletes meanwhile
FULL = errno.ENOSPC, errno.EDQUOT  # what a disk says that has no more room


def place(name: str) -> Path:
    """Where `name` is in the cache: `PNEUMO_CACHE`, by default `~/.cache/pneumo`."""
    return Path(os.environ.get("PNEUMO_CACHE") or "~/.cache/pneumo").expanduser() / name


def keep(
    name: str, build: Callable[[Path], None], whole: Callable[[Path], bool] = Path.is_dir
) -> Path:
    """The folder `name` of the cache, built by `build(folder)` if it is not there yet.

    What `whole(folder)` denies is built again. It is built beside its place and renamed, so that
    a killed or failed build leaves nothing that is later believed. Of several processes that ask
    for the same folder at once, one builds and the others wait. Whoever deletes the cache
    meanwhile has it built again. Raises `Mistake` where the disk is full, or where what it is
    built from was in the cache and has gone.
    """
    folder = place(name)
    for _ in range(TRIES):
        with lock(name) as held:
            if whole(folder) or _built(folder, build):
                # Who waits for it will find the folder whole
                Path(held.lock_file).unlink(missing_ok=True)
                return folder
    raise deleted()


def _built(folder: Path, build: Callable[[Path], None]) -> bool:
    """Builds a folder in its place; False where somebody has deleted the cache meanwhile.

    The lock is deleted with it, so that another process may build the same at the same time.
    """
    for left in (folder, *_drafts_of(folder)):  # by a process that was killed, or a bad disk
        shutil.rmtree(left, ignore_errors=True)
    token = uuid4().hex
    draft = folder.with_name(f".{folder.name}.{token}{DRAFT}")
    draft.mkdir(parents=True)
    mark = draft / token  # a build may make its folder again, and then not all is in it
    mark.touch()
    try:
        build(draft)
        mark.unlink()
        draft.rename(folder)
    except OSError as error:
        if error.errno in FULL:
            raise _full(folder, error) from None
        if not mark.is_file():
            return False
        if error.errno == errno.ENOENT and is_ours(error.filename):
            raise deleted() from None
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return True


def _drafts_of(folder: Path) -> list[Path]:
    return list(folder.parent.glob(f".{folder.name}.*{DRAFT}"))


def is_ours(path: str | Path | None) -> bool:
    """Whether something lies in the cache."""
    return path is not None and Path(path).is_relative_to(place(""))


def deleted() -> Mistake:
    """What to say where something that was in the cache has gone."""
    return Mistake(
        f"the cache at {place('')} was deleted while it was in use; give the same command again"
    )


def _full(folder: Path, error: OSError) -> Mistake:
    what = folder.relative_to(place("")).parts[0]
    return Mistake(
        f"the cache needs more disk than is free at {place('')} ({error.strerror} for {what}): "
        "free some, or set PNEUMO_CACHE to a larger disk"
    )


def require_space(folder: Path, size: int) -> None:
    """Raise `OSError` if a disk has less free space than a file of `size` bytes will take.

    That is found before the work is done, and before the file takes what other programs need.
    """
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


def folders(name: str) -> Iterator[Path]:
    """All folders below the folder `name` of the cache, which other processes make and remove."""
    for folder, below, _ in os.walk(place(name)):  # unlike `rglob` it passes over what has gone
        yield from (Path(folder, it) for it in below)


def sweep(name: str) -> None:
    """Removes what killed processes have left half-built in the folder `name` of the cache."""
    for draft in folders(name):
        if not draft.name.endswith(DRAFT):
            continue
        folder = draft.with_name(draft.name[1:].rsplit(".", 2)[0])
        built = folder.relative_to(place("")).as_posix()
        with suppress(Timeout), lock(built, timeout=0):  # who builds holds the lock
            shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def lock(name: str, timeout: float = -1) -> Iterator[FileLock]:
    """Hold a lock between the processes that share the cache.

    Args:
        name: What is locked.
        timeout: Seconds to wait for it. Below 0 the wait has no end, and a line says that it waits.

    Raises:
        filelock.Timeout: Another process still holds the lock.
    """
    file = place("locks") / f"{name.replace('/', '-')}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(file)
    try:
        held.acquire(SILENT_WAIT if timeout < 0 else timeout)
    except Timeout:
        if timeout >= 0:
            raise
        say(f"waiting for another process that works on {name.partition('/')[0]} in the cache")
        held.acquire()
    try:
        yield held
    finally:
        held.release()
