"""Optuna's database, its outages and its heartbeat."""

import os
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
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
from pneumo.tracking import study_runs
from pneumo.tuning import attributes

# Seconds
HEARTBEAT_INTERVAL, GRACE_PERIOD = 30, 120
MAX_OUTAGE = 120  # that a database may be away

T = TypeVar("T")

# What the two stores of a study raise when they fail
STORE_ERRORS = (MlflowException, StorageInternalError, SQLAlchemyError)


class _ResilientStorage(optuna.storages.RDBStorage):
    """A beat that the database does not hear is missed; Optuna's own heart stops with it."""

    def record_heartbeat(self, trial_id: int) -> None:
        """As `optuna.storages.RDBStorage.record_heartbeat`."""
        with suppress(StorageInternalError, SQLAlchemyError):
            super().record_heartbeat(trial_id)


def open_storage(patience: float = 0) -> optuna.storages.RDBStorage:
    """Optuna's database: `PNEUMO_STORAGE`, by default `sqlite:///optuna.db`.

    A database of several machines is told every `HEARTBEAT_INTERVAL` seconds that a trial is alive;
    one that has been silent for `GRACE_PERIOD` is ended as failed by whoever starts the next. Such
    a database may be away for `MAX_OUTAGE` seconds once it is open. Raises `UserError` where it
    does not open within `patience` seconds.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # failed trials are told by their lines
    url = storage_url()
    if url.partition("?")[0].count("@") > 1 and not url.startswith("sqlite"):
        raise UserError(  # and show nothing of it: SQLAlchemy takes half the password for the host
            "PNEUMO_STORAGE must name a database by a URL with one @; write those of a password "
            "as %40"
        )
    try:
        return _retry(lambda: _open(url), SQLAlchemyError, patience)
    except ArgumentError:
        raise UserError(
            "PNEUMO_STORAGE must be the URL of a database, as postgresql://USER@HOST/DATABASE"
        ) from None
    except (SQLAlchemyError, ImportError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise UserError(
            "PNEUMO_STORAGE must name a database that can be opened: "
            f"got {storage_address()} ({reason}); "
            "start it, or correct the URL"
        ) from None


def storage_url() -> str:
    """Return the URL of Optuna's database, with its password."""
    return os.environ.get("PNEUMO_STORAGE") or "sqlite:///optuna.db"


def storage_address() -> str:
    """Return the URL of Optuna's database, with the file's whole path and without a password."""
    url = make_url(storage_url())
    if serves_one_machine() and url.database and not url.database.startswith((":", "file:")):
        url = url.set(database=os.path.abspath(url.database))
    return url.render_as_string(hide_password=True)


def serves_one_machine() -> bool:
    """Return whether the database is a file of SQLite."""
    return storage_url().startswith("sqlite")


def _open(url: str) -> optuna.storages.RDBStorage:
    if serves_one_machine():  # where a process that has died is known
        wait_for_lock = {"timeout": 60}  # seconds
        return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": wait_for_lock})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of heartbeats
        storage = _ResilientStorage(
            url,
            engine_kwargs={"pool_pre_ping": True},  # one that a restart has cut is made anew
            heartbeat_interval=HEARTBEAT_INTERVAL,
            grace_period=GRACE_PERIOD,
            heartbeat_stale_trial_callback=_on_stale_trial,
        )
    event.listen(storage.engine, "do_connect", _connect)
    return storage


def _connect(dialect: Dialect, _: Any, args: Any, options: Any) -> Any:
    away = dialect.loaded_dbapi.OperationalError
    return _retry(lambda: dialect.connect(*args, **options), away, MAX_OUTAGE)


def _retry(call: Callable[[], T], failure: type[Exception], patience: float) -> T:
    """Return what `call` returns, which is tried each second for `patience` seconds."""
    start = time.monotonic()
    announced = False
    while True:
        try:
            return call()
        except failure:
            if time.monotonic() >= start + patience:
                raise
        if not announced:
            echo(f"waiting for Optuna's database at {storage_address()}, {patience:.0f} s at most")
            announced = True
        time.sleep(1)


def _on_stale_trial(study: optuna.Study, trial: FrozenTrial) -> None:
    """Ends the MLflow run of a trial that fell silent; what was asked for is asked for again."""
    if asked := trial.system_attrs.get("fixed_params"):
        study.enqueue_trial(asked)
    study_runs.fail_stale_trial(attributes.RUN_ID.of(study), trial.number)
