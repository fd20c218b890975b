"""Passwords open the stores of a study, and the study writes them nowhere."""

import base64
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import mlflow
import optuna
import psycopg
import pytest

from pneumo.commands.tune import tune_and_register
from pneumo.experiment import Experiment
from pneumo.runtime.errors import StudyFailedError, UserError, redact_passwords
from pneumo.tracking import runs, session
from pneumo.tuning.spec import StudySpec
from pneumo.tuning.storage import open_storage
from tests.support.commands import run_here
from tests.support.files import contents_of
from tests.support.services import free_port, mlflow_server, postgresql
from tests.support.stores import begin_store, closed_connections
from tests.support.studies import BASE, SMALL, TINY, text

USER, PASSWORD = "warden", "p@ss/w:rd-4711"  # of the database
READER, WORD = "reader", "Sesame & 0815"  # of MLflow's server


def _basic(user: str, password: str) -> str:
    """Encode credentials as HTTP does."""
    return base64.b64encode(f"{user}:{password}".encode()).decode()


SECRETS = [
    form.encode()
    for user, secret in ((USER, PASSWORD), (READER, WORD))
    for form in (secret, quote(secret, safe=""), _basic(user, secret))
]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("at postgresql://me:a1%40b@here/x: no", "at postgresql://me:***@here/x: no"),
        ("http://me:a/b:c@here:5000/x", "http://me:***@here:5000/x"),
        ("'http://:a1@here'", "'http://:***@here'"),
        (
            "postgresql://here/x?user=me&password=a1&x=2",
            "postgresql://here/x?user=me&password=***&x=2",
        ),
        (
            "http://127.0.0.1:5000/#/runs and models:/a@b",
            "http://127.0.0.1:5000/#/runs and models:/a@b",
        ),
        ("postgresql://me@here/x", "postgresql://me@here/x"),
    ],
)
def test_credentials_in_urls_are_hidden(said, shown):
    assert redact_passwords(said) == shown
    assert str(UserError(said)) == shown


def test_an_error_message_is_one_line_without_control_characters():
    assert str(UserError("got 'a\r\n\x1b[2Jb'  c")) == "got 'a \\x1b[2Jb'  c"


def test_part_of_a_password_is_not_used_as_the_host(monkeypatch):
    monkeypatch.setenv("PNEUMO_STORAGE", "postgresql://me:half@other@127.0.0.1:1/x")
    with pytest.raises(UserError, match="must be a database URL with at most one @") as raised:
        open_storage()
    assert "half" not in str(raised.value)
    assert "other" not in str(raised.value)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """Return the URL of a database that requires a password."""
    with postgresql() as server:
        with psycopg.connect(server.address, autocommit=True) as own:
            own.execute(f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'")
            own.execute(f"GRANT ALL ON SCHEMA public TO {USER}")
            [rules] = own.execute("SHOW hba_file").fetchone()
            file = Path(rules)
            file.write_text(f"host all {USER} 127.0.0.1/32 scram-sha-256\n{file.read_text()}")
            own.execute("SELECT pg_reload_conf()")
        yield server.address


@pytest.fixture
def without_credentials(monkeypatch) -> Iterator[None]:
    """Forget at the end at which server MLflow was, and with which password."""
    for name in ("USERNAME", "PASSWORD"):  # which are set on the way
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    mlflow.set_tracking_uri(None)
    yield
    mlflow.set_tracking_uri(None)


def _with(address: str, user: str, password: str) -> str:
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{user}:{quote(password, safe='')}@{rest.rpartition('@')[2]}"


def _tables(address: str) -> bytes:
    """Return the whole content of a database."""
    with psycopg.connect(address) as own:
        names = own.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        ).fetchall()
        rows = [own.execute(f'SELECT * FROM "{name}"').fetchall() for (name,) in names]
    return repr(rows).encode()


