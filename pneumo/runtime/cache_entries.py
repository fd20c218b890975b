"""The entries of the cache: which ones a process uses, their size, and the disk budget.

An entry is a folder that is made and removed as a whole: the pixels of a data set at one size, the
features of one view at one cut, an unpacked archive, and so on. A process that uses an entry holds
a shared lock on a file in it. The kernel releases the lock with the process, also after kill -9, so
an entry whose exclusive lock can be had is used by nobody.
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

# Files in an entry that are no part of its content. The index of a data set ignores hidden files
OWN_PREFIX = ".pneumo-"
IN_USE = f"{OWN_PREFIX}in-use"
DOWNLOADED = f"{OWN_PREFIX}downloaded"  # marks what only a download brings back

GROUPS = ("archives", "features", "perturbed", "pixels")  # folders of entries
RUNS = "features"  # the group that also has entries of a single run, removed at its end
DOWNLOADS = "downloads"  # an entry that is no part of a group; so is the sample

# A user may set PNEUMO_CACHE to a folder with other files: only what is surely ours is removed
KEY = re.compile(r"[0-9a-f]{64}")
RUN = re.compile(r"run-[0-9a-f]{32}")
LONE = re.compile(rf"{DOWNLOADS}|sample-\d+")
DRAFT = re.compile(r"\..+\.[0-9a-f]{32}\.draft")

_held: dict[Path, int] = {}  # the descriptors of this process's shared locks
_holding = threading.Lock()


def cache_path(name: str) -> Path:
    """Return where `name` is in the cache: `PNEUMO_CACHE`, by default `~/.cache/pneumo`."""
    return Path(os.environ.get("PNEUMO_CACHE") or "~/.cache/pneumo").expanduser() / name


def is_own(file: Path) -> bool:
    """Return whether a file in an entry is the cache's, and no part of the entry's content."""
    return file.name.startswith(OWN_PREFIX)


def hold(entry: Path) -> bool:
    """Mark an entry as used by this process, until `release` or the end of the process.

    Waits for a process that is removing it. Look at its files only after this: before, another
    process may remove them at any time. Its time of last use becomes the present.

    Returns:
        Whether the entry is there.
    """
    with _holding:
        for gone in [it for it, lock in _held.items() if not _is_current(lock, it)]:
            os.close(_held.pop(gone))
        if entry not in _held:
            descriptor = _open(entry)
            if descriptor is None:  # on a read-only disk, where nobody can remove it either
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
    """Undo `hold`; nothing happens if the process does not hold the entry."""
    with _holding:
        if entry in _held:
            os.close(_held.pop(entry))


def make_held(folder: Path) -> Path:
    """Make a folder if it is not there, and hold it."""
    folder.mkdir(parents=True, exist_ok=True)
    while not hold(folder):  # another process has found it before it was held, and removed it
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def make_draft(folder: Path) -> Path:
    """Make an empty folder next to `folder`, held by this process; `publish` renames it."""
    return make_held(folder.with_name(f".{folder.name}.{uuid4().hex}.draft"))


def publish(draft: Path, folder: Path) -> None:
    """Rename a draft to its place, where this process holds it without a gap."""
    draft.rename(folder)
    with _holding:
        if draft in _held:
            _held[folder] = _held.pop(draft)


@contextmanager
def run_folder() -> Iterator[str]:
    """Make a folder in the cache for a single run, removed at its end; gives its name."""
    folder = make_held(cache_path(RUNS) / f"run-{uuid4().hex}")
    try:
        yield f"{RUNS}/{folder.name}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        release(folder)


def _open(entry: Path) -> int | None:
    """Open the file that is locked; None if it is not there and cannot be made."""
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        with suppress(OSError):
            return os.open(entry / IN_USE, flags, 0o666)  # others who share the cache lock it, too
    return None


def _is_current(descriptor: int, entry: Path) -> bool:
    """Return whether an open file is the one that stands for the entry, not a removed one."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(entry / IN_USE))
    except OSError:
        return False


