"""Commands as a person runs them, and their processes."""

import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO

import mlflow
import psutil

from pneumo.__main__ import main
from pneumo.runtime.process import ProcessId
from tests.support.paths import ROOT


def start(*arguments: str, **options) -> subprocess.Popen:
    """Start a command in the current directory."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # which nobody sets who is not testing
    command = [sys.executable, "-m", "pneumo", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes, **options)


def run(*arguments: str) -> tuple[int, str, str]:
    """Return exit code, output and errors of a command."""
    process = start(*arguments)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def run_here(*arguments: str) -> tuple[int, str, str]:
    """Run a command in this process, which need not import TensorFlow again."""
    with redirect_stdout(StringIO()) as output, redirect_stderr(StringIO()) as errors:
        code = main(list(arguments))
    return code, output.getvalue(), errors.getvalue()


def mlflow_run(entry_point: str, *parameters: str) -> subprocess.Popen:
    """Run an entry point of the project as `mlflow run` starts it, in this environment."""
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", entry_point]
    flags = [word for parameter in parameters for word in ("-P", parameter)]
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    }
    return subprocess.Popen(
        [*command, "--env-manager", "local", *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processes(parent: int) -> list[int]:
    """Return the workers of a driver: its children that run the command `worker`."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(parent).children():
            with suppress(psutil.NoSuchProcess):  # it may have ended meanwhile
                if "worker" in child.cmdline():
                    found.append(child.pid)
    return found


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ended_process() -> ProcessId:
    """Return a process of this machine that has ended."""
    process = subprocess.Popen(["true"])
    identity = ProcessId.from_pid(process.pid)
    process.wait()
    return identity
