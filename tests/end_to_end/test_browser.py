"""Pages of MLflow for a study of the real radiographs, as a person sees them."""

from dataclasses import replace

import mlflow
import pytest
from playwright.sync_api import expect

from pneumo.data.dataset import open_dataset
from pneumo.reporting.study_plots import STUDY_PLOTS
from tests.support.browser import chromium, walk
from tests.support.services import mlflow_server
from tests.support.stores import begin_store, store_in
from tests.support.studies import run_study

pytestmark = pytest.mark.slow

N_IMAGES = 150  # of each split and class


@pytest.fixture(scope="module")
def page():
    with chromium() as page:
        yield page


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Start MLflow's own server as the current store; return its address."""
    folder = tmp_path_factory.mktemp("server")
    begin_store(folder / "runs.db", "mlflow-artifacts:/0")
    with (
        mlflow_server(f"sqlite:///{folder}/runs.db", folder / "artifacts") as server,
        store_in(folder, server.address),
    ):
        yield server.address


@pytest.fixture(scope="module")
def outcome(server, real_archive):
    """Run a study of some of the radiographs."""
    dataset = open_dataset(str(real_archive))
    rows = dataset.rows.groupby(["split", "label"]).head(N_IMAGES).reset_index(drop=True)
    return run_study(replace(dataset, rows=rows), trials=3, model_name="pneumonia")


def test_a_walk_through_the_pages_of_a_study(page, server, outcome, tmp_path):
    walk(page, server, outcome, tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 9


def test_the_study_page_needs_no_network_and_no_wide_screen(page, outcome, tmp_path):
    where = f"runs:/{outcome.study.user_attrs['run_id']}/study/study.html"
    file = mlflow.artifacts.download_artifacts(where, dst_path=str(tmp_path))
    requests = []
    small = {"width": 390, "height": 844}
    with page.context.browser.new_page(viewport=small, offline=True) as phone:
        phone.on("request", lambda request: requests.append(request.url))
        phone.on("pageerror", lambda error: requests.append(error))
        phone.goto(f"file://{file}")
        expect(phone.locator(".js-plotly-plot .main-svg").first).to_be_visible()
        wide = "[...document.querySelectorAll('.js-plotly-plot')].map(it => it.clientWidth)"
        widths = phone.evaluate(wide)
        assert phone.evaluate("document.documentElement.scrollWidth") == 390
    assert requests == [f"file://{file}"]
    assert len(widths) == len(STUDY_PLOTS)
    wider = [
        graph.width_per_param > 0 for graph in STUDY_PLOTS.values()
    ]  # they scroll by themselves
    assert [width > 390 for width in widths] == wider
