"""MLflow's server behind TLS, with a certificate of a private authority."""

import os

import mlflow
import pytest

from pneumo.runtime.errors import UserError
from pneumo.tracking import session
from pneumo.tuning.launchers import ray
from tests.support.commands import run, run_here
from tests.support.http_server import serving
from tests.support.services import Authority, mlflow_server
from tests.support.stores import begin_store

INSECURE = "MLFLOW_TRACKING_INSECURE_TLS"
ADVICE = (
    f"Set {session.SERVER_CERTIFICATE} to the file of its certificate authority, and "
    f"{session.CLIENT_CERTIFICATE} to your certificate. Or set {INSECURE}=true to turn "
    "verification off."
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def settings(authority, tmp_path, monkeypatch):
    """Set variables of MLflow to the files of these names."""
    (tmp_path / "words.pem").write_text("words")

    def set_all(**variables: str) -> None:
        for name in (session.SERVER_CERTIFICATE, session.CLIENT_CERTIFICATE, INSECURE):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            file = getattr(authority, value, tmp_path / value)
            monkeypatch.setenv(name, "true" if value == "true" else str(file))

    return set_all


@pytest.mark.parametrize("asks", [False, True], ids=["open to all", "asks for a certificate"])
def test_the_first_request_uses_the_same_client(authority, settings, asks):
    with serving({"/version": b"3"}) as server:
        server.encrypt(authority.server, authority.own if asks else None)
        mlflow.set_tracking_uri(server.address)
        own = {session.CLIENT_CERTIFICATE: "client"} if asks else {}
        for trust in ({session.SERVER_CERTIFICATE: "own"}, {INSECURE: "true"}):
            settings(**trust, **own)
            session.connect()
    mlflow.set_tracking_uri(None)
    assert [path for path, _ in server.requests] == ["/version"] * 2


@pytest.mark.parametrize(
    ("variables", "asks", "reason"),
    [
        ({}, False, "certificate verify failed: unable to get local issuer certificate"),
        (
            {session.SERVER_CERTIFICATE: "client"},
            False,
            "certificate verify failed: unable to get local issuer certificate",
        ),
        ({session.SERVER_CERTIFICATE: "own"}, True, None),
        ({INSECURE: "true"}, True, None),
        ({session.SERVER_CERTIFICATE: "words.pem"}, False, "NO_CERTIFICATE_OR_CRL_FOUND"),
        ({session.SERVER_CERTIFICATE: "none.pem"}, False, None),
        ({session.CLIENT_CERTIFICATE: "none.pem"}, False, None),
        ({session.SERVER_CERTIFICATE: "own", INSECURE: "true"}, False, None),
    ],
)
def test_an_untrusted_certificate_is_reported_in_one_line(
    authority, settings, tmp_path, variables, asks, reason
):
    settings(**variables)
    with serving({"/version": b"3"}) as server:
        server.encrypt(authority.server, authority.own if asks else None)
        mlflow.set_tracking_uri(server.address)
        with pytest.raises(UserError) as raised:
            session.connect()
    mlflow.set_tracking_uri(None)
    said = str(raised.value)
    if reason:
        begins = f"MLflow's server at {server.address} must have a trusted certificate"
        assert said.startswith(begins)
        assert reason in said
        assert said.endswith(ADVICE)
    elif asks:  # of which the server need not say anything before it hangs up
        assert f"{server.address} " in said
        assert f"set {session.CLIENT_CERTIFICATE}" in said or ADVICE in said
    elif len(variables) == 1:
        [name] = variables
        file = tmp_path / "none.pem"
        assert said == f"{name} must be the path of a certificate: '{file}' does not exist"
    else:
        assert INSECURE in said
        assert session.SERVER_CERTIFICATE in said
        assert said.endswith("only one of these environment variables may be set.")
    assert server.requests == []


@pytest.mark.slow
def test_commands_at_a_server_with_its_own_certificate(
    authority, settings, folder, tmp_path, monkeypatch
):
    (folder / "train" / "NORMAL" / "IM-9999-0001.jpeg").write_bytes(b"no image")
    begin_store(tmp_path / "server.db", "mlflow-artifacts:/0")
    store = f"sqlite:///{tmp_path}/server.db"
    prepare = ["prepare", "--data", str(folder), "--image_size", "32"]
    with mlflow_server(store, tmp_path / "artifacts", authority=authority) as server:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        settings(**{INSECURE: "true"})
        code, _, errors = run(*prepare)
        assert (code, errors) == (0, "")  # no warning with each request either
        mlflow.set_tracking_uri(server.address)
        settings(**{session.SERVER_CERTIFICATE: "own"})
        code, _, errors = run_here(*prepare)
        assert (code, errors) == (0, "")
        settings()
        code, _, errors = run_here(*prepare)
        assert code == 2
        assert errors.endswith(f"{ADVICE}\n")
        assert errors.count("\n") == 1
        mlflow.set_tracking_uri(None)
    runs = mlflow.MlflowClient(store).search_runs(["0"])
    kinds = [(run.data.tags["pneumo.kind"], run.info.status) for run in runs]
    assert kinds == [("prepare", "FINISHED")] * 2
    [one, other] = (tmp_path / "artifacts").rglob("unreadable.csv")
    assert one.read_text() == other.read_text() != ""


def test_a_cluster_gets_what_opens_the_stores_and_nothing_else(monkeypatch):
    passed = {
        "PNEUMO_STORAGE": "postgresql://me@here/x",
        "MLFLOW_TRACKING_USERNAME": "me",
        "MLFLOW_TRACKING_PASSWORD": "mine",
        "MLFLOW_TRACKING_TOKEN": "t",
        "MLFLOW_TRACKING_INSECURE_TLS": "true",
        "MLFLOW_TRACKING_SERVER_CERT_PATH": "/shared/own.pem",
        "MLFLOW_TRACKING_CLIENT_CERT_PATH": "/shared/client.pem",
        "MLFLOW_TRACKING_AWS_SIGV4": "true",
        "REQUESTS_CA_BUNDLE": "/shared/all.pem",
        "MLFLOW_S3_ENDPOINT_URL": "https://minio",
        "MLFLOW_S3_IGNORE_TLS": "true",
        "MLFLOW_S3_UPLOAD_EXTRA_ARGS": "{}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_SESSION_TOKEN": "c",
        "AWS_DEFAULT_REGION": "d",
        "AZURE_STORAGE_CONNECTION_STRING": "e",
        "AZURE_STORAGE_ACCESS_KEY": "f",
        "GOOGLE_APPLICATION_CREDENTIALS": "/shared/google.json",
        "MLFLOW_GCS_UPLOAD_CHUNK_SIZE": "1",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "true",
    }
    kept = {
        "MLFLOW_RUN_ID": "of the driver",
        "MLFLOW_EXPERIMENT_ID": "7",
        "CUDA_VISIBLE_DEVICES": "0",
        "PNEUMO_CACHE": "/of/this/machine",
        "PATH": os.defpath,
        "HOME": "/of/this/machine",
        "LAWS_": "",
    }
    for name in [name for name in os.environ if name.startswith(ray.STORE_VARIABLES)]:
        monkeypatch.delenv(name)
    for name, value in {**passed, **kept}.items():
        monkeypatch.setenv(name, value)
    mlflow.set_tracking_uri("https://here")
    assert ray.store_variables() == {**passed, "MLFLOW_TRACKING_URI": "https://here"}
    mlflow.set_tracking_uri(None)
