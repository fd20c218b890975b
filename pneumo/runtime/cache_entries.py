"""Entries of the cache: which ones are in use, their sizes, and the disk budget.

An entry is a folder that is created and removed as a whole. It contains the pixels of a data set at
one size, the features of one view at one cut, an unpacked archive, and so on. A process that uses
an entry holds a shared lock on a file in it. The kernel releases the lock when the process ends,
even after kill -9. So an entry is unused if its exclusive lock can be acquired.
"""

import fcntl
import os
import re
import shutil
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from pneumo.runtime.errors import UserError

GIB = 2**30
DEFAULT_GIB = "20"

# Files in an entry that are not part of its content. The index of a data set ignores them, since
# they are hidden
OWN_PREFIX = ".pneumo-"
IN_USE = f"{OWN_PREFIX}in-use"
DOWNLOADED = f"{OWN_PREFIX}downloaded"  # marks an entry that only a download can restore

GROUPS = ("archives", "features", "perturbed", "pixels")  # folders of entries
RUNS = "features"  # the group that also contains the entries of single runs
DOWNLOADS = "downloads"  # an entry outside the groups, like the sample

# PNEUMO_CACHE may be a folder with the user's own files, so only names of these forms are removed
KEY = re.compile(r"[0-9a-f]{64}")
RUN = re.compile(r"run-[0-9a-f]{32}")
LONE = re.compile(rf"{DOWNLOADS}|sample-\d+")
DRAFT = re.compile(r"\..+\.[0-9a-f]{32}\.draft")

_held: dict[Path, int] = {}  # entry → descriptor of this process's shared lock
_holding = threading.Lock()


def cache_path(name: str) -> Path:
    """Return the path of `name` in the cache: `PNEUMO_CACHE`, by default `~/.cache/pneumo`."""
    return Path(os.environ.get("PNEUMO_CACHE") or "~/.cache/pneumo").expanduser() / name


def is_own(file: Path) -> bool:
    """Return whether a file in an entry belongs to the cache, not to the entry's content."""
    return file.name.startswith(OWN_PREFIX)


def hold(entry: Path) -> bool:
    """Mark an entry as used by this process, until `release` or the end of the process.

    The call waits for a process that is removing the entry. Read the entry's files only after this
    call, because before it another process may remove them at any time. The entry's time of last
    use becomes the present.

    Returns:
        Whether the entry exists.
    """
    with _holding:
        for stale in [path for path, lock in _held.items() if not _is_current(lock, path)]:
            os.close(_held.pop(stale))
        if entry not in _held:
            descriptor = _open(entry)
            if descriptor is None:  # a read-only disk, from which no process can remove it
                return entry.is_dir()
            with suppress(OSError):  # some network disks have no locks
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            if not _is_current(descriptor, entry):
                os.close(descriptor)
                return False
            _held[entry] = descriptor
    with suppress(OSError):  # a read-only disk
        os.utime(entry)
    return True


def release(entry: Path) -> None:
    """Undo `hold`; do nothing if this process does not hold the entry."""
    with _holding:
        if entry in _held:
            os.close(_held.pop(entry))


def make_held(folder: Path) -> Path:
    """Create a folder if it does not exist, and hold it."""
    folder.mkdir(parents=True, exist_ok=True)
    while not hold(folder):  # another process removed it before it was held
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def make_draft(folder: Path) -> Path:
    """Create an empty folder next to `folder`, held by this process; `publish` renames it."""
    return make_held(folder.with_name(f".{folder.name}.{uuid4().hex}.draft"))


def publish(draft: Path, folder: Path) -> None:
    """Rename a draft to its final path; this process holds it without a gap.

    Args:
        draft: Folder that `make_draft` returned.
        folder: Final path of the entry.
    """
    draft.rename(folder)
    with _holding:
        if draft in _held:
            _held[folder] = _held.pop(draft)


@contextmanager
def run_folder() -> Iterator[str]:
    """Create a folder in the cache for a single run, and remove it at the end of the block.

    Yields:
        Name of the folder in the cache.
    """
    folder = make_held(cache_path(RUNS) / f"run-{uuid4().hex}")
    try:
        yield f"{RUNS}/{folder.name}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        release(folder)


def _open(entry: Path) -> int | None:
    """Open the lock file of an entry; return None if it is missing and cannot be created."""
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        with suppress(OSError):
            return os.open(entry / IN_USE, flags, 0o666)  # other users of the cache lock it, too
    return None


