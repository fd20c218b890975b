"""Whether a process still runs."""

import os
import subprocess
from pathlib import Path

from pneumo.runtime.process import ProcessId, _boot_id
from tests.support.commands import ended_process
from tests.support.studies import until


def test_a_process_that_nobody_has_waited_for_has_ended():
    process = subprocess.Popen(["true"])
    identity = ProcessId.from_pid(process.pid)
    until(lambda: not identity.is_running())
    assert Path(f"/proc/{process.pid}").exists()  # a zombie
    process.wait()


def test_a_process_that_began_later_has_a_later_start():
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        later = ProcessId.from_pid(process.pid)
        process.stdin.close()
    assert int(later.start_time) > int(ProcessId.current().start_time) > 0


def test_a_process_without_proc(monkeypatch):
    monkeypatch.setattr("pneumo.runtime.process.Path.read_text", raise_missing)
    monkeypatch.setattr("pneumo.runtime.process.os.readlink", raise_missing)
    _boot_id.cache_clear()
    here = ProcessId.current()
    ended = ended_process()
    states = here.is_running(), here._replace(start_time="1").is_running(), ended.is_running()
    _boot_id.cache_clear()
    assert here[1:4] == ("", "", os.getpid())
    assert states == (True, False, False)


def raise_missing(*_: object) -> None:
    raise FileNotFoundError
