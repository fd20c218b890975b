"""Identity of a process, by which another process checks whether it still runs."""

import json
import os
import socket
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Self

import psutil

ENDED_STATES = ("zombie", "dead")  # of psutil; a zombie has ended, and its parent does not know it


class ProcessId(NamedTuple):
    """Identity of a process that neither a reboot nor a reused process id can duplicate.

    Attributes:
        host: Name of the machine or container. It may change while the process runs.
        boot_id: Random id of this boot of the machine, '' on systems without one.
        pid_namespace: Linux namespace that `pid` belongs to, '' on systems without namespaces.
        pid: Process id.
        start_hash: psutil's hash of `pid` and the start of the process. '' if there was no such
            process.
    """

    host: str
    boot_id: str = ""
    pid_namespace: str = ""
    pid: int = 0
    start_hash: str = ""

    @classmethod
    def from_pid(cls, pid: int) -> Self:
        """Return the identity of a process of this machine."""
        return cls(socket.gethostname(), _boot_id(), _pid_namespace(), pid, _start_hash(pid))

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
        if not self.start_hash or (self.boot_id, self.pid_namespace) != current:
            return False
        return _start_hash(self.pid) == self.start_hash

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


def _start_hash(pid: int) -> str:
    """Return a process's `start_hash`, or '' if it does not exist or has ended.

    psutil's `create_time` is in the system's clock, so it changes when that is set. The hash of its
    `Process` does not, and is the same in all processes with this version of Python and psutil.
    """
    try:
        process = psutil.Process(pid)
        return "" if process.status() in ENDED_STATES else str(hash(process))
    except psutil.Error:
        return ""