def _is_current(descriptor: int, entry: Path) -> bool:
    """Return whether an open lock file is the entry's present one, not a removed one."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(entry / IN_USE))
    except OSError:
        return False


@contextmanager
def _unused(entry: Path) -> Iterator[bool]:
    """Yield whether no process uses an entry; until the end of the block none can start to."""
    # Some network disks grant one process both locks. Closing this one would release the shared one
    descriptor = None if entry in _held else _open(entry)
    if descriptor is None:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = _is_current(descriptor, entry)
    except OSError:
        free = False
    try:
        yield free
    finally:
        os.close(descriptor)


def _remove(entry: Path) -> bool:
    """Remove an entry unless a process uses it; return whether it is gone.

    The entry is renamed first, so that it disappears at once and not file by file.
    """
    with _unused(entry) as unused:
        if unused:
            remains = entry.with_name(f".{entry.name}.{uuid4().hex}.draft")
            with suppress(OSError):
                entry.rename(remains)
            shutil.rmtree(remains, ignore_errors=True)
        return unused and not entry.exists()


def remove_leftovers() -> None:
    """Remove what killed processes left: half-built entries and folders of single runs."""
    for group in ("", *GROUPS):
        for folder in _folders(cache_path(group)):
            in_runs = group == RUNS and RUN.fullmatch(folder.name)
            if in_runs or DRAFT.fullmatch(folder.name):
                _remove(folder)


def _folders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []


def _sizes() -> dict[Path, int]:
    """Return the bytes of each entry, in the order of eviction."""
    entries = [folder for folder in _folders(cache_path("")) if LONE.fullmatch(folder.name)]
    entries = [folder for folder in entries if (folder / IN_USE).exists()]
    for group in GROUPS:
        entries += [folder for folder in _folders(cache_path(group)) if KEY.fullmatch(folder.name)]
    entries += [folder for folder in _folders(cache_path(RUNS)) if RUN.fullmatch(folder.name)]
    rows = []
    for entry in entries:
        with suppress(FileNotFoundError):  # another process may have evicted it
            is_download = entry.name == DOWNLOADS or (entry / DOWNLOADED).exists()
            rows.append((is_download, entry.stat().st_mtime_ns, entry, _size(entry)))
    return {entry: size for *_, entry, size in sorted(rows)}


def _size(entry: Path) -> int:
    size = 0
    for folder, _, files in os.walk(entry):  # skips folders that were removed
        for file in files:
            with suppress(FileNotFoundError):
                # For thousands of files, making each `Path` would take longer than reading its size
                size += os.lstat(os.path.join(folder, file)).st_size
    return size


def limit() -> int:
    """Return the maximum size of the cache in bytes.

    `PNEUMO_CACHE_GIB` sets it in GiB, by default 20. If it is not set, its older name
    `PNEUMO_FEATURES` counts.

    Raises:
        UserError: The value is not a whole number of 0 or more.
    """
    name = "PNEUMO_CACHE_GIB" if os.environ.get("PNEUMO_CACHE_GIB") else "PNEUMO_FEATURES"
    text = os.environ.get(name) or DEFAULT_GIB
    if not text.isdecimal():
        raise UserError(f"{name} must be a non-negative integer (GiB): got '{text}'")
    return int(text) * GIB


def _allowed(used: int) -> int:
    """Return the bytes that all entries may use: up to the limit, and half of the free disk."""
    cache_path("").mkdir(parents=True, exist_ok=True)
    return min(limit(), used + shutil.disk_usage(cache_path("")).free // 2)


def available_bytes(names: Collection[str]) -> int:
    """Return the bytes that the entries `names` may use, whether they exist already or not.

    These are all allowed bytes, less those of other entries that processes use.
    """
    sizes, own_entries = _sizes(), {cache_path(name) for name in names}
    in_use = 0
    for entry in sizes.keys() - own_entries:
        with _unused(entry) as unused:
            in_use += 0 if unused else sizes[entry]
    return max(0, _allowed(sum(sizes.values())) - in_use)


def evict_least_recently_used(needed: int) -> None:
    """Remove the least recently used (LRU) entries until `needed` more bytes are within the budget.

    Entries in use stay, and downloads are removed last. If that does not suffice, the budget is
    exceeded, because the caller cannot do without the new entry.
    """
    remove_leftovers()
    sizes = _sizes()
    excess = sum(sizes.values()) + needed - _allowed(sum(sizes.values()))
    for entry, size in sizes.items():
        if excess <= 0:
            return
        if _remove(entry):
            excess -= size
