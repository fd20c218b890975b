"""MLflow's client: its configuration, its credentials, and the addresses of its pages."""

import logging
import os
import shlex
import ssl
import warnings
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import unquote, urlsplit

import mlflow
from mlflow.entities import Run
from mlflow.environment_variables import MLFLOW_RUN_ID
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy import make_url

from pneumo.runtime.console import echo
from pneumo.runtime.errors import UserError, redact_passwords

# Variables of MLflow's client: the file of authorities that it trusts, and its own certificate
SERVER_CERTIFICATE = "MLFLOW_TRACKING_SERVER_CERT_PATH"
CLIENT_CERTIFICATE = "MLFLOW_TRACKING_CLIENT_CERT_PATH"

FIRST_TIMEOUT = 30  # seconds that a server may take to answer the first request

# End of SQLAlchemy's message for a violated unique constraint: a link to its documentation
INTEGRITY_ERROR_MARK = "/gkpj)"

# Whether `mlflow run` has started this process, and created the run that MLFLOW_RUN_ID names
IS_PROJECT_RUN = MLFLOW_RUN_ID.name in os.environ


def configure_mlflow() -> None:
    """Configure MLflow: retry requests for two minutes, and hide warnings users cannot act on."""
    # A server may be away for two minutes: 4 + 8 + 16 + 32 + 64 seconds between as many tries
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "6")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # printed at the end
    # Without git there is no commit. MLflow warns of that at length in each process
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").addFilter(_announce_wait)
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*input example was not provided")
    # It comes with each request if MLFLOW_TRACKING_INSECURE_TLS turns verification off
    warnings.filterwarnings("ignore", message="Unverified HTTPS request")
    _move_credentials_to_environment()


def _announce_wait(record: logging.LogRecord) -> bool:
    """Print one line when MLflow's client begins to wait for its server, as a filter for logs.

    urllib3 warns of each try. Its warnings name neither the server nor how long the client waits.
    """
    retries = record.args[0] if record.msg.startswith("Retrying ") else None
    if retries and len(retries.history) == 1:
        echo(f"waiting for MLflow's server at {tracking_address()}, which does not respond")
    return record.levelno >= logging.ERROR


def _move_credentials_to_environment() -> None:
    """Move the user and password in the address of MLflow's server to MLflow's variables.

    The address appears in MLflow's messages, in those of pneumo, and in links.
    """
    uri = urlsplit(mlflow.get_tracking_uri())
    credentials, _, host = uri.netloc.rpartition("@")
    if not credentials or uri.scheme not in ("http", "https"):
        return
    if uri.password is not None:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(uri.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(uri.password)
    mlflow.set_tracking_uri(uri._replace(netloc=host).geturl())


def connect() -> None:
    """Configure MLflow and send a first request to its server, if there is one.

    MLflow's client sends it, with the same password, token and certificates as all other requests.
    The client does not retry, because a wrong address is not worth two minutes of retries.

    Raises:
        UserError: The server does not answer or does not know the user, or a certificate is not
            trusted.
    """
    configure_mlflow()
    uri = mlflow.get_tracking_uri()
    if not uri.startswith("http"):
        return
    for name in (SERVER_CERTIFICATE, CLIENT_CERTIFICATE):
        if (file := os.environ.get(name)) and not os.path.exists(file):
            raise UserError(f"{name} must be the path of a certificate: '{file}' does not exist")
    options = {"max_retries": 0, "timeout": FIRST_TIMEOUT, "raise_on_status": False}
    try:
        response = http_request(get_default_host_creds(uri), "/version", "GET", **options)
    except MlflowException as error:
        raise _unanswered(error) from None
    if response.status_code == HTTPStatus.UNAUTHORIZED:
        raise UserError(
            f"MLflow's server at {tracking_address()} requires a valid user and password. Set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
        )


def _unanswered(error: MlflowException) -> UserError:
    """Return the error for a request without an answer, from the error of MLflow's client."""
    reason = error.__context__
    if reason is None:  # no request was sent, because two variables conflict
        return UserError(str(error))
    inner: BaseException | None = reason
    while inner and not isinstance(inner, ssl.SSLError):
        inner = inner.__context__
    if inner:
        return UserError(
            f"MLflow's server at {tracking_address()} must have a trusted certificate, and may "
            f"require a client certificate ({inner.args[-1]}). Set {SERVER_CERTIFICATE} to the "
            f"file of its certificate authority, and {CLIENT_CERTIFICATE} to your certificate. Or "
            "set MLFLOW_TRACKING_INSECURE_TLS=true to turn verification off."
        )
    # Under TLS 1.3 a server may hang up on a client without a certificate and send no reason
    advice = (
        f", or set {CLIENT_CERTIFICATE} if it requires a client certificate"
        if "https:" in tracking_address()
        else ""
    )
    return UserError(
        "MLFLOW_TRACKING_URI must be the URL of a running server: "
        f"{tracking_address()} does not respond ({type(reason).__name__}). "
        f"Start the server, or correct the URL{advice}."
    )


def format_option(name: str, value: str) -> str:
    """Format a parameter as the command that started this process takes it.

    Args:
        name: Name of the parameter.
        value: Its value.
    """
    value = shlex.quote(value)
    return f"-P {name}={value}" if IS_PROJECT_RUN else f"--{name} {value}"


def tracking_address() -> str:
    """Return the address of MLflow's store, without its password."""
    address = make_url(mlflow.get_tracking_uri()).render_as_string(hide_password=True)
    return redact_passwords(address)


def ui_path(run: Run, file: str = "") -> str:
    """Return the address of a run's page within MLflow's UI.

    Args:
        run: The run.
        file: Path of a file among the artifacts, whose page it is then.
    """
    place = f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    shown = f"/artifacts/{file}" if file else ""
    # Without this MLflow shows its pages for language models
    return f"#/{place}{shown}?workflowType=machine_learning"


def ui_url(run: Run, file: str = "") -> str:
    """Return the full URL of a run's page, on MLflow's server or on the one of `mlflow ui`.

    Args:
        run: The run.
        file: As in `ui_path`.
    """
    address = tracking_address()
    return (
        f"{address if address.startswith('http') else 'http://127.0.0.1:5000'}/{ui_path(run, file)}"
    )


def retry_after_conflict(write: Callable[[], object]) -> None:
    """Write to MLflow's store, and write again if another process has just stored the same.

    MLflow inserts a row if it does not find it. If another process inserts the same row in between,
    the database raises an error. The second time MLflow finds the row.

    Args:
        write: Called once or twice.

    Raises:
        MlflowException: The store raised another error, or an error the second time.
    """
    try:
        write()
    except MlflowException as error:
        if INTEGRITY_ERROR_MARK not in str(error):
            raise
        write()


def artifact_location(run_id: str, file: str) -> str:
    """Return the path of a run's file on this machine, or else its URL in MLflow's UI.

    Args:
        run_id: Id of the run.
        file: Path of the file among the artifacts.
    """
    run = mlflow.get_run(run_id)
    location = urlsplit(run.info.artifact_uri)
    if location.scheme in ("", "file"):
        return f"{unquote(location.path)}/{file}"
    return ui_url(run, file)


def view_hint(run_id: str) -> str:
    """Return the URL of a run in MLflow's UI, after the command that opens it on this store."""
    address = tracking_address()
    server = (
        "" if address.startswith("http") else f"mlflow ui --backend-store-uri {address}, then open "
    )
    return f"view the run: {server}{ui_url(mlflow.get_run(run_id))}"
