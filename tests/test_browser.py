"""What a person sees of a study of the real radiographs in MLflow's pages."""

import pytest

from pneumo.data.dataset import open_dataset
from tests.browser import chromium, walk
from tests.conftest import store_in
from tests.services import mlflow_server
from tests.studies import run_study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page():
    with chromium() as page:
        yield page


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of MLflow's own server, which is the current store."""
    folder = tmp_path_factory.mktemp("server")
    with (
        mlflow_server(f"sqlite:///{folder}/runs.db", folder / "artifacts") as server,
        store_in(folder, server.address),
    ):
        yield server.address


@pytest.fixture(scope="module")
def outcome(server, real_archive):
    return run_study(open_dataset(str(real_archive)), trials=3, model_name="pneumonia")


def test_a_walk_through_the_pages_of_a_study(page, server, outcome, tmp_path):
    walk(page, server, outcome, tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 8
