"""Empty MLflow and Optuna stores in a folder, and copies of stores."""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache as cache_result
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, event

from tests.support import environment  # noqa: F401


@cache_result
def _empty_store() -> bytes:
    """Return the file of an empty MLflow store, which takes MLflow seconds to make."""
    import mlflow

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
        return (Path(folder) / "mlflow.db").read_bytes()


def begin_store(file: Path, artifacts: str) -> None:
    """Make an empty MLflow store, if there is none, with a place for the artifacts of its runs."""
    if not file.exists():
        file.write_bytes(_empty_store())
        with closing(sqlite3.connect(file)) as database:
            place = "update experiments set artifact_location = ?"
            database.execute(place, (artifacts,))
            database.commit()


@contextmanager
def store_in(folder: Path, tracking_uri: str = "") -> Iterator:
    """Work in a folder with an Optuna and an MLflow store; yield MLflow's client.

    `tracking_uri`: URI of an MLflow store to use in place of one in the folder.
    """
    import mlflow

    from pneumo.tracking import session

    session.configure_mlflow()
    _clear_artifact_cache()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PNEUMO_STORAGE", f"sqlite:///{folder}/optuna.db")
        if not tracking_uri:
            begin_store(folder / "mlflow.db", f"{folder}/mlruns/0")
        before = os.environ.get("MLFLOW_TRACKING_URI")  # where MLflow itself puts it
        mlflow.set_tracking_uri(tracking_uri or f"sqlite:///{folder}/mlflow.db")
        yield mlflow.MlflowClient()
        mlflow.set_tracking_uri(before)
    _clear_artifact_cache()


def _clear_artifact_cache() -> None:
    """Let MLflow look up again where the files of runs are: copied runs keep their ids."""
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()


@contextmanager
def closed_connections() -> Iterator[None]:
    """Close at the end what was connected to a database meanwhile, which Optuna itself does not.

    A connection that the garbage collector finds open is a warning, in whichever test that happens.
    """
    engines: set[Engine] = set()  # of which none is collected before it is closed

    def note(connection: Connection) -> None:
        engines.add(connection.engine)

    event.listen(Engine, "engine_connect", note)
    try:
        yield
    finally:
        event.remove(Engine, "engine_connect", note)
        for engine in engines:
            engine.dispose()


@contextmanager
def copy_of(finished, folder: Path) -> Iterator:
    """Copy the finished study's stores, which a test may change, as the current ones."""
    outcome, original = finished
    for database in original.glob("*.db"):
        shutil.copy(database, folder)
    with store_in(folder):
        yield outcome


def copy_stores(original: Path, folder: Path) -> None:
    """Copy MLflow's stores of one folder to another, and change their paths."""
    shutil.copytree(original / "mlruns", folder / "mlruns")
    with sqlite3.connect(original / "mlflow.db") as source:
        script = "\n".join(source.iterdump()).replace(f"{original}/mlruns", f"{folder}/mlruns")
    source.close()
    copy, target = sqlite3.connect(":memory:"), sqlite3.connect(folder / "mlflow.db")
    copy.executescript(script)
    copy.backup(target)
    copy.close()
    target.close()


def copy_study(original: Path, folder: Path) -> None:
    """Copy the stores of a study from one folder to another, with all of its files."""
    copy_stores(original, folder)
    shutil.copy(original / "optuna.db", folder)


def files_of(folder: Path, model_id: str) -> Path:
    """Return the folder of a model's files."""
    [place] = folder.rglob(f"{model_id.removeprefix('models:/')}/artifacts")
    return place
