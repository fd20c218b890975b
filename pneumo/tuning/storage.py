"""Optuna's database: its URL, its outages and its heartbeat."""

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import optuna
from mlflow.exceptions import MlflowException
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial
from sqlalchemy import event, make_url
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from pneumo.runtime.console import echo
from pneumo.runtime.errors import UserError
from pneumo.tracking import session, study_runs
from pneumo.tuning import attributes

# Seconds
HEARTBEAT_INTERVAL, GRACE_PERIOD = 30, 120
MAX_OUTAGE = 120  # that a database may be unavailable

T = TypeVar("T")

# Errors of the two stores of a study
STORE_ERRORS = (MlflowException, StorageInternalError, SQLAlchemyError)


class _ResilientStorage(optuna.storages.RDBStorage):
    """Storage that survives failed heartbeats.

    In Optuna's own class, the heartbeat's thread ends at the first error of the database.
    """

    def record_heartbeat(self, trial_id: int) -> None:
        """Implement `optuna.storages.RDBStorage.record_heartbeat`; ignore its errors."""
        with suppress(StorageInternalError, SQLAlchemyError):
            super().record_heartbeat(trial_id)


def open_storage(patience: float = 0) -> optuna.storages.RDBStorage:
    """Open Optuna's database: `PNEUMO_STORAGE`, by default `sqlite:///optuna.db`.

    In a database of several machines a trial records a heartbeat every `HEARTBEAT_INTERVAL`
    seconds. A trial without one for `GRACE_PERIOD` seconds is stale: the process that starts the
    next trial fails it. Such a database may be unavailable for `MAX_OUTAGE` seconds once it is
    open.

    Args:
        patience: Seconds for which opening is tried again.

    Raises:
        UserError: The URL is invalid, or the database does not open within `patience` seconds.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # each failed trial has a line of its own
    url = storage_url()
    if url.partition("?")[0].count("@") > 1 and not url.startswith("sqlite"):
        raise UserError(  # without the URL: SQLAlchemy takes half the password for the host
            "PNEUMO_STORAGE must be a database URL with at most one @. Write each @ of a password "
            "as %40."
        )
    try:
        return _retry(lambda: _open(url), SQLAlchemyError, patience)
    except ArgumentError:
        raise UserError(
            "PNEUMO_STORAGE must be the URL of a database, for example "
            "postgresql://USER@HOST/DATABASE"
        ) from None
    except (SQLAlchemyError, ImportError, RuntimeError) as error:  # the last from another schema
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise UserError(
            "PNEUMO_STORAGE must be the URL of a database that can be opened: "
            f"got {storage_address()} ({reason}). "
            "Start the database, or correct the URL."
        ) from None


def storage_url() -> str:
    """Return the URL of Optuna's database, with its password."""
    return os.environ.get("PNEUMO_STORAGE") or "sqlite:///optuna.db"


def storage_address() -> str:
    """Return the URL of Optuna's database, with an absolute path and without a password."""
    url = make_url(storage_url())
    if serves_one_machine() and url.database and not url.database.startswith((":", "file:")):
        url = url.set(database=os.path.abspath(url.database))
    return url.render_as_string(hide_password=True)


def serves_one_machine() -> bool:
    """Return whether the database is a file of SQLite."""
    return storage_url().startswith("sqlite")


def _open(url: str) -> optuna.storages.RDBStorage:
    if serves_one_machine():  # no heartbeat: `ProcessId` finds dead processes
        wait_for_lock = {"timeout": 60}  # seconds
        return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": wait_for_lock})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of heartbeats
        storage = _ResilientStorage(
            url,
            engine_kwargs={"pool_pre_ping": True},  # replaces connections that a restart has closed
            heartbeat_interval=HEARTBEAT_INTERVAL,
            grace_period=GRACE_PERIOD,
            heartbeat_stale_trial_callback=_on_stale_trial,
        )
    event.listen(storage.engine, "do_connect", _connect)
    return storage


def _connect(dialect: Dialect, _: Any, args: Any, options: Any) -> Any:
    failure = dialect.loaded_dbapi.OperationalError
    return _retry(lambda: dialect.connect(*args, **options), failure, MAX_OUTAGE)


def _retry(call: Callable[[], T], failure: type[Exception], patience: float) -> T:
    """Return what `call` returns; repeat it each second for `patience` seconds if it fails."""
    start = time.monotonic()
    announced = False
    while True:
        try:
            return call()
        except failure:
            if time.monotonic() >= start + patience:
                raise
        if not announced:
            echo(f"waiting at most {patience:.0f} s for Optuna's database at {storage_address()}")
            announced = True
        time.sleep(1)


def _on_stale_trial(study: optuna.Study, trial: FrozenTrial) -> None:
    """Fail the MLflow run of a stale trial, and enqueue the trial again if it was enqueued."""
    if enqueued_params := trial.system_attrs.get("fixed_params"):
        study.enqueue_trial(enqueued_params)
    study_runs.fail_stale_trial(attributes.RUN_ID.read(study), trial.number)


def how_to_continue(name: str) -> str:
    """Return in words how to resume a study from where this process was started."""
    return f"run the same command with {_storage_setting()}{session.format_option('study', name)}"


def _storage_setting() -> str:
    """Return the setting without which the next command would not find Optuna's database.

    MLflow fetches a project from a Git address into a new temporary folder for each command. There
    a relative path means another file for each command.
    """
    is_relative = storage_address() != storage_url()
    in_clone = Path.cwd().is_relative_to(Path(tempfile.gettempdir()).resolve())
    if serves_one_machine() and is_relative and in_clone:
        return f"PNEUMO_STORAGE={storage_address()} and "
    return ""
