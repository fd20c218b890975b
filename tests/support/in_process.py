"""Programs that would run in processes of their own, run in this one, which has the libraries."""

import os
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from unittest.mock import patch

import mlflow
import uvicorn
from mlflow.pyfunc import scoring_server
from mlflow.tracking import fluent

from pneumo.__main__ import main
from tests.support.services import free_port
from tests.support.studies import until


@contextmanager
def python_in_this_process() -> Iterator[None]:
    """Let `subprocess.run` run Python in this process, and all other programs as always.

    A process of its own would import TensorFlow and MLflow, which takes seconds. A program has its
    own arguments and variables here, too, and what it does to MLflow's client is undone.
    """
    start = subprocess.run

    def run(command: Sequence[str], **options) -> subprocess.CompletedProcess:
        if command[0] != sys.executable:
            return start(command, **options)
        return _run_here(command[1:], **options)

    with patch.object(subprocess, "run", run):
        yield


def _run_here(
    words: Sequence[str],
    env: Mapping[str, str] | None = None,
    stdout: int | None = None,
    text: bool = False,
    check: bool = False,
) -> subprocess.CompletedProcess:
    assert text or stdout != subprocess.PIPE, "what a program prints is text here"
    output = StringIO()
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, os.environ if env is None else env, clear=True))
        stack.enter_context(_own_client())
        if stdout is not None:
            stack.enter_context(redirect_stdout(output))
        code = exit_code(*words)
    if check and code:
        raise subprocess.CalledProcessError(code, words)
    return subprocess.CompletedProcess(words, code, output.getvalue())


@contextmanager
def _own_client() -> Iterator[None]:
    """Give MLflow's client the store of the environment and no experiment, and undo both."""
    before = mlflow.get_tracking_uri()
    with patch.object(fluent, "_active_experiment_id", None):
        mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
        try:
            yield
        finally:
            mlflow.set_tracking_uri(before)


def exit_code(option: str, program: str, *arguments: str) -> object:
    """Return the exit code of a program, given as Python takes it: `-m MODULE …` or `-c CODE …`."""
    with patch.object(sys, "argv", [program, *arguments]):
        try:
            if (option, program) == ("-m", "pneumo"):
                return main()
            if option == "-m":
                runpy.run_module(program, run_name="__main__")
            else:
                exec(program, {"__name__": "__main__"})
        except SystemExit as ended:
            return ended.code or 0
    return 0


@contextmanager
def model_server_here(_: Path, model: str, __: Path) -> Iterator[SimpleNamespace]:
    """Serve a model in a thread, by MLflow's own application; in place of `model_server`."""
    port = free_port()
    application = scoring_server.init(mlflow.pyfunc.load_model(model))
    quiet = {"log_config": None, "log_level": "error", "ws": "none"}
    server = uvicorn.Server(uvicorn.Config(application, port=port, **quiet))
    thread = Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        assert server.started
        yield SimpleNamespace(address=f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join()
