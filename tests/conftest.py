"""What all tests stand on: no tracking server of the caller's, an empty store, small data."""

import gc
import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest

# The other core is for the other process of tests. TensorFlow's idle threads would take its time
os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}

# Else what fails in there would not say with which values
pytest.register_assert_rewrite("tests.support")

from pneumo.runtime import signals
from tests.support.paths import ROOT, SHARED
from tests.support.stores import (  # which cleans the environment
    closed_connections,
    copy_of,
    copy_study,
    store_in,
)

HANDLERS = {number: signal.getsignal(number) for number in (*signals.SIGNALS, signal.SIGALRM)}


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests so that both processes are busy until the end.

    The slow tests of a module that share one of its fixtures are a group and run in one process,
    because such a fixture takes long to make. Groups begin first, the largest first. All other slow
    tests follow one by one, and fast tests fill the gaps at the end.
    """
    group_sizes: Counter[str] = Counter()
    for item in items:
        if _is_slow(item) and _uses_module_fixture(item):
            group = str(item.path.relative_to(ROOT))
            item.add_marker(pytest.mark.xdist_group(group))
            group_sizes[group] += 1

    def rank(item: pytest.Item) -> tuple[int, int]:
        marker = item.get_closest_marker("xdist_group")
        if marker:
            return 0, -group_sizes[marker.args[0]]
        return (1 if _is_slow(item) else 2), 0

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """Make Python look for garbage less often, and not among the imported libraries.

    TensorFlow and Keras make many objects, which it would look through again and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


def _uses_module_fixture(item: pytest.Item) -> bool:
    definitions = item._fixtureinfo.name2fixturedefs.values()
    return any(definition.scope == "module" for found in definitions for definition in found)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of this session's own, so that nothing is believed that an earlier one left."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["PNEUMO_CACHE"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def _original_signal_handlers():
    """Undo what commands in this process, also those of fixtures, have done to signal handlers.

    Otherwise an interrupt in one test would end a later one, and with it the whole process.
    """
    _restore_signal_handlers()
    yield
    _restore_signal_handlers()


def _restore_signal_handlers() -> None:
    signals.install_handlers()  # forgets a signal that has arrived
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """Use a cache of this test's own, to see what is written to it."""
    monkeypatch.setenv("PNEUMO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def without_plots():
    """Use `without_pictures` in a test of other results."""
    from tests.support.studies import without_pictures

    with without_pictures():
        yield


@pytest.fixture
def without_pages(monkeypatch):
    """Write no page of a study, in a test that reads none."""
    monkeypatch.setattr("pneumo.tuning.output.study_page.StudyPage.write", lambda *_: None)


@pytest.fixture
def without_training():
    """Use `without_fits` in a test of what is around the training."""
    from tests.support.training import without_fits

    with without_fits():
        yield


@pytest.fixture
def without_winner():
    """Use `without_registration` in a test of a study's trials."""
    from tests.support.studies import without_registration

    with without_registration():
        yield


@pytest.fixture(scope="session")
def sample(cache):
    """Open the synthetic data set."""
    from pneumo.data.dataset import open_dataset

    return open_dataset("sample", required_splits=("train", "test"))


@pytest.fixture
def folder(sample, tmp_path) -> Path:
    """Copy the sample's files, so that a test may change them."""
    return shutil.copytree(sample.base, tmp_path / "xrays")


@pytest.fixture(scope="session")
def real_archive() -> Path:
    """Return the real radiographs, or skip the test without them."""
    path = SHARED / "data" / "xray_dataset.tar.gz"
    if not path.exists():
        pytest.skip(f"needs the real radiographs at {path}")
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """Write a weights file that fits a small MobileNet."""
    import h5py

    from tests.support.weights import FILE, network, write

    path = tmp_path_factory.mktemp("weights") / FILE
    with h5py.File(path, "w") as file:
        write(network(), file)
    return path


@pytest.fixture
def store(tmp_path):
    """Make empty stores of this test's own; return MLflow's client."""
    with store_in(tmp_path) as client:
        yield client


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Start PostgreSQL for Optuna, and MLflow's server on another PostgreSQL."""
    from tests.support.services import mlflow_server, postgresql

    folder = tmp_path_factory.mktemp("servers")
    with (
        postgresql() as trials,
        postgresql() as runs,
        mlflow_server(runs.address, folder) as tracking,
    ):
        yield trials, tracking


@pytest.fixture
def shared(servers, tmp_path, monkeypatch):
    """Use those servers as the stores of all machines; return MLflow's client."""
    trials, tracking = servers
    with store_in(tmp_path, tracking.address) as client, closed_connections():
        monkeypatch.setenv("PNEUMO_STORAGE", trials.address)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.address)
        yield client


@pytest.fixture(scope="session")
def finished(tmp_path_factory, sample):
    """Run a study of two trials that several tests read; return it and its folder."""
    from tests.support.studies import run_study

    folder = tmp_path_factory.mktemp("finished")
    with store_in(folder):
        return run_study(sample), folder


@pytest.fixture
def study(finished, tmp_path):
    """Return the finished study, with stores of this test's own."""
    with copy_of(finished, tmp_path) as outcome:
        yield outcome


@pytest.fixture
def own_study(finished, tmp_path):
    """Return the finished study, with stores and files of this test's own: it may go on."""
    outcome, original = finished
    copy_study(original, tmp_path)
    with store_in(tmp_path):
        yield outcome


@pytest.fixture
def client(study):
    """Return MLflow's client for the finished study."""
    import mlflow

    return mlflow.MlflowClient()