@contextmanager
def _unused(entry: Path) -> Iterator[bool]:
    """Give whether no process uses an entry; until the end of the block none can begin to."""
    # Some network disks would grant a process both locks, and drop the other with this one
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
    """Remove an entry unless a process uses it; it disappears at once, never file by file."""
    with _unused(entry) as unused:
        if unused:
            remains = entry.with_name(f".{entry.name}.{uuid4().hex}.draft")
            with suppress(OSError):
                entry.rename(remains)
            shutil.rmtree(remains, ignore_errors=True)
        return unused and not entry.exists()


def remove_leftovers() -> None:
    """Remove what killed processes have left: half-built entries and the folders of their runs."""
    for group in ("", *GROUPS):
        for folder in _folders(cache_path(group)):
            in_runs = group == RUNS and RUN.fullmatch(folder.name)
            if in_runs or DRAFT.fullmatch(folder.name):
                _remove(folder)


def _folders(folder: Path) -> list[Path]:
    try:
        return [it for it in folder.iterdir() if it.is_dir()]
    except OSError:
        return []


def _sizes() -> dict[Path, int]:
    """Return the bytes of each entry, in the order in which they make room."""
    entries = [it for it in _folders(cache_path("")) if LONE.fullmatch(it.name)]
    entries = [it for it in entries if (it / IN_USE).exists()]
    for group in GROUPS:
        entries += [it for it in _folders(cache_path(group)) if KEY.fullmatch(it.name)]
    entries += [it for it in _folders(cache_path(RUNS)) if RUN.fullmatch(it.name)]
    found = []
    for entry in entries:
        with suppress(FileNotFoundError):  # another process may make room, too
            dear = entry.name == DOWNLOADS or (entry / DOWNLOADED).exists()
            found.append((dear, entry.stat().st_mtime_ns, entry, _size(entry)))
    return {entry: size for *_, entry, size in sorted(found)}


def _size(entry: Path) -> int:
    size = 0
    for folder, _, files in os.walk(entry):  # passes over folders that have gone
        for file in files:
            with suppress(FileNotFoundError):
                size += os.lstat(Path(folder, file)).st_size
    return size


def limit() -> int:
    """Return the bytes that the cache may take: `PNEUMO_CACHE_GIB`, in GiB, by default 20.

    If it is not set, `PNEUMO_FEATURES` counts, its older name. Raises `UserError` for anything but
    a whole number of 0 or more.
    """
    name = "PNEUMO_CACHE_GIB" if os.environ.get("PNEUMO_CACHE_GIB") else "PNEUMO_FEATURES"
    text = os.environ.get(name) or DEFAULT_GIB
    if not text.isdecimal():
        raise UserError(f"{name} must be a whole number of GiB, 0 or more: got '{text}'")
    return int(text) * GIB


def _allowed(used: int) -> int:
    """Return the bytes that all entries may take: within the limit, half of the free disk stays."""
    cache_path("").mkdir(parents=True, exist_ok=True)
    return min(limit(), used + shutil.disk_usage(cache_path("")).free // 2)


def available_bytes(names: Collection[str]) -> int:
    """Return the bytes that the entries `names` may take, which are made already or not.

    Those are all bytes that are allowed, less what processes use of other entries.
    """
    sizes, mine = _sizes(), {cache_path(name) for name in names}
    others = 0
    for entry in sizes.keys() - mine:
        with _unused(entry) as unused:
            others += 0 if unused else sizes[entry]
    return max(0, _allowed(sum(sizes.values())) - others)


def evict_least_recently_used(needed: int) -> None:
    """Remove the least recently used entries until `needed` more bytes are within the budget.

    Entries that a process uses stay, and downloads are the last to go. If that does not suffice,
    the budget is exceeded: who calls this cannot do without what it makes.
    """
    remove_leftovers()
    sizes = _sizes()
    excess = sum(sizes.values()) + needed - _allowed(sum(sizes.values()))
    for entry, size in sizes.items():
        if excess <= 0:
            return
        if _remove(entry):
            excess -= size
