"""What is made once and kept: folders that appear whole or not at all."""

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pneumo.errors import Mistake

DRAFT = ".draft"


def place(name: str) -> Path:
    """Where `name` is in the cache: `PNEUMO_CACHE`, by default `~/.cache/pneumo`."""
    return Path(os.environ.get("PNEUMO_CACHE") or "~/.cache/pneumo").expanduser() / name


def keep(
    name: str, build: Callable[[Path], None], whole: Callable[[Path], bool] = Path.is_dir
) -> Path:
    """The folder `name` of the cache, built by `build(folder)` if it is not there yet.

    What `whole(folder)` denies is built again. It is built beside its place and renamed, so that
    a killed or failed build leaves nothing that is later believed. Of several processes that ask
    for the same folder at once, one builds and the others wait. Raises `Mistake` where the disk
    is full.
    """
    folder = place(name)
    with lock(name) as held:
        if not whole(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            draft = folder.with_name(f".{folder.name}{DRAFT}")
            for left in (folder, draft):  # by a process that was killed, or a disk that failed
                shutil.rmtree(left, ignore_errors=True)
            draft.mkdir()
            try:
                build(draft)
                draft.rename(folder)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise Mistake(
                    f"the cache needs more disk than is free at {place('')} ({error.strerror} for "
                    f"{name.partition('/')[0]}): free some, or set PNEUMO_CACHE to a larger disk"
                ) from None
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        Path(held.lock_file).unlink(missing_ok=True)  # who waits for it will find the folder whole
    return folder


def sweep(name: str) -> None:
    """Removes what killed processes have left half-built in the folder `name` of the cache."""
    for draft in place(name).rglob(f".*{DRAFT}"):
        folder = draft.with_name(draft.name.removeprefix(".").removesuffix(DRAFT))
        built = folder.relative_to(place("")).as_posix()
        with suppress(Timeout), lock(built, timeout=0):  # who builds holds the lock
            shutil.rmtree(draft, ignore_errors=True)


def lock(name: str, timeout: float = -1) -> FileLock:
    """A lock between the processes that share the cache, to be held by `with`.

    `timeout`: seconds to wait for it, without end below 0; then `filelock.Timeout` is raised.
    """
    file = place("locks") / f"{name.replace('/', '-')}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(file, timeout)
