"""The page of an evaluation."""

import json

import pytest

from tests.support.commands import run_here
from tests.support.studies import text

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("without_plots")
def test_a_page_of_a_run_without_study(store):
    fields = "--image_size 32 --epochs 1 --ensemble_size 2 --threshold_rule midpoint"
    code, output, errors = run_here("train", "--model_name", "mine", *fields.split())
    assert code == 0, errors
    code, output, errors = run_here("evaluate", "--model", "models:/mine/1", "--data", "sample")
    assert code == 0, errors
    [made] = store.search_runs(["0"], "tags.`pneumo.kind` = 'evaluate'")
    page = text(made.info.run_id, "test/evidence.html")
    assert "A single run of experiment cnn, without a search." in page
    assert "val_auc was selected for each of the 2 ensemble members. The" in page
    assert "The threshold (midpoint between the classes) was chosen on" in page
    numbers = json.loads(text(made.info.run_id, "test/metrics.json"))
    assert numbers["test_evaluations"] == 1
