"""Optuna's database: its address, and errors if it does not open."""

import sqlite3
from contextlib import closing

import pytest

from pneumo.runtime.errors import UserError
from pneumo.tuning.storage import open_storage, storage_address
from tests.support.services import free_port

PASSWORD = "open-sesame"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            f"postgresql://me:{PASSWORD}@127.0.0.1:1/x",
            "PNEUMO_STORAGE must be the URL of a database that can be opened: "
            "got postgresql://me:***@127.0.0.1:1/x (connection failed: ",
        ),
        ("sqlite:////nowhere/optuna.db", "got sqlite:////nowhere/optuna.db (unable to open"),
        *(
            (
                url,
                "PNEUMO_STORAGE must be the URL of a database, for example postgresql://USER@HOST/",
            )
            for url in (f"me:{PASSWORD}@here", f"nosuch://me:{PASSWORD}@here/x")
        ),
    ],
)
def test_a_database_that_does_not_open(monkeypatch, url, message):
    monkeypatch.setenv("PNEUMO_STORAGE", url)
    with pytest.raises(UserError) as raised:
        open_storage()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert PASSWORD not in str(raised.value)


def test_a_database_of_another_program_is_refused(monkeypatch, tmp_path):
    file = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(file)) as database:  # as MLflow's
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES ('0584bdc529eb')")
        database.commit()
    monkeypatch.setenv("PNEUMO_STORAGE", f"sqlite:///{file}")
    with pytest.raises(UserError, match=f"can be opened: got sqlite:///{file} .The runtime optuna"):
        open_storage()


@pytest.mark.slow
def test_a_wait_for_the_database_says_so(monkeypatch, capsys):
    monkeypatch.setenv("PNEUMO_STORAGE", f"postgresql://me:{PASSWORD}@127.0.0.1:{free_port()}/x")
    with pytest.raises(UserError):
        open_storage(patience=1.2)
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(
        "waiting at most 1 s for Optuna's database at postgresql://me:***@127.0.0.1:"
    )
    assert line.endswith("/x")


def test_the_address_of_the_storage(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PNEUMO_STORAGE", raising=False)
    assert storage_address() == f"sqlite:///{tmp_path}/optuna.db"
    monkeypatch.setenv("PNEUMO_STORAGE", "postgresql://me:secret@there/x")
    assert storage_address() == "postgresql://me:***@there/x"
