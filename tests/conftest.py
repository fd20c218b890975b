"""What all tests stand on: no tracking server of the caller's, an empty store, small data."""

import gc
import os
import shutil
import sqlite3
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache as cache_result
from pathlib import Path

# `mlflow run -e test` hands its own run to its children: a test would attach to it
for variable in [name for name in os.environ if name.startswith("MLFLOW_")]:
    del os.environ[variable]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
# OpenMP's threads spin while they wait: beside another process of tests they take ten times as long
os.environ["OMP_NUM_THREADS"] = "1"
# The same figures everywhere, and as many workers as a test asks for
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import pytest

# Else what fails in there would not say with which values
pytest.register_assert_rewrite("tests.services", "tests.studies")

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"


@pytest.hookimpl(tryfirst=True)  # xdist must see the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first; a file's slow ones in one process: they share what takes long to make."""

    def is_slow(item: pytest.Item) -> bool:
        return item.get_closest_marker("slow") is not None

    items.sort(key=is_slow)
    for item in filter(is_slow, items):
        item.add_marker(pytest.mark.xdist_group(item.path.name))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of this session's own, so that nothing is believed that an earlier one left."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["PNEUMO_CACHE"] = str(folder)
    return folder


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """A cache of one test's own, to see what is written to it."""
    monkeypatch.setenv("PNEUMO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def sample(cache):
    """The synthetic data set."""
    from pneumo.data.dataset import open_dataset

    return open_dataset("sample", needs=("train", "test"))


@pytest.fixture
def folder(sample, tmp_path) -> Path:
    """A copy of the sample's files that a test may change."""
    return shutil.copytree(sample.base, tmp_path / "xrays")


@pytest.fixture(scope="session")
def real_archive() -> Path:
    """The real radiographs, where they are."""
    path = SHARED / "data" / "xray_dataset.tar.gz"
    if not path.exists():
        pytest.skip(f"needs the real radiographs at {path}")
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A file of weights that fits a small MobileNet."""
    import h5py

    from tests.weights import FILE, network, write

    path = tmp_path_factory.mktemp("weights") / FILE
    with h5py.File(path, "w") as file:
        write(network(), file)
    return path


@cache_result
def _empty_store() -> bytes:
    """The file of an empty MLflow store, which takes MLflow seconds to make."""
    import mlflow

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
        return (Path(folder) / "mlflow.db").read_bytes()


def _begin_store(folder: Path) -> None:
    """An empty store of the folder's own, if there is none."""
    file = folder / "mlflow.db"
    if not file.exists():
        file.write_bytes(_empty_store())
        with closing(sqlite3.connect(file)) as database:
            place = "update experiments set artifact_location = ?"
            database.execute(place, (f"{folder}/mlruns/0",))
            database.commit()


@contextmanager
def store_in(folder: Path, tracking_uri: str = "") -> Iterator:
    """The folder as working directory, with an Optuna and an MLflow store; MLflow's client.

    `tracking_uri`: of another MLflow store than one in the folder.
    """
    import mlflow

    from pneumo import tracking

    tracking.set_up()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PNEUMO_STORAGE", f"sqlite:///{folder}/optuna.db")
        if not tracking_uri:
            _begin_store(folder)
        before = os.environ.get("MLFLOW_TRACKING_URI")  # where MLflow itself puts it
        mlflow.set_tracking_uri(tracking_uri or f"sqlite:///{folder}/mlflow.db")
        yield mlflow.MlflowClient()
        mlflow.set_tracking_uri(before)


@pytest.fixture
def store(tmp_path):
    """Empty stores of one test's own; MLflow's client."""
    with store_in(tmp_path) as client:
        yield client


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """A PostgreSQL for Optuna, and MLflow's server on another of its own."""
    from tests.services import mlflow_server, postgresql

    folder = tmp_path_factory.mktemp("servers")
    with (
        postgresql() as trials,
        postgresql() as runs,
        mlflow_server(runs.address, folder) as tracking,
    ):
        yield trials, tracking


@pytest.fixture
def shared(servers, tmp_path, monkeypatch):
    """What all machines of a study see, in those servers: MLflow's client."""
    trials, tracking = servers
    with store_in(tmp_path, tracking.address) as client:
        monkeypatch.setenv("PNEUMO_STORAGE", trials.address)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.address)
        yield client
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Optuna closes no connection itself
        gc.collect()


@pytest.fixture(scope="session")
def finished(tmp_path_factory, sample):
    """A study of two trials that several tests read, and the folder of its stores."""
    from tests.studies import run_study

    folder = tmp_path_factory.mktemp("finished")
    with store_in(folder):
        return run_study(sample), folder


@contextmanager
def copy_of(finished, folder: Path) -> Iterator:
    """Copies of the finished study's stores, which a test may add to, as the current ones."""
    outcome, original = finished
    for database in original.glob("*.db"):
        shutil.copy(database, folder)
    with store_in(folder):
        yield outcome


@pytest.fixture
def study(finished, tmp_path):
    """The finished study, with stores of one test's own."""
    with copy_of(finished, tmp_path) as outcome:
        yield outcome


@pytest.fixture
def client(study):
    """MLflow's client for the finished study."""
    import mlflow

    return mlflow.MlflowClient()
