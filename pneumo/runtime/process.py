"""Identity of a process, by which another process checks whether it still runs."""

import json
import os
import socket
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Self

ENDED_STATES = ("Z", "X")  # in /proc/PID/stat: zombie (not yet reaped by its parent), dead


class ProcessId(NamedTuple):
    """Identity of a process that neither a reboot nor a reused process id can duplicate.

    Attributes:
        host: Name of the machine or container. It may change while the process runs.
        boot_id: Random id of this boot of the machine, '' on systems without one.
        pid_namespace: Linux namespace that `pid` belongs to, '' on systems without namespaces.
        pid: Process id.
        start_time: Clock ticks between boot and the start of the process, or, on systems
            without /proc, seconds since 1970. '' if there was no such process.
    """

    host: str
    boot_id: str = ""
    pid_namespace: str = ""
    pid: int = 0
    start_time: str = ""

    @classmethod
    def from_pid(cls, pid: int) -> Self:
        """Return the identity of a process of this machine."""
        return cls(socket.gethostname(), _boot_id(), _pid_namespace(), pid, _start_time(pid))

    @classmethod
    def current(cls) -> Self:
        """Return the identity of the calling process."""
        return cls.from_pid(os.getpid())

    @classmethod
    def from_values(cls, values: Sequence) -> Self:
        """Return the identity that JSON or Optuna has stored as a list.

        A list of an unknown length returns an identity that no process has.
        """
        return cls(*values) if len(values) == len(cls._fields) else cls("")

    def to_json(self) -> str:
        """Return the identity as text that `from_values(json.loads(text))` reads."""
        return json.dumps(self)

    def is_running(self) -> bool:
        """Return whether the process runs on this machine, in this container.

        The host name is not compared, because a laptop changes it with the network.
        """
        current = _boot_id(), _pid_namespace()
        if not self.start_time or (self.boot_id, self.pid_namespace) != current:
            return False
        return _start_time(self.pid) == self.start_time

    @property
    def machine(self) -> tuple[str, str, str]:
        """Host, boot and namespace.

        The host alone is not enough, because two containers may have the same name.
        """
        return self[:3]


@lru_cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_time(pid: int) -> str:
    """Return when a process started, or '' if it does not exist or has ended.

    On Linux, psutil adds the time of boot to the clock ticks. NTP changes that time, so the ticks
    are read directly if the system has /proc.
    """
    try:
        # The name of the program, in parentheses, may itself contain spaces and parentheses
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in ENDED_STATES else fields[18]
    except OSError:  # the process has ended, or the system has no /proc
        import psutil  # imported only here, because the import is slow

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.Error:
        return ""
