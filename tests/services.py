"""Servers of others, started for real: PostgreSQL, MLflow's own, and MLflow's of a model."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
import requests

PATIENCE = 90  # seconds that a server may take to answer


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _programs_of_postgresql() -> Path:
    """Debian keeps them off the PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if found := shutil.which("initdb", path=os.pathsep.join([*map(str, places), os.defpath])):
        return Path(found).parent
    pytest.skip("needs PostgreSQL's server: apt install postgresql")


@contextmanager
def postgresql() -> Iterator[str]:
    """An empty database of its own; yields its URL."""
    programs = _programs_of_postgresql()
    # It refuses to run as root, so that its files are another user's and lie where that one can go
    other = {"user": "postgres"} if os.geteuid() == 0 else {}
    folder, port = Path(tempfile.mkdtemp(prefix="pg")), free_port()
    if other:
        shutil.chown(folder, "postgres")
    initialise = [programs / "initdb", "-D", folder / "data", "-U", "pneumo", "-A", "trust"]
    subprocess.run(initialise, check=True, capture_output=True, **other)
    options = ["-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    server = subprocess.Popen(
        [programs / "postgres", "-D", folder / "data", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        **other,
    )
    url = f"postgresql://pneumo@127.0.0.1:{port}/postgres"
    try:
        _until(server, lambda: psycopg.connect(url).close(), psycopg.OperationalError)
        yield url
    finally:
        _end(server)
        shutil.rmtree(folder)


@contextmanager
def mlflow_server(store: str, artifacts: Path) -> Iterator[str]:
    """`mlflow server` with its artifact proxy; yields its address."""
    port = free_port()
    where = ["--backend-store-uri", store, "--artifacts-destination", str(artifacts)]
    command = [sys.executable, "-m", "mlflow", "server", *where]
    with _serving([*command, "--port", str(port), "--workers", "1"], port) as address:
        yield address


@contextmanager
def model_server(python: Path, model: str, folder: Path) -> Iterator[str]:
    """`mlflow models serve` by another environment's Python; yields its address."""
    port = free_port()
    command = [str(python), "-m", "mlflow", "models", "serve", "-m", model, "-p", str(port)]
    environment = {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    options = {"cwd": folder, "env": environment}
    with _serving([*command, "--env-manager", "local"], port, **options) as address:
        yield address


@contextmanager
def _serving(command: list[str], port: int, **options) -> Iterator[str]:
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, **options
        )
        try:
            _until(
                server,
                lambda: requests.get(f"{address}/health", timeout=5).raise_for_status(),
                requests.RequestException,
            )
            yield address
        except BaseException:
            log.seek(0)
            print(log.read())
            raise
        finally:
            _end(server)


def _until(server: subprocess.Popen, answers, not_yet: type[Exception]) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return answers()
        except not_yet:
            assert server.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.2)


def _end(server: subprocess.Popen) -> None:
    """Ends it with all that it has started."""
    with suppress(ProcessLookupError):  # it may have ended by itself
        os.killpg(server.pid, signal.SIGINT)
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
