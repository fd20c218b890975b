"""Python as on a system that is not Linux, for each process with this folder in PYTHONPATH.

Functions that CPython documents for Linux and not for macOS are removed from its modules before any
other import. The code of pneumo finds nothing below `/proc` and `/sys`. Its dependencies do,
because their Linux versions are installed here. Each process leaves a file named by its id in the
folder `WITHOUT_LINUX`.
"""

import builtins
import errno
import fcntl
import io
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[3]
STANDARD_LIBRARY = Path(os.__file__).parent

LINUX_ONLY = {
    os: (
        *("posix_fallocate", "posix_fadvise", "fdatasync", "copy_file_range", "splice"),
        *("eventfd", "eventfd_read", "eventfd_write", "memfd_create", "pidfd_open", "pipe2"),
        *("getrandom", "getresuid", "getresgid", "setresuid", "setresgid"),
        *("getxattr", "setxattr", "listxattr", "removexattr"),
        *("sched_getaffinity", "sched_setaffinity", "sched_getparam", "sched_setparam"),
        *("sched_getscheduler", "sched_setscheduler", "sched_rr_get_interval", "sched_param"),
        *("O_DIRECT", "O_LARGEFILE", "O_NOATIME", "O_PATH", "O_RSYNC", "O_TMPFILE", "P_PIDFD"),
        *("SCHED_BATCH", "SCHED_IDLE", "SCHED_RESET_ON_FORK"),
        "EFD_",
        "GRND_",
        "MFD_",
        "POSIX_FADV_",
        "RWF_",
        "SPLICE_",
        "XATTR_",
    ),
    signal: (
        *("SIGCLD", "SIGPOLL", "SIGPWR", "SIGRTMAX", "SIGRTMIN", "SIGSTKFLT"),
        *("pidfd_send_signal", "sigtimedwait", "sigwaitinfo"),
    ),
    resource: (
        *("prlimit", "RUSAGE_THREAD", "RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_OFILE"),
        *("RLIMIT_RTPRIO", "RLIMIT_RTTIME", "RLIMIT_SIGPENDING"),
    ),
    select: ("epoll", "EPOLL"),
    fcntl: ("F_ADD_SEALS", "F_GET_SEALS", "F_GETPIPE_SZ", "F_SETPIPE_SZ", "F_OFD_", "F_NOTIFY"),
    time: ("CLOCK_BOOTTIME", "CLOCK_TAI", "pthread_getcpuclockid"),
}

HIDDEN = ("/proc", "/sys")
OPENING = {
    builtins: ("open",),
    io: ("open",),
    os: ("open", "stat", "lstat", "access", "readlink", "listdir", "scandir"),
}


def remove(module: ModuleType, names: Iterable[str]) -> None:
    """Remove attributes from a module: those of a name, and those that begin with `NAME_`."""
    for attribute in list(vars(module)):
        if any(
            attribute == name or name.isupper() and attribute.startswith(name) for name in names
        ):
            delattr(module, attribute)


def hide(module: ModuleType, name: str) -> None:
    """Make a function of a module find nothing in `HIDDEN` if pneumo calls it."""
    function: Callable[..., Any] = getattr(module, name)

    def hiding(path: Any = ".", *arguments: Any, **options: Any) -> Any:
        if _is_hidden(path) and _called_by_pneumo():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
        return function(path, *arguments, **options)

    setattr(module, name, hiding)
    for supported in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        if function in supported:
            supported.add(hiding)


def _is_hidden(path: Any) -> bool:
    if isinstance(path, int):
        return False
    return os.fsdecode(path).startswith(HIDDEN)


def _called_by_pneumo() -> bool:
    """Return whether pneumo's code, not a package's, called the standard library."""
    frame = sys._getframe(2)
    while frame:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(STANDARD_LIBRARY) and "site-packages" not in file.parts:
            frame = frame.f_back
        else:
            return file.is_relative_to(ROOT / "pneumo")
    return False


for module, names in LINUX_ONLY.items():
    remove(module, names)
for module, names in OPENING.items():
    for name in names:
        hide(module, name)
if folder := os.environ.get("WITHOUT_LINUX"):
    Path(folder, str(os.getpid())).touch()
