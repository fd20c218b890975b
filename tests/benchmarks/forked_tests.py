"""Runs of pytest that begin where the libraries are imported already, which takes seconds.

`mutations` starts this file in a copy of the project. It reads a line of JSON for each run, the
arguments of pytest and a file for the output, and answers with a line: pytest's exit code, or
`null` if it took too long. Nothing of the project is imported here, so that each run reads it anew.
"""

import importlib
import json
import os
import signal
import sys
import time
import warnings
from contextlib import suppress

import pytest

# TensorFlow is none of them: it must not be forked
LIBRARIES = (
    *("numpy", "pandas", "PIL.Image", "scipy.optimize", "scipy.special", "scipy.stats"),
    *("sklearn.metrics", "optuna", "mlflow", "mlflow.store.tracking.sqlalchemy_store"),
    *("mlflow.store.model_registry.sqlalchemy_store", "matplotlib.figure", "pydantic"),
)
LIMIT = 600  # seconds that a run may take


def in_fork(arguments: list[str], output: str) -> int | None:
    """Run pytest in a process of its own; return its exit code, or None if it took too long."""
    process = os.fork()
    if not process:
        try:
            os.setsid()
            for descriptor in (1, 2):
                os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            code = pytest.main(arguments)
            sys.stdout.flush()
            os._exit(code)
        finally:  # not so far
            os._exit(pytest.ExitCode.INTERNAL_ERROR)
    deadline = time.monotonic() + LIMIT
    try:
        while time.monotonic() < deadline:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        return None
    finally:  # nothing that a test has started outlives it
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(process, 0)


def serve() -> None:
    """Answer until the input ends."""
    sys.path.insert(0, os.getcwd())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in LIBRARIES:
            importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(in_fork(*json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
