"""A study that is resumed with more trials."""

import re
import sqlite3
from contextlib import closing

import mlflow
import pytest

from pneumo.evaluation.metrics import compute_metrics
from pneumo.runtime.errors import UserError
from tests.support.stores import store_in
from tests.support.studies import BASE, PROCESS, SUBJECT, children, predictions, run_study, tags
from tests.support.training import without_fits

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_plots", "without_pages")]


@pytest.mark.usefixtures("without_training", "without_winner")
def test_three_and_two_trials_equal_five_in_one_go(store, sample):
    # the fifth trial is the first one that the four before it may prune
    whole = run_study(sample, trials=5, name="whole")
    for trials in (3, 5):
        parted = run_study(sample, trials=trials, name="parted")
    assert parted.study.best_trial.number == whole.study.best_trial.number
    first, second = children(store, parted), children(store, whole)
    assert [run.data.params for run in first] == [run.data.params for run in second]
    assert [run.data.metrics for run in first] == [run.data.metrics for run in second]
    assert len({str(run.data.params) for run in first}) == 5


@pytest.mark.usefixtures("without_training", "without_winner")
def test_a_continued_study_stays_under_its_own_run(own_study, sample):
    study_id, store = own_study.study.user_attrs["run_id"], mlflow.MlflowClient()
    continued = run_study(sample, trials=3, name=own_study.study.study_name)
    assert continued.study.user_attrs["run_id"] == study_id
    below = store.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{study_id}'")
    kinds = [tags(run)["pneumo.kind"] for run in below]
    assert sorted(kinds) == ["resume", "trial", "trial", "trial"]
    assert {run.info.status for run in store.search_runs(["0"])} == {"FINISHED"}
    resume = below[kinds.index("resume")]
    assert set(tags(resume)) == {"pneumo.kind", "pneumo.study", *SUBJECT, *PROCESS}
    assert resume.data.metrics == {}
    assert tags(store.get_run(study_id))["pneumo.kind"] == "study"


def test_test_is_evaluated_again_only_for_another_winner(own_study, sample):
    first, store = own_study, mlflow.MlflowClient()
    study_id, name = first.study.user_attrs["run_id"], first.study.study_name
    again = run_study(sample, name=name)
    assert (again.version, again.test_metrics) == (first.version, first.test_metrics)
    assert len(store.get_metric_history(study_id, "test_auc")) == 1
    assert len(store.search_model_versions("name = 'pneumonia-sample'")) == 1
    with without_fits(separation=0):
        worse = run_study(sample, trials=3, name=name)
    assert (worse.version, worse.test_metrics) == (first.version, first.test_metrics)
    with without_fits(separation=6):
        latest = run_study(sample, trials=4, name=name)
    assert latest.study.best_trial.number == 3
    assert latest.version == 2
    assert latest.test_metrics != first.test_metrics
    stored = store.get_run(study_id).data.metrics
    read = {name: stored[f"test_{name}"] for name in latest.test_metrics}
    assert read == pytest.approx(latest.test_metrics, rel=0, abs=0, nan_ok=True)
    assert len(store.get_metric_history(study_id, "test_auc")) == 2
    table = predictions(study_id, "test")
    again = compute_metrics(
        table["label"].to_numpy(), table["probability"].to_numpy(), stored["test_threshold"]
    )
    assert again["auc"] == stored["test_auc"]


@pytest.mark.parametrize(
    ("fixed", "fact"),
    [
        ({"seed": "1"}, "seed 0: got 1"),
        ({"epochs": "3"}, "epochs 2: got 3"),
        ({"dropout": "0.1"}, "fixed {}: got {'dropout': '0.1'}"),
    ],
)
def test_a_study_is_resumed_with_its_original_settings(finished, sample, fixed, fact):
    outcome, folder = finished
    with store_in(folder), pytest.raises(UserError, match=re.escape(f"was created with {fact}")):
        run_study(sample, name=outcome.study.study_name, fixed=fixed)


def test_a_study_is_continued_in_the_store_of_its_runs(finished, sample, tmp_path):
    outcome, folder = finished
    with store_in(folder):
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/other.db")
        with pytest.raises(UserError) as raised:
            run_study(sample, name=outcome.study.study_name)
    assert str(raised.value) == (
        f"study '{outcome.study.study_name}' must be in both stores: Optuna's database at "
        f"sqlite:///{folder}/optuna.db has it, but MLflow at sqlite:///{tmp_path}/other.db does "
        f"not (run {outcome.study.user_attrs['run_id']}). Set MLFLOW_TRACKING_URI to the store "
        "in which it was created, or use another study name."
    )


@pytest.mark.usefixtures("without_training", "without_winner")
def test_a_lost_baseline_is_enqueued_again(own_study, sample):
    # as if trial 0 had been interrupted
    with closing(sqlite3.connect("optuna.db")) as database, database:
        database.execute("UPDATE trials SET state = 'FAIL' WHERE number = 0")
    outcome = run_study(sample, name=own_study.study.study_name)
    assert [trial.state.name for trial in outcome.study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    params = [run.data.params for run in children(mlflow.MlflowClient(), outcome)]
    assert BASE.override({**params[2], "seed": 0}) == BASE