def leaks(written: dict[str, bytes]) -> list[str]:
    return [
        where for where, content in written.items() if any(secret in content for secret in SECRETS)
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("without_plots")
def test_a_study_writes_no_password_anywhere(
    database, tmp_path, own_cache, monkeypatch, without_credentials, capfd
):
    begin_store(tmp_path / "server.db", "mlflow-artifacts:/0")
    with (
        mlflow_server(f"sqlite:///{tmp_path}/server.db", tmp_path / "artifacts") as server,
        closed_connections(),
    ):
        monkeypatch.setenv("PNEUMO_STORAGE", _with(database, USER, PASSWORD))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", _with(server.address, READER, WORD))
        monkeypatch.chdir(tmp_path)
        # with this limit it is a process of its own that works on the study
        goal = ["--trials", "1", "--study", "quiet", "--epochs", "1", "--trial_timeout", "100"]
        code, output, errors = run_here("tune", *goal, *SMALL)
    assert (code, errors) == (0, "")
    output += "".join(capfd.readouterr())
    written = {"output": output.encode(), "tables": _tables(database)} | dict(contents_of(tmp_path))
    assert leaks(written) == []
    # and all of it has been looked at
    for where, known in {
        "output": f"{server.address}/#/experiments/".encode(),
        "tables": b"quiet",
        "server.db": b"quiet",
        "study.html": server.address.encode(),
        "model.keras: config.json": b"backbone",
        "pixels.npy": b"NUMPY",
    }.items():
        found = [content for name, content in written.items() if name.endswith(where)]
        assert found, where
        assert any(known in content for content in found), where


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://ghp_4711@host/x.git#y", "https://host/x.git#y"),
        ("http://me:a1%40b@host/x", "http://host/x"),
        ("https://host/a@b", "https://host/a@b"),
        ("ssh://git@host/x", "ssh://git@host/x"),
        ("/here/it@is", "/here/it@is"),
    ],
)
def test_a_run_that_is_called_by_a_git_address(store, monkeypatch, given, kept):
    run = store.create_run("0", tags={"mlflow.source.name": given})
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)  # as `mlflow run` does
    with runs.command_run("train", "", {}):
        pass
    assert store.get_run(run.info.run_id).data.tags["mlflow.source.name"] == kept


@pytest.mark.slow
def test_a_wrong_password_is_reported_without_the_password(database, store, monkeypatch):
    with psycopg.connect(database) as own:  # the right one is asked for
        own.execute("SELECT 1")
    monkeypatch.setenv("PNEUMO_STORAGE", _with(database, USER, f"{PASSWORD}-not"))
    code, output, errors = run_here("tune")
    assert code == 2
    assert (
        "must be the URL of a database that can be opened: got postgresql://warden:***@" in errors
    )
    assert f'password authentication failed for user "{USER}"' in errors
    assert errors.count("\n") == 1
    assert leaks({"errors": errors.encode(), "output": output.encode()}) == []


class _Guard(BaseHTTPRequestHandler):
    def do_GET(self):
        allowed = self.headers.get("Authorization") == f"Basic {_basic(READER, WORD)}"
        self.send_response(200 if allowed else 401)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def guarded(without_credentials) -> Iterator[str]:
    """Return the address of a server that requires a password."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Guard) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_password_of_mlflows_server_leaves_the_address(guarded):
    mlflow.set_tracking_uri(_with(guarded, READER, WORD))
    session.connect()
    assert mlflow.get_tracking_uri() == guarded == session.tracking_address()


def test_a_server_that_does_not_know_the_password(guarded):
    mlflow.set_tracking_uri(_with(guarded, READER, f"{WORD}-not"))
    with pytest.raises(UserError) as raised:
        session.connect()
    assert str(raised.value) == (
        f"MLflow's server at {guarded} requires a valid user and password. Set "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
    )


@pytest.mark.slow
def test_an_error_with_a_url_is_stored_without_its_password(store, sample, tmp_path, capsys):
    address = _with(f"postgresql://127.0.0.1:{free_port()}/x", USER, PASSWORD)

    def failing(trial, base):
        if isinstance(trial._trial, optuna.Trial):
            raise RuntimeError(f"cannot reach {address}")
        return TINY.suggest(trial, base)

    spec = StudySpec(Experiment("tiny", BASE, failing), sample, {})
    with pytest.raises(StudyFailedError) as stopped:
        tune_and_register(spec, trials=2, model_name="none", name="s")
    shown = f"cannot reach postgresql://{USER}:***@127.0.0.1:"
    assert shown in str(stopped.value)
    output = capsys.readouterr()
    assert f"failed: RuntimeError: {shown}" in output.out
    [study] = store.search_runs(["0"], "tags.`pneumo.kind` = 'study'")
    assert shown in text(study.info.run_id, "study/study.html")
    assert shown in text(study.info.run_id, "traceback.txt")
    written = dict(contents_of(tmp_path)) | {"said": repr(output).encode()}
    assert leaks(written) == []
