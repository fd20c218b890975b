"""Checksums of the files in a folder of the cache.

A disk that has lost its power, or is failing, may keep a file's name and size and lose its bytes.
So a folder keeps the checksums of its files, and its first use after a boot verifies them. A marker
in the folder then saves later uses from reading all files again.
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
VERIFIED = f"{OWN_PREFIX}verified.json"  # the marker: what `_state` returned when all was verified

CHUNK = 2**22  # bytes

_verified: dict[Path, dict[str, Any]] = {}  # as in the markers, what this process has verified


def seal(folder: Path) -> None:
    """Write the checksums of a folder's files, and all of it to the disk.

    After that `is_intact` is true, and no loss of power can change it.

    Raises:
        OSError: The disk is full or fails, or the folder was removed.
    """
    found = _checksums(folder)
    (folder / CHECKSUMS).write_text(json.dumps(found))
    files = [folder / name for name in (*found, CHECKSUMS)]
    for path in (*files, *{file.parent for file in files}):
        sync(path)
    _mark(folder, _state(folder))


def is_intact(folder: Path) -> bool:
    """Return whether a folder's files have the checksums that `seal` wrote.

    They are read if the marker is missing, or says another boot, size or time of modification than
    there is now, and after that not again before the next boot. Where the cache is read-only there
    is no new marker, and on systems without an id of the boot none is valid: there each process
    reads them once. A folder without readable checksums is not intact.
    """
    try:
        state = _state(folder)
        if _verified.get(folder) == state:
            return True
        if not (state["boot_id"] and _read(folder / VERIFIED) == state):
            if _read(folder / CHECKSUMS) != _checksums(folder):
                return False
            _mark(folder, state)
    except OSError:  # somebody removes it, or the disk does not return its bytes
        return False
    _verified[folder] = state
    return True


def sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # as some network disks answer for folders
            raise
    finally:
        os.close(descriptor)


def _files(folder: Path) -> list[Path]:
    """Return the files that a build has made, those in subfolders too."""
    found = (it for it in folder.rglob("*") if not is_own(it))
    return sorted(it for it in found if it.is_file())


def _state(folder: Path) -> dict[str, Any]:
    """Return what changes when a file does, unless the machine has failed meanwhile."""
    states = {it.relative_to(folder).as_posix(): it.stat() for it in _files(folder)}
    files = {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()}
    return {"boot_id": ProcessId.current().boot_id, "files": files}


def _checksums(folder: Path) -> dict[str, list[int]]:
    return {it.relative_to(folder).as_posix(): _checksum(it) for it in _files(folder)}


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
    """Return what a JSON file holds, None if it is missing or broken."""
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
