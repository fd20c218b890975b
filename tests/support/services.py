"""Real servers: PostgreSQL, MLflow's own, and MLflow's of a model."""

import ipaddress
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from cryptography.x509.oid import NameOID

PATIENCE = 240  # seconds that a server may take to answer


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def programs_of_postgresql() -> Path:
    """Return the folder of PostgreSQL's programs, which Debian does not put on the PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if found := shutil.which("initdb", path=os.pathsep.join([*map(str, places), os.defpath])):
        return Path(found).parent
    pytest.skip("needs PostgreSQL's server: apt install postgresql")


class Server:
    """A server at an address, which can be killed and restarted there with its data."""

    def __init__(
        self, address: str, command: list, answers: Callable[[str], None], **options
    ) -> None:
        self.address, self._command, self._answers = address, command, answers
        self._options = options

    def start(self) -> None:
        """Start the server, and return when it answers."""
        self._process = subprocess.Popen(
            self._command,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            **self._options,
        )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self._answers(self.address)
            except (psycopg.OperationalError, requests.RequestException):
                assert self._process.poll() is None, "the server has ended"
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.2)

    def kill(self) -> None:
        """Kill it at once, with all processes that it has started."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """Stop it regularly."""
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(self._process.pid, signal.SIGINT)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    @contextmanager
    def running(self) -> Iterator["Server"]:
        """Start it, and stop it at the end; print its output after a failure."""
        with tempfile.TemporaryFile("w+") as self._log:
            try:
                self.start()
                yield self
            except BaseException:
                self._log.seek(0)
                print(self._log.read()[-20_000:])
                raise
            finally:
                self.stop()


@contextmanager
def postgresql() -> Iterator[Server]:
    """Start an empty database, and yield its URL."""
    programs = programs_of_postgresql()
    # It refuses to run as root, so that its files are another user's and lie where that one can go
    other = {"user": "postgres"} if os.geteuid() == 0 else {}
    folder, port = Path(tempfile.mkdtemp(prefix="pg")), free_port()
    if other:
        shutil.chown(folder, "postgres")
    initialise = [programs / "initdb", "-D", folder / "data", "-U", "pneumo", "-A", "trust"]
    subprocess.run(initialise, check=True, capture_output=True, **other)
    options = ["-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    command = [programs / "postgres", "-D", folder / "data", *options]
    url = f"postgresql://pneumo@127.0.0.1:{port}/postgres"
    try:
        with Server(
            url, command, lambda url: psycopg.connect(url).close(), **other
        ).running() as server:
            yield server
    finally:
        shutil.rmtree(folder)


def mlflow_server(
    store: str, artifacts: Path, workers: int = 1, authority: "Authority | None" = None
) -> AbstractContextManager[Server]:
    """Start `mlflow server` with its artifact proxy, optionally behind TLS."""
    port = free_port()
    where = ["--backend-store-uri", store, "--artifacts-destination", str(artifacts)]
    command = [sys.executable, "-m", "mlflow", "server", *where]
    command += ["--port", str(port), "--workers", str(workers)]
    if authority:
        keys = f"--ssl-keyfile {authority.server} --ssl-certfile {authority.server}"
        command += ["--uvicorn-opts", keys]
    # The server's job queue is not used here and would take a third of a core
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    address = f"http{'s' if authority else ''}://127.0.0.1:{port}"
    verify = authority.own if authority else True
    return Server(address, command, partial(_healthy, verify=verify), env=environment).running()


class Authority:
    """Files of a private certificate authority: its own certificate, and two that it has signed.

    `own` is its certificate. `server`, for 127.0.0.1, and `client` also contain their keys.
    """

    def __init__(self, folder: Path) -> None:
        self._key, self._name = ec.generate_private_key(ec.SECP256R1()), _named("an authority")
        self.own, self.server, self.client = (
            folder / f"{name}.pem" for name in ("own", "server", "client")
        )
        authority = x509.BasicConstraints(ca=True, path_length=None)
        self.own.write_bytes(self._signed(self._name, self._key, authority))
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        for file in (self.server, self.client):
            key = ec.generate_private_key(ec.SECP256R1())
            secret = key.private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            names = x509.SubjectAlternativeName([address])
            file.write_bytes(secret + self._signed(_named(file.stem), key, names))

    def _signed(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, extension: Any) -> bytes:
        now, key_id = datetime.now(UTC), x509.SubjectKeyIdentifier.from_public_key
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(extension, critical=True)
            .add_extension(key_id(key.public_key()), critical=False)
            .add_extension(issuer, critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def mlflow_ui(command: str, folder: Path) -> AbstractContextManager[Server]:
    """Run the command that opens MLflow's pages, in a folder, at a free port."""
    port = free_port()
    words = [sys.executable, "-m", *shlex.split(command), "--port", str(port)]
    # By default four processes serve, each of which imports MLflow
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_WORKERS": "1"}
    environment = {**os.environ, **settings}
    address = f"http://127.0.0.1:{port}"
    return Server(address, words, _healthy, cwd=folder, env=environment).running()


@contextmanager
def git_daemon(folder: Path) -> Iterator[str]:
    """Serve the bare repositories in a folder by Git's own server."""
    port = free_port()
    options = [f"--base-path={folder}", "--export-all", "--reuseaddr", "--listen=127.0.0.1"]
    command = ["git", "daemon", *options, f"--port={port}"]

    def answers(_: str) -> None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError as error:
            raise requests.ConnectionError from error

    address = f"git://127.0.0.1:{port}"
    with Server(address, command, answers).running():
        yield address


def model_server(python: Path, model: str, folder: Path) -> AbstractContextManager[Server]:
    """Run `mlflow models serve` with another environment's Python."""
    port = free_port()
    command = [str(python), "-m", "mlflow", "models", "serve", "-m", model, "-p", str(port)]
    environment = {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    command += ["--env-manager", "local"]
    address = f"http://127.0.0.1:{port}"
    return Server(address, command, _healthy, cwd=folder, env=environment).running()


def _healthy(address: str, verify: Path | bool = True) -> None:
    requests.get(f"{address}/health", timeout=5, verify=verify).raise_for_status()
