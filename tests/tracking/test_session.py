"""Messages about an MLflow server that does not answer."""

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from pneumo.runtime.errors import UserError
from pneumo.tracking import runs, session
from tests.support.services import free_port

PASSWORD = "open-sesame"


def test_a_run_is_missing_only_if_the_store_says_so(store, monkeypatch):
    assert not runs.run_exists("0" * 32)

    def fail(run_id):
        raise MlflowException("the server is away")

    monkeypatch.setattr(mlflow, "get_run", fail)
    with pytest.raises(MlflowException, match="the server is away"):
        runs.run_exists("0" * 32)


def test_a_server_of_mlflow_that_is_not_there(monkeypatch):
    for name in ("USERNAME", "PASSWORD"):  # which are set on the way
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    mlflow.set_tracking_uri(f"http://me:{PASSWORD}@127.0.0.1:{free_port()}")
    with pytest.raises(UserError) as raised:
        session.connect()
    assert str(raised.value).startswith(
        "MLFLOW_TRACKING_URI must be the URL of a running server: http://127.0.0.1:"
    )
    mlflow.set_tracking_uri(None)


def test_a_wait_for_mlflow_says_so(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    session.configure_mlflow()
    before = mlflow.get_tracking_uri()
    address = f"http://127.0.0.1:{free_port()}"
    mlflow.set_tracking_uri(address)
    with pytest.raises(MlflowException):
        mlflow.search_experiments()
    mlflow.set_tracking_uri(before)
    said, errors = capsys.readouterr()
    assert (said, errors) == (
        f"waiting for MLflow's server at {address}, which does not respond\n",
        "",
    )
