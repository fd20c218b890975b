"""Whether a process still runs."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pneumo.runtime.process import ProcessId, _boot_id
from tests.support.commands import ended_process
from tests.support.paths import ROOT
from tests.support.studies import until


def test_a_process_that_nobody_has_waited_for_has_ended():
    process = subprocess.Popen(["true"])
    identity = ProcessId.from_pid(process.pid)
    until(lambda: not identity.is_running())
    assert Path(f"/proc/{process.pid}").exists()  # a zombie
    process.wait()


def test_each_process_has_an_identity_of_its_own_which_all_processes_see():
    code = f"from pneumo.runtime.process import ProcessId; print(ProcessId.from_pid({os.getpid()}))"
    command = [sys.executable, "-c", code]
    seen = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert seen.stdout == f"{ProcessId.current()}\n"
    assert ProcessId.current().start_hash != ProcessId.from_pid(os.getppid()).start_hash


def test_a_clock_that_is_set_does_not_end_a_process(monkeypatch):
    here, started = ProcessId.current(), psutil.Process().create_time()
    boot_time = psutil.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot_time + 5)
    assert psutil.Process().create_time() == pytest.approx(started + 5)
    assert here.is_running()
    assert ProcessId.current() == here


def test_a_process_of_a_system_without_boot_ids_and_namespaces(monkeypatch):
    monkeypatch.setattr("pneumo.runtime.process.Path.read_text", raise_missing)
    monkeypatch.setattr("pneumo.runtime.process.os.readlink", raise_missing)
    _boot_id.cache_clear()
    here = ProcessId.current()
    ended = ended_process()
    states = here.is_running(), here._replace(start_hash="1").is_running(), ended.is_running()
    _boot_id.cache_clear()
    assert here[1:4] == ("", "", os.getpid())
    assert states == (True, False, False)


def raise_missing(*_: object) -> None:
    raise FileNotFoundError
