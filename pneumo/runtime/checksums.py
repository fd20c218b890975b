"""Checksums of the files in a folder of the cache.

After a power failure, or on a failing disk, a file may keep its name and size but lose its bytes.
So a folder stores the checksums of its files, and its first use after a boot verifies them. A
marker in the folder then saves later uses from reading all files again.
"""

import errno
import json
import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from pneumo.runtime import signals
from pneumo.runtime.cache_entries import OWN_PREFIX, is_own
from pneumo.runtime.process import ProcessId

CHECKSUMS = f"{OWN_PREFIX}checksums.json"  # path of a file → its size in bytes and its CRC-32
VERIFIED = f"{OWN_PREFIX}verified.json"  # the marker: `_state` at the time of the verification

CHUNK = 2**22  # bytes

_verified: dict[Path, dict[str, Any]] = {}  # folder → `_state` that this process has verified


def seal(folder: Path) -> None:
    """Write the checksums of a folder's files, and flush all of it to the disk.

    After that `is_intact` returns True, even after a power failure.

    Raises:
        OSError: The disk is full or fails, or the folder was removed.
    """
    checksums = _checksums(folder)
    (folder / CHECKSUMS).write_text(json.dumps(checksums))
    files = [folder / name for name in (*checksums, CHECKSUMS)]
    for path in (*files, *{file.parent for file in files}):
        sync(path)
    _mark(folder, _state(folder))


def is_intact(folder: Path) -> bool:
    """Return whether a folder's files have the checksums that `seal` wrote.

    The files are read if the marker is missing, or if its boot, sizes or modification times differ
    from the present ones. After that they are not read again before the next boot. On a read-only
    disk no marker can be written, and without a boot id none is valid: there each process reads the
    files once. A folder without readable checksums is not intact.
    """
    try:
        state = _state(folder)
        if _verified.get(folder) == state:
            return True
        if not (state["boot_id"] and _read(folder / VERIFIED) == state):
            if _read(folder / CHECKSUMS) != _checksums(folder):
                return False
            _mark(folder, state)
    except OSError:  # another process removes it, or the disk cannot read it
        return False
    _verified[folder] = state
    return True


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network disks raise it for folders
            raise
    finally:
        os.close(descriptor)


def _files(folder: Path) -> list[Path]:
    """Return the files that a build has made, including those in subfolders."""
    paths = (path for path in folder.rglob("*") if not is_own(path))
    return sorted(path for path in paths if path.is_file())


def _state(folder: Path) -> dict[str, Any]:
    """Return the values that change if a file changes, unless the machine has failed meanwhile."""
    states = {file.relative_to(folder).as_posix(): file.stat() for file in _files(folder)}
    files = {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()}
    return {"boot_id": ProcessId.current().boot_id, "files": files}


def _checksums(folder: Path) -> dict[str, list[int]]:
    return {file.relative_to(folder).as_posix(): _checksum(file) for file in _files(folder)}


def _checksum(file: Path) -> list[int]:
    """Return a file's size in bytes and its CRC-32."""
    size = checksum = 0
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            signals.raise_if_interrupted()
            size += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
    return [size, checksum]


def _read(file: Path) -> Any:
    """Return the content of a JSON file, or None if it is missing or broken."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def _mark(folder: Path, state: dict[str, Any]) -> None:
    """Write the marker in one step, so that no process reads half of it."""
    draft = folder / f"{VERIFIED}.{uuid4().hex}"
    with suppress(OSError):  # a read-only or full disk; the next process verifies again
        draft.write_text(json.dumps(state))
        draft.replace(folder / VERIFIED)
